"""What an exported file says of itself: labels, rate, scores, whom it was trained on, and its proof."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pyarrow.fs import FileType

from ser_ray import __version__
from ser_ray.base import storage
from ser_ray.export.proof import Proof
from ser_ray.features.spec import write_features
from ser_ray.model.files import digest_model
from ser_ray.model.model import Model

SHORTEST_S = 0.1  # What is shorter is no speech.
_TOLD = (
    *("protocol", "fold", "description", "num_test", "uar", "accuracy", "macro_f1", "interval"),
    *("per_corpus", "mean", "std", "notes"),
)
_OF_A_CORPUS = ("num_test", "uar", "accuracy", "macro_f1", "interval")


def find_models(runs: Sequence[str]) -> list[str]:
    """Return the folders of the models of some runs; a cross-validated one has one for each of its folds."""
    roots = []
    for run in map(storage.normalize, runs):
        folds = [name for name in storage.list_names(run, FileType.Directory) if name.startswith("fold-")]
        inner = [storage.join(run, name) for name in sorted(folds, key=lambda name: (len(name), name))]
        is_model = any(storage.exists(storage.join(run, *path, "config.json")) for path in (["model"], []))
        roots += [run] if is_model or not inner else inner
    return roots


def describe_models(runs: Sequence[str], roots: Sequence[str], models: Sequence[Model]) -> dict[str, Any]:
    """Return what is known of some models that answer together.

    Args:
        runs: What was asked for.
        roots: Its models' folders, as `find_models` gives them.
        models: The models themselves.

    Returns:
        What JSON can hold, by name.
    """
    first = models[0]
    speakers = sorted({speaker for model in models for speaker in model.trained_on})
    scores = [_read_scores(storage.normalize(run)) for run in runs] if len(runs) < len(roots) else []
    scores = [each or _tell(model.facts) for each, model in zip(scores, models, strict=False)] or [
        _read_scores(root) or _tell(model.facts) for root, model in zip(roots, models, strict=True)
    ]
    notes = [note for each in scores for note in each.pop("notes", [])]
    if len(models) > 1:
        notes.append(
            f"{len(models)} models answer together here, by the mean of their log-probabilities; the scores are those "
            "of each alone, on speakers that it was not trained on."
        )
    return {
        "ser_ray": __version__,
        "labels": list(first.labels.names),
        "features": write_features(first.features),
        "networks": [model.network.name for model in models],
        "models": [digest_model(root) for root in roots],
        "shortest_s": SHORTEST_S,
        "longest_s": first.features.duration_s,
        "corpora": sorted({corpus for model in models for corpus in model.trained_corpora}),
        "num_speakers": len(speakers),
        "speakers_sha256": hashlib.sha256("\n".join(speakers).encode()).hexdigest(),
        "scores": scores,
        "made_speech": any(model.made_speech for model in models),
        "notes": list(dict.fromkeys(notes)),
    }


def describe_proof(proof: Proof) -> dict[str, Any]:
    """Return a proof as JSON holds it."""
    return asdict(proof)


def _read_scores(root: str) -> dict[str, Any]:
    """Return what a run's `metrics.json` tells of its scores; nothing where there is none."""
    path = storage.join(root, "metrics.json")
    return _tell(storage.read_json(path)) if storage.exists(path) else {}


def _tell(content: dict[str, Any]) -> dict[str, Any]:
    told = {name: content[name] for name in _TOLD if name in content}
    if "per_corpus" in told:
        told["per_corpus"] = {
            corpus: {name: scores[name] for name in _OF_A_CORPUS if name in scores}
            for corpus, scores in told["per_corpus"].items()
        }
    return told
