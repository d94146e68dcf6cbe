"""Write `docs/results.md` from the `metrics.json` files of finished runs.

    python benchmarks/accuracy/results.py --runs runs/crema_d runs/emobox --tables ablation.json speaker_norm.json

What the page needs of each run is kept beside it, in `docs/results/`, so that runs may come from several machines and
days: the same experiment done again takes the place of its older run. Nothing in the page is written by hand but its
explanations; it holds numbers only, nothing of the recordings.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from ser_ray.base import storage
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.base.settings import parse_flags, run_job
from ser_ray.scores.run_folder import read_run

PUBLISHED = """\
| system | protocol | RAVDESS, UAR % | SAVEE, UAR % |
|---|---|---|---|
| frozen Whisper-large-v3 + MLP | EmoBox folds, within corpus | 75.3 | 74.1 |
| frozen WavLM-large + MLP | the same | 72.0 | 66.7 |
| frozen HuBERT-base + MLP | the same | 65.4 | 58.9 |
| frozen WavLM-base + MLP | the same | 61.6 | 63.6 |
| frozen wav2vec2-base + MLP | the same | 54.3 | 44.9 |
| ResLSTM-SA, from scratch | 5 speaker-independent folds | 62.3 | – |

Rows of frozen encoders are EmoBox's (arXiv 2406.07162), the last is arXiv 2606.03359. Encoders were pretrained on
much other speech; everything below is trained from scratch on the corpora alone. People who hear the sound alone
recognize the intended emotion in about 60 % of RAVDESS clips, 41 % of CREMA-D, 82 % of TESS and 67 % of SAVEE.
"""

ABLATION, KNOWN = "ablation-", "known-"  # how names of their files begin, beside those of the runs

INTRO = """\
# Results

Written by `benchmarks/accuracy/results.py` from the `metrics.json` of the runs below; the command of each stands with
it (`CORPORA` is the folder of the corpora). UAR is the mean recall over emotions, in percent; chance is 12.5 for eight
emotions and 16.7 for CREMA-D's six. Intervals are 95 % bootstrap intervals that draw speakers, so they say how far the
score would move with other people (with two speakers, as in TESS, they say little). Early stopping, learning rate and
temperature look at validation speakers only. Test speakers were looked at once for each network that was ready to be
tested: those of RAVDESS three times within the corpus (one network without the second input channel: 68.7; and the two
runs below); those of CREMA-D five times (before the two runs below, that network: 58.1; two members of an earlier kind:
59.1; and with masks: 60.3). Networks trained on all corpora were tested besides on RAVDESS's twice, by each protocol
once, and on three of five folds of CREMA-D's and TESS's once. None of these results was used to choose anything.

`cnn1d` is the network of the widely copied notebook on its 162 averaged features, `log_mel_resnet` ours on log-mel
frames. The settings of `log_mel_resnet` (epochs, width, no squeeze-and-excitation, training within the corpus) were
chosen by validation UAR on two folds of RAVDESS, its second input channel on two of CREMA-D besides, and the mean
over five copies of a clip on one fold of each; those of `cnn1d` are its recipe's. Masks (SpecAugment) were part of
the settings at first and were left out since: without them validation speakers are recognized better on both of two
folds of RAVDESS and, by far, on one of CREMA-D, where networks had not learned their training speakers to the end.
What has masks is of before. On tested speakers CREMA-D gained by leaving them out (60.3 to 64.0) and RAVDESS did not
(71.1 both). The six networks of both runs of RAVDESS, together by the mean of their log-probabilities, reach 72.7
(`python jobs/evaluate.py --run RUN RUN`; they count alike, as they keep no answers on validation speakers): trained in
two ways they err on different clips, as pairs of them did on validation speakers. No other combination was looked at.

"By speaker" (`--speaker-norm`) is another task than the other rows. Each mel band is brought from its mean and
standard deviation over all clips of the same speaker, of tested speakers too, to those of training: emotions of tested
speakers are not looked at, but their other clips are, and here everybody speaks in every emotion about equally often,
which recordings of life do not promise. It answers what a network is worth on people of whom many clips are known, of
mixed emotions; a table below says what it is worth with fewer. On validation speakers of one fold of CREMA-D, one
network, it was far better than without, on those of one of RAVDESS hardly; removing the mean alone helped less on
CREMA-D and more on RAVDESS. A training that hears clips as if fewer of their speaker were known makes more of one to
ten clips; with all of them it was not told from one without by the validation speakers of three folds of CREMA-D and
one of RAVDESS, and was left for being more to understand. Targets of training softened by networks that had not heard
the speaker, and more label smoothing, were tried on one fold of CREMA-D and left. Tested speakers of CREMA-D were
looked at, besides, by two earlier kinds: one that brought all bands to a mean of 0 and a deviation of 15 dB, without
usual speech beside a speaker's own (68.0), and, on two folds, the one that heard fewer clips (64.7 and 66.5; those
below 67.0 and 68.6). Those of both were looked at for that table, too, by the networks below: of RAVDESS's three the
first.

