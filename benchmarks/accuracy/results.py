"""Write `docs/results.md`, and a page of each run, from the `metrics.json` files of finished runs.

    python benchmarks/accuracy/results.py --runs runs/crema_d runs/emobox --tables ablation.json speaker_norm.json

What the pages need of each run is kept in `docs/results/`, so that runs may come from several machines and days: the
same experiment done again takes the place of its older run. Without flags the pages are written again from what is
kept. Their words stand in the templates beside this file, `*.md.jinja`; numbers come from runs alone.
"""

from __future__ import annotations

import base64
import os
import shlex
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ser_ray.base import storage
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.base.settings import parse_flags, run_job
from ser_ray.scores.report import charts
from ser_ray.scores.run_folder import read_run

ABLATION, KNOWN = "ablation-", "known-"  # how names of their files begin, beside those of the runs
SPEAKER_NORM = "python benchmarks/accuracy/speaker_norm.py --run RUN --store STORE"
SHOWN = "log-mel-resnet-x3-emobox-ravdess-fold-all"  # whose confusion matrix is drawn
HERE = os.path.dirname(os.path.abspath(__file__))


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
    write_pages(values["output"], folder)


def write_pages(page: str, folder: str) -> None:
    """Write the page of all runs, and a page for each file of figures.

    Args:
        page: Path of the page of all.
        folder: Where the figures are, and their pages are to be.

    Raises:
        UserError: There are no figures.
    """
    names = [name.removesuffix(".json") for name in storage.list_names(folder) if name.endswith(".json")]
    files = {name: storage.read_json(storage.join(folder, f"{name}.json")) for name in names}
    runs = {name: run for name, run in files.items() if not name.startswith((ABLATION, KNOWN))}
    if not runs:
        raise UserError("--runs is missing: name the folders of finished runs")
    runs = dict(sorted(runs.items(), key=lambda item: rank(item[1])))
    templates = Environment(
        loader=FileSystemLoader(HERE),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,
    )
    templates.filters |= {"percent": percent, "between": between}
    for function in (model, protocol, trained_on, tested_on, minutes):
        templates.globals[function.__name__] = function
    for name, figures_ in files.items():
        kind = next((kind for kind in (ABLATION, KNOWN) if name.startswith(kind)), "run-").removesuffix("-")
        text = templates.get_template(f"{kind}.md.jinja").render(one=figures_)
        storage.write_text(storage.join(folder, f"{name}.md"), text)
    tables = {kind: [name for name in names if name.startswith(kind)] for kind in (ABLATION, KNOWN)}
    text = templates.get_template("results.md.jinja").render(
        runs=runs, ablations={name: files[name] for name in tables[ABLATION]}, known=tables[KNOWN], files=files
    )
    storage.write_text(page, text)
    shown = runs[SHOWN] if SHOWN in runs else next(iter(runs.values()))
    _, _, data = charts.confusion(shown["confusion_matrix"], shown["labels"], True).source.partition(",")
    storage.write(storage.join(folder, "confusion.svg"), lambda stream: stream.write(base64.b64decode(data)))
    say(f"{page}: {len(runs)} runs")


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
    members = [f"x{config['members']}"] if config.get("members", 1) > 1 else []  # older runs have one
    name = [config["model"]["model"], *members, *kind]
    words = [*name, run["protocol"], *config["corpus"], *labels, f"fold-{run['fold']}"]
    return "-".join(map(str, words)).replace("_", "-").replace("=", "-").replace(", ", "-")


def rank(run: dict[str, Any]) -> tuple[Any, ...]:
    """Sort ours before the notebook's, honest protocols before the leaky one, single corpora before pools."""
    corpora = run["config"]["corpus"]
    return run["config"]["model"]["model"] == "cnn1d", is_leaky(run), not corpora, *corpora, run["protocol"]


def is_leaky(run: dict[str, Any]) -> bool:
    """Tell whether a run's protocol leaks."""
    return run["protocol"] == "notebook"


def has_speaker_norm(run: dict[str, Any]) -> bool:
    """Tell whether spectra were normalized by speaker."""
    return run["config"]["model"].get("speaker_norm", False)  # older runs do not say


def has_masks(run: dict[str, Any]) -> bool:
    """Tell whether a network on log-mel frames was trained with masks (SpecAugment)."""
    return run["config"]["model"]["model"] == "log_mel_resnet" and run["config"]["frame_augment"]["mask_s"] > 0


def has_start(run: dict[str, Any]) -> bool:
    """Tell whether training started from another run's network."""
    return bool(run["config"].get("start_from"))  # older runs do not say


def tested_on(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the scores of a run by what was tested: of all corpora together, where there are several, and of each."""
    pooled = {"all": run} if len(run["per_corpus"]) > 1 else {}
    return {**pooled, **run["per_corpus"]}


def trained_on(run: dict[str, Any]) -> str:
    """Return the corpora of a run."""
    return "+".join(run["config"]["corpus"]) or "+".join(sorted(run["per_corpus"]))


def minutes(run: dict[str, Any]) -> str:
    """Return how long training took."""
    return f"{run['timing']['train_s'] / 60:.0f}"


def model(run: dict[str, Any]) -> str:
    """Return the model, how many of it answer together, and how they were trained where that is not as usual."""
    members = run["config"].get("members", 1)  # older runs have one
    several = f" × {members}" if members > 1 else ""
    kinds = ("by speaker", has_speaker_norm(run)), ("masks", has_masks(run)), ("started", has_start(run))
    return ", ".join([run["config"]["model"]["model"] + several, *(word for word, true in kinds if true)])


def protocol(run: dict[str, Any]) -> str:
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
            kept.append(os.path.basename(word.rstrip("/")))  # of an encoder's folder its name
    return shlex.join(kept)


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def between(interval: list[float] | None) -> str:
    return f"{percent(interval[0])} to {percent(interval[1])}" if interval else "–"


if __name__ == "__main__":
    run_job(main)
