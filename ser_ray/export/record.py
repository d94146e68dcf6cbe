"""What an exported file says of itself: labels, rate, scores, whom it was trained on, and its proof."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

from ser_ray import __version__
from ser_ray.base import storage
from ser_ray.export.proof import Proof
from ser_ray.features.spec import write_features
from ser_ray.model.together import Together

SHORTEST_S = 0.1  # What is shorter is no speech.
_TOLD = (
    *("protocol", "fold", "description", "num_test", "uar", "accuracy", "macro_f1", "interval"),
    *("per_corpus", "mean", "std", "notes"),
)
_OF_A_CORPUS = ("num_test", "uar", "accuracy", "macro_f1", "interval")


def describe_models(together: Together) -> dict[str, Any]:
    """Return what is known of some models that answer together, as JSON can hold it, by name."""
    models = together.models
    speakers = sorted({speaker for model in models for speaker in model.trained_on})
    scores = [
        _read_scores(root) or _tell(own[0].facts) for root, own in zip(together.roots, together.runs, strict=True)
    ]
    notes = [note for each in scores for note in each.pop("notes", [])]
    if len(models) > 1:
        why = f" ({together.weighing.why})" if len(together.runs) > 1 else ""
        notes.append(
            f"{len(models)} models answer together here, by the mean of their log-probabilities{why}; the scores are "
            "those of each run alone, on speakers that the model which answered was not trained on."
        )
    return {
        "ser_ray": __version__,
        "labels": list(together.labels.names),
        "features": [write_features(kind) for kind in together.features],
        "networks": [model.network.name for model in models],
        "models": list(together.digests),
        "weights": together.weights,
        "shortest_s": SHORTEST_S,
        "longest_s": together.features[0].duration_s,
        "corpora": sorted({corpus for model in models for corpus in model.trained_corpora}),
        "num_speakers": len(speakers),
        "speakers_sha256": hashlib.sha256("\n".join(speakers).encode()).hexdigest(),
        "scores": scores,
        "made_speech": together.made_speech,
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