Tried on validation speakers of two folds of RAVDESS, one network each, and left: training steps that hear 2 s or 4 s of
a clip instead of 3 s, 128 bands of 128 ms frames, self-attention over time, random filters; and a start from a network
trained on other corpora (`--start-from`), which learns faster and ends alike. On one fold of CREMA-D so were 2 s,
stronger mixup and a start from RAVDESS and TESS.

CREMA-D was given 40 epochs beforehand: its epochs have more than twice the clips of one of RAVDESS. "× 3" are three
members that answer together; the first is validated, the others learn from its validation speakers too. Of the
three by speaker on RAVDESS that first one had been trained and tested before, alone (69.2), and was taken as it was, so
its training is not in their time. There are three as in the plain run.

A search was held against the default settings: `python jobs/tune.py --data CORPORA --corpus ravdess --protocol emobox
--epochs 24 --num-samples 60 --time-budget-s 1200 --precision bf16`, which begins with them. Of 17 trials the best
reached a UAR of 66.4 on the validation speakers of the first fold, the defaults 61.7. What it found (hardly any mixup,
no masked bands, less dropout) suits a training of 24 epochs; at full length all of it together came out below the
defaults on the validation speakers of another fold of RAVDESS and of one of CREMA-D. Of its findings the masks were
tried by themselves later, as said above, and left out; so much of the defaults is a search's.

The corpora at hand were all 1,440 speech clips of RAVDESS, the 3,266 clips of 40 of CREMA-D's 91 actors, and 350 of the
2,800 clips of TESS. A pooled score partly measures which corpus a clip came from, by its recording; read it per corpus.
A network that is trained on several corpora can do so too, and does where one of them alone has an emotion: with
classes weighed over all corpora together the pooled UAR on validation speakers is the highest and that of RAVDESS by
itself the lowest ("What each part is worth"). So classes are weighed in each corpus by itself; without weights it comes
out alike there. The pooled runs below are single networks with fewer epochs, which have up to five times as many clips.
Pooling brought the tested people of RAVDESS and CREMA-D nothing that shows: results within the corpus are higher (by
two or three members, and for CREMA-D with six labels instead of eight).
"""

DIFFERENCE = """\
## What the split is worth

The notebook protocol splits rows at random after augmentation. Most of its test rows have a sibling in training: the
same clip with noise or stretched, and every speaker and sentence is shared. Same features, same network, other split:
"""

SPEAKER_NORM = "python benchmarks/accuracy/speaker_norm.py --run RUN --store STORE"

WITH_SPEAKERS = """\
## How many clips of a speaker normalization takes

Networks trained with `--speaker-norm` answer for a clip that is normalized by itself and some other clips of its
speaker: drawn from all emotions, or from its own emotion alone. With none it stays as it is.
"""


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        runs: Folders of finished runs to add.
        tables: Files that `ablation.py --json` and `speaker_norm.py --json`, beside this one, wrote, to add.
        output: The page to write; the figures of its runs lie in a folder of the same name.
    """

    runs: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    output: str = "docs/results.md"


def main(argv: list[str]) -> None:
    values = parse_flags(argv, __doc__, Flags)
    folder = values["output"].removesuffix(".md")
    for place in values["runs"]:
        run = figures(read_run(place)[0])
        storage.write_json(storage.join(folder, f"{file_name(run)}.json"), run)
    for place in values["tables"]:
        table = storage.read_json(place)
        kind = ABLATION if "epochs" in table else KNOWN
        table["command"] = without_places(table["command"]) if kind == ABLATION else SPEAKER_NORM
        words = [*table["corpora"], table["protocol"], "fold", table["fold"]]
        storage.write_json(storage.join(folder, f"{kind}{'-'.join(map(str, words))}.json"), table)
    names = [name for name in storage.list_names(folder) if name.endswith(".json")]
    files = {name: storage.read_json(storage.join(folder, name)) for name in names}
    runs = sorted((run for name, run in files.items() if not name.startswith((ABLATION, KNOWN))), key=rank)
    if not runs:
        raise UserError("--runs is missing: name the folders of finished runs")
    tables = sorted((t for name, t in files.items() if name.startswith(ABLATION)), key=lambda t: len(t["corpora"]))
    known = [table for name, table in files.items() if name.startswith(KNOWN)]
    parts = [
        INTRO,
        "## Published numbers\n",
        PUBLISHED,
        "## All runs\n",
        overview(runs),
        *([DIFFERENCE, overview([run for run in runs if is_notebook(run)])] if any(map(is_leaky, runs)) else []),
        *(["## What each part is worth\n"] if tables else []),
        *map(ablation, tables),
        *([WITH_SPEAKERS] if known else []),
        *map(known_clips, known),
        "## Each run\n",
        *map(section, runs),
    ]
    storage.write_text(values["output"], "\n".join(parts))
    say(f"{values['output']}: {len(runs)} runs")


