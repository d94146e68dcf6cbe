"""The model card: a page for people, with metadata that the Hugging Face hub understands.

It is made of what `config.json` holds, so that a card can be written again for a model of any age.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import yaml

from ser_ray.model.domain import describe_domain, read_domain

MANY = 0.1  # A confusion of so many clips of an emotion is told in words.
AI_ACT = "https://eur-lex.europa.eu/eli/reg/2024/1689/oj"


class Published(NamedTuple):
    """A published corpus: what it is called, what is spoken, where it is, under which licence."""

    title: str
    language: str
    speech: str
    licence: str
    source: str


CORPORA = {
    "ravdess": Published(
        "RAVDESS", "en", "acted, North American", "CC BY-NC-SA 4.0", "https://zenodo.org/records/1188976"
    ),
    "crema_d": Published(
        "CREMA-D", "en", "acted, North American", "ODbL 1.0", "https://github.com/CheyneyComputerScience/CREMA-D"
    ),
    "tess": Published("TESS", "en", "acted, Canadian", "CC BY-NC-ND 4.0", "https://doi.org/10.5683/SP2/E8H2MF"),
    "savee": Published(
        "SAVEE", "en", "acted, British", "for research only, on registration", "http://kahlan.eps.surrey.ac.uk/savee/"
    ),
}
LANGUAGES = {"en": "English"}
EXAMPLE = """\
import json, numpy as np, onnxruntime, soundfile
session = onnxruntime.InferenceSession("model.onnx")
facts = session.get_modelmeta().custom_metadata_map
labels, rate = json.loads(facts["labels"]), json.loads(facts["sample_rate"])
sound_TC, sound_rate = soundfile.read("clip.wav", dtype="float32", always_2d=True)
assert sound_rate == rate, f"clip.wav has {sound_rate} Hz: export with --input-rate {sound_rate}"
sound_T = sound_TC.mean(axis=1)
inputs = {"waveform": sound_T[None], "lengths": np.array([len(sound_T)])}
(probabilities,), _ = session.run(["probabilities", "logits"], inputs)
print({label: round(float(p), 3) for label, p in zip(labels, probabilities)})
"""


def model_card(config: dict[str, Any], corpora: Sequence[str], origin: str = "") -> str:
    """Return the card of a model.

    Args:
        config: Content of `config.json`.
        corpora: What it was trained on, by name.
        origin: Which encoder makes its features, in words; empty where none does.
    """
    facts, labels = config["facts"], config["labels"]["names"]
    made = bool(facts.get("made_speech"))
    metadata = yaml.safe_dump(_metadata(config, corpora), sort_keys=False, allow_unicode=True, width=120)
    parts = [
        f"---\n{metadata}---\n\n# {config['network']['model']}: emotions in speech\n",
        *(f"**{note}**\n" for note in facts.get("notes", ())),
        f"It hears speech and tells apart: {', '.join(labels)}.\n",
        *_who(config, origin),
        "## How it was tested\n",
        *_scores(facts),
        *_confusions(facts, labels),
        "## What it was trained on\n",
        *_domain(facts, corpora, made),
        *describe_domain(read_domain(config["domain"])),
        "",
        "Scores on other voices, languages, rooms and microphones are lower, and on emotions that are felt rather",
        "than acted nothing is known. Its training corpora carry their own licences, most of them for research.\n",
        "## What it must not be used for\n",
        "It hears how somebody speaks, not what somebody feels: acted emotions, as actors show them on request. It",
        "must not be used to judge people, nor to decide anything about them. In the European Union, AI systems that",
        "infer emotions of people at the workplace or in education institutions are prohibited, but for medical or",
        f"safety reasons: [Regulation (EU) 2024/1689]({AI_ACT}), Article 5 (1) (f).\n",
        "## How to run it\n",
        "With ser_ray, for recordings of any length, window by window:\n",
        "```bash\nser-ray predict --run MODEL --input recording.wav --output answers\n```\n",
        "Without it, from the file that `ser-ray export --run MODEL --output model.onnx` writes, by",
        "onnxruntime, soundfile and numpy alone:\n",
        f"```python\n{EXAMPLE}```\n",
    ]
    return "\n".join(parts)


def _metadata(config: dict[str, Any], corpora: Sequence[str]) -> dict[str, Any]:
    """Return what the hub reads (huggingface.co/docs/hub/model-cards)."""
    facts, known = config["facts"], [CORPORA[name] for name in corpora if name in CORPORA]
    languages = sorted({corpus.language for corpus in known})
    name = config["network"]["model"]
    metadata = {
        **({"language": languages} if languages and not facts.get("made_speech") else {}),
        "license": "other",
        "license_name": "as-its-corpora",
        "library_name": "ser_ray",
        "pipeline_tag": "audio-classification",
        "tags": ["speech-emotion-recognition", "audio-classification", "emotion", name],
        **({"datasets": list(corpora)} if corpora else {}),
        "metrics": ["recall", "accuracy"],
    }
    if "uar" in facts:
        protocol = _protocol(facts)
        metrics = [
            {"type": "recall", "name": f"Unweighted average recall, {protocol}", "value": round(facts["uar"], 4)},
            {"type": "accuracy", "name": f"Accuracy, {protocol}", "value": round(facts["accuracy"], 4)},
        ]
        task = {"type": "audio-classification", "name": "Speech emotion recognition"}
        tested = "+".join(facts.get("per_corpus", {})) or "+".join(corpora) or "unknown"
        metadata["model-index"] = [
            {
                "name": name,
                "results": [{"task": task, "dataset": {"type": tested, "name": tested}, "metrics": metrics}],
            }
        ]
    return metadata


def _who(config: dict[str, Any], origin: str) -> Iterator[str]:
    features = config["features"]
    several = f": {config['members']} of them, which answer by their mean" if config["members"] > 1 else ""
    yield f"- network: {config['network']['model']}{several}"
    yield f"- features: {features['kind']}, from sound at {features['sample_rate']} Hz"
    if origin:
        yield f"- encoder: {origin}"
    if config["speaker_norm"]:
        yield "- it normalizes by speaker: best where many clips of each are known, of mixed emotions"
    for name, value in config["facts"].get("versions", {}).items():
        yield f"- {name} {value}"
    yield ""


def _protocol(facts: dict[str, Any]) -> str:
    fold = facts.get("fold")
    return f"{facts.get('protocol', 'protocol unknown')}{'' if fold is None else f' (fold {fold})'}"


def _scores(facts: dict[str, Any]) -> Iterator[str]:
    if "uar" not in facts:
        yield "Nothing is known of its scores.\n"
        return
    yield f"Protocol: {_protocol(facts)}. {facts.get('description', '')}\n"
    yield "UAR is the unweighted average recall: the mean, over emotions, of the share that is recognized. Intervals"
    yield "are of 95 %, by a bootstrap over speakers.\n"
    yield "| tested on | clips | UAR | accuracy |\n|---|---|---|---|"
    for name, scores in {"all": facts, **facts.get("per_corpus", {})}.items():
        cells = (f"{scores[each]:.1%}{_interval(scores, each)}" for each in ("uar", "accuracy"))
        yield f"| {name} | {scores['num_test']} | {' | '.join(cells)} |"
    yield ""


def _interval(scores: dict[str, Any], name: str) -> str:
    bounds = scores.get("interval", {}).get(name)
    return f" ({bounds[0]:.1%} to {bounds[1]:.1%})" if bounds else ""


def _confusions(facts: dict[str, Any], labels: Sequence[str]) -> Iterator[str]:
    """Say in words what is taken for what."""
    for label, row in zip(labels, facts.get("confusion_matrix", ()), strict=False):
        total = sum(row)
        if not total:
            continue
        own = row[labels.index(label)] / total
        shares = sorted(((count / total, other) for other, count in zip(labels, row, strict=True) if other != label))
        told = [f"for {other} in {share:.0%}" for share, other in reversed(shares) if share >= MANY]
        taken = f"; it is taken {', '.join(told)}" if told else ""
        yield f"- {label} is recognized in {own:.0%} of {total} clips{taken}"
    yield ""


def _domain(facts: dict[str, Any], corpora: Sequence[str], made: bool) -> Iterator[str]:
    if made:
        yield "Made speech, among others or alone: sound that a program writes, in which nobody speaks.\n"
    if corpora:
        yield "| corpus | language | speech | licence |\n|---|---|---|---|"
        for name in corpora:
            if corpus := CORPORA.get(name):
                title, language = f"[{corpus.title}]({corpus.source})", LANGUAGES[corpus.language]
                yield f"| {title} | {language} | {corpus.speech} | {corpus.licence} |"
            else:
                yield f"| {name} | unknown here | unknown here | its own |"
        yield ""
    if rates := facts.get("sample_rates"):
        yield f"Clips were recorded at {', '.join(map(str, rates))} Hz.\n"
