"""What the terminal shows of epochs and scores."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from ser_ray.base.console import say, show_table


def show_epoch(epoch: dict[str, Any], epochs: int) -> None:
    """Print one line for an epoch that ended."""
    fold = "".join(f"{name} {epoch[name]}  " for name in ("fold", "member") if name in epoch)
    workers = f"{epoch['num_workers']} workers on {epoch['nodes']} nodes  " if epoch.get("nodes", 1) > 1 else ""
    left = timedelta(seconds=round((epochs - epoch["epoch"]) * epoch["seconds"]))
    validation = ""
    if "validation_loss" in epoch:
        validation = (
            f"validation: loss {epoch['validation_loss']:.3f}, accuracy {epoch['validation_accuracy']:.1%}, "
            f"UAR {epoch['validation_uar']:.1%}  "
        )
    say(
        f"{fold}epoch {epoch['epoch']:3}/{epochs}  loss {epoch['train_loss']:.3f}  {validation}"
        f"{workers}{epoch['clips_per_s']:.0f} clips/s  at most {left} left"
    )


def show_scores(scores: dict[str, Any]) -> None:
    """Print headline, folds, per corpus, classification report and confusion matrix."""
    say(headline(scores))
    names = ("num_test", "uar", "accuracy", "macro_f1")
    if "folds" in scores:
        show_table("Folds", [{"fold": str(i), **{n: s[n] for n in names}} for i, s in enumerate(scores["folds"])])
    per_corpus = [{"corpus": corpus, **{n: s[n] for n in names}} for corpus, s in scores["per_corpus"].items()]
    if "together" in scores:
        show_table("Together", [_row_of(run) for run in scores["together"]["runs"]])
    show_table("Per corpus", per_corpus)
    show_table("Classification report", [{"emotion": emotion, **s} for emotion, s in scores["per_class"].items()])
    labels = scores["labels"]
    matrix = [
        {"true": label, **dict(zip(labels, row, strict=True))}
        for label, row in zip(labels, scores["confusion_matrix"], strict=True)
    ]
    show_table("Confusion matrix (columns: predicted)", matrix)
    for note in scores["notes"]:
        say(note)


def headline(scores: dict[str, Any]) -> str:
    """Return the scores in one line."""
    text = (
        f"UAR {scores['uar']:.1%}{_between(scores['interval']['uar'])}, accuracy {scores['accuracy']:.1%}, "
        f"macro-F1 {scores['macro_f1']:.1%} on {scores['num_test']} clips"
    )
    if "folds" in scores:
        text += f"; over folds: UAR {scores['mean']['uar']:.1%} ± {scores['std']['uar']:.1%}"
    if scores.get("protocol") == "notebook":
        return f"LEAKY protocol: {text}"
    return f"LEAKY encoder: {text}" if "encoder" in scores.get("leaks", {}) else text


def _row_of(run: dict[str, Any]) -> dict[str, Any]:
    """Return what a run is worth alone and what the others add to it, as a row on the screen."""
    uar, interval = run["uar"], run["uar"]["interval"]
    between = f"{interval[0]:+.1%} to {interval[1]:+.1%}" if interval else "–"
    gain = {"together": f"{uar['difference']:+.1%}", "95 % interval": between}
    return {"run": run["run"], "weight": run["weight"], "uar": uar["a"], **gain}


def _between(interval: Sequence[float] | None) -> str:
    return f" (95 % interval by speaker {interval[0]:.1%} to {interval[1]:.1%})" if interval else ""