def figures(run: dict[str, Any]) -> dict[str, Any]:
    """Return what the page needs of a run."""

    def score(scores: dict[str, Any]) -> dict[str, Any]:
        kept = {name: scores[name] for name in ("num_test", "uar", "accuracy")}
        return kept | {"interval": {"uar": scores["interval"]["uar"]}}

    kept = {name: run[name] for name in ("protocol", "fold", "config", "labels", "confusion_matrix", "versions")}
    kept |= {name: run[name] for name in ("folds", "mean", "std") if name in run}
    if "folds" in kept:
        kept["folds"] = [{"uar": fold["uar"]} for fold in run["folds"]]
    return {
        **score(run),
        **kept,
        "command": command(run),
        "per_corpus": {corpus: score(scores) for corpus, scores in run["per_corpus"].items()},
        "per_class": {label: {"recall": scores["recall"]} for label, scores in run["per_class"].items()},
        "leaks": {"train_test": run["leaks"]["train_test"]},
        "timing": {"train_s": run["timing"]["train_s"]},
    }


def file_name(run: dict[str, Any]) -> str:
    """Return a name that tells experiments apart."""
    config = run["config"]
    labels = [] if config["labels"] in (["all"], ("all",)) else config["labels"]
    kinds = ("speaker-norm", has_speaker_norm(run)), ("masks", has_masks(run)), ("started", has_start(run))
    kind = [word for word, true in kinds if true]
    words = [config["model"]["model"], *kind, run["protocol"], *config["corpus"], *labels, f"fold-{run['fold']}"]
    return "-".join(map(str, words)).replace("_", "-").replace("=", "-").replace(", ", "-")


def rank(run: dict[str, Any]) -> tuple[Any, ...]:
    """Sort ours before the notebook's, honest protocols before the leaky one, single corpora before pools."""
    corpora = run["config"]["corpus"]
    return run["config"]["model"]["model"] == "cnn1d", is_leaky(run), not corpora, *corpora, run["protocol"]


def is_leaky(run: dict[str, Any]) -> bool:
    """Tell whether a run's protocol leaks."""
    return run["protocol"] == "notebook"


def is_notebook(run: dict[str, Any]) -> bool:
    """Tell whether a run shows what the notebook's network is worth."""
    return run["config"]["model"]["model"] == "cnn1d" and run["protocol"] in ("notebook", "speaker-independent")


def has_speaker_norm(run: dict[str, Any]) -> bool:
    """Tell whether spectra were normalized by speaker."""
    return run["config"]["model"].get("speaker_norm", False)  # older runs do not say


def has_masks(run: dict[str, Any]) -> bool:
    """Tell whether a network on log-mel frames was trained with masks (SpecAugment)."""
    return run["config"]["model"]["model"] == "log_mel_resnet" and run["config"]["frame_augment"]["mask_s"] > 0


def has_start(run: dict[str, Any]) -> bool:
    """Tell whether training started from another run's network."""
    return bool(run["config"].get("start_from"))  # older runs do not say


def overview(runs: list[dict[str, Any]]) -> str:
    """Return a table with one row per run and corpus."""
    lines = [
        "| model | protocol | trained on | tested on | clips | UAR | 95 % interval | accuracy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        trained = "+".join(run["config"]["corpus"]) or "+".join(sorted(run["per_corpus"]))
        pooled = {"all": run} if len(run["per_corpus"]) > 1 else {}
        for corpus, scores in {**pooled, **run["per_corpus"]}.items():
            cells = [model(run), name(run), trained, corpus, scores["num_test"]]
            cells += [percent(scores["uar"]), between(scores["interval"]["uar"]), percent(scores["accuracy"])]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def ablation(figures: dict[str, Any]) -> str:
    """Return the table of what each part of the network and its training is worth."""
    columns = {"best UAR": "best epoch", "last UAR": "last epoch"}
    columns |= {name: name for name in figures["rows"][0] if name not in ("taken away", "epoch", *columns)}
    pool = " Those of single corpora and their mean are of the best epoch." if len(columns) > 2 else ""
    lines = [
        f"### {', '.join(figures['corpora'])}\n",
        f"Taken away in turn, {figures['protocol']} fold {figures['fold']}, {figures['epochs']} epochs: UAR on "
        f"validation speakers; the tested ones were not read.{pool} One seed each, and few speakers: differences of a "
        "few points may be chance.\n",
        f"```bash\n{figures['command']}\n```\n",
        f"| taken away | {' | '.join(columns.values())} |",
        "|---" * (1 + len(columns)) + "|",
        *(f"| {row['taken away']} | {' | '.join(percent(row[c]) for c in columns)} |" for row in figures["rows"]),
    ]
    return "\n".join(lines) + "\n"


def known_clips(figures: dict[str, Any]) -> str:
    """Return the table of what normalization by speaker is worth with few clips of each."""
    columns = [name for name in figures["rows"][0] if name != "clips of the speaker"]
    which = "all folds" if figures["fold"] == "all" else f"fold {figures['fold']}"
    lines = [
        f"### {', '.join(figures['corpora'])}\n",
        f"The clips tested by a run of {figures['protocol']}, {which}; UAR.\n",
        f"```bash\n{figures['command']}\n```\n",
        f"| clips known of a speaker | {' | '.join(columns)} |",
        "|---" * (1 + len(columns)) + "|",
        *(
            f"| {row['clips of the speaker']} | {' | '.join(percent(row[c]) for c in columns)} |"
            for row in figures["rows"]
        ),
    ]
    return "\n".join(lines) + "\n"


def section(run: dict[str, Any]) -> str:
    """Return what is to be known of one run."""
    corpora = "+".join(run["config"]["corpus"]) or "pooled"
    lines = [f"### {model(run)}, {name(run)}, {corpora}", ""]
    lines += ["```bash", run["command"], "```", ""]
    if "folds" in run:
        mean, std = run["mean"], run["std"]
        lines.append(
            f"Over {len(run['folds'])} folds: UAR {percent(mean['uar'])} ± {percent(std['uar'])}, accuracy "
            f"{percent(mean['accuracy'])} ± {percent(std['accuracy'])} (mean ± standard deviation). Of each fold, UAR: "
            + ", ".join(percent(fold["uar"]) for fold in run["folds"])
            + "."
        )
    shared = run["leaks"]["train_test"]
    lines.append(
        f"Shared between training and test: {shared['speakers']} speakers, {shared['utterances']} clips (as augmented "
        f"siblings), {shared['sentences']} sentences."
    )
    lines += [
        "",
        "| true \\ predicted | " + " | ".join(run["labels"]) + " | recall |",
        "|---" * (len(run["labels"]) + 2) + "|",
    ]
    for label, row in zip(run["labels"], run["confusion_matrix"], strict=True):
        recall = percent(run["per_class"][label]["recall"])
        lines.append(f"| {label} | " + " | ".join(map(str, row)) + f" | {recall} |")
    versions = ", ".join(f"{package} {version}" for package, version in run["versions"].items())
    lines += ["", f"Versions: {versions}. Training took {run['timing']['train_s'] / 60:.0f} minutes.", ""]
    return "\n".join(lines)


def model(run: dict[str, Any]) -> str:
    """Return the model, how many of it answer together, and how they were trained where that is not as usual."""
    members = run["config"].get("members", 1)  # older runs have one
    several = f" × {members}" if members > 1 else ""
    kinds = ("by speaker", has_speaker_norm(run)), ("masks", has_masks(run)), ("started", has_start(run))
    return ", ".join([run["config"]["model"]["model"] + several, *(word for word, true in kinds if true)])


def name(run: dict[str, Any]) -> str:
    """Return the protocol, marked where it leaks, and the fold."""
    leaky = " (LEAKY)" if is_leaky(run) else ""
    fold = f"all {len(run['folds'])} folds" if run["fold"] == "all" else f"fold {run['fold']}"
    return f"{run['protocol']}{leaky}, {fold}"


def command(run: dict[str, Any]) -> str:
    """Return the command of a run, with its model."""
    said = without_places(run["command"])
    if "--model" not in said:  # the default may have been another one then
        said += f" --model {run['config']['model']['model']}"
    return said


def without_places(command: str) -> str:
    """Return a command without the places of the machine that it ran on."""
    words = shlex.split(command)
    kept, skip = [*words[:2], "--data", "CORPORA"], False
    for word in words[2:]:
        if word.startswith("--"):
            skip = word in ("--data", "--store", "--output", "--json")
        if not skip:
            kept.append(word)
    return shlex.join(kept)


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def between(interval: list[float] | None) -> str:
    return f"{percent(interval[0])} to {percent(interval[1])}" if interval else "–"


if __name__ == "__main__":
    run_job(main)
