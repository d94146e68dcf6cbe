"""What a run leaves behind, in its folder and on the terminal.

RUN/run.json               what was asked for; the run's identity
RUN/checkpoints/           Ray Train's, the last and the best; with several members under member-K/
RUN/model/                 the bundle
RUN/fold-K/                with `--fold all`: a run for each fold
RUN/predictions.parquet    one row per tested clip
RUN/history.csv            one row per epoch
RUN/report.html            the page for people
RUN/metrics.json           written last: a run that has it is finished
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileType

from ser_ray import __version__
from ser_ray.base import storage
from ser_ray.base.console import say, show_table
from ser_ray.base.errors import UserError
from ser_ray.scores import metrics, report
from ser_ray.store.store import Store, differences

MADE_SPEECH = "These scores are for made speech: they show that everything runs, and say nothing about people."
_VERSIONED = ("ray", "torch", "numpy", "scikit-learn", "librosa", "pyarrow")


def fresh_root(what: str) -> str:
    """Return a name for a new run: `runs/<date>-<time>-<what>`."""
    return f"runs/{datetime.now():%Y%m%d-%H%M%S}-{what}"


def is_finished(run_root: str) -> bool:
    """Tell whether a run has its metrics, which are written last."""
    return storage.exists(storage.join(run_root, "metrics.json"))


def refuse_finished(run_root: str) -> None:
    """Refuse to overwrite a finished run.

    Raises:
        UserError: The run has its metrics.
    """
    if is_finished(run_root):
        raise UserError(f"{run_root} holds a finished run; choose another --output")


def claim(run_root: str, identity: dict[str, Any], command: str) -> None:
    """Note what a run is for, or check that an unfinished one is for the same.

    Raises:
        UserError: The folder holds a run of other settings; the message names them.
    """
    path = storage.join(run_root, "run.json")
    if storage.exists(path):
        changed = differences(storage.read_json(path)["identity"], identity)
        if changed:
            raise UserError(
                f"{run_root} holds an unfinished run with other settings ({changed}); choose another --output"
            )
        say(f"Going on with the unfinished run {run_root}")
    storage.write_json(path, {"identity": identity, "command": command})


def read_run(run_root: str) -> tuple[dict[str, Any], pa.Table]:
    """Return the metrics and the predictions of a finished run, or of the folds that an unfinished one has finished.

    Raises:
        UserError: Nothing there is finished.
    """
    if is_finished(run_root):
        files, inner = storage.filesystem(storage.join(run_root, "predictions.parquet"))
        return storage.read_json(storage.join(run_root, "metrics.json")), pq.read_table(inner, filesystem=files)
    names = [name for name in storage.list_names(run_root, FileType.Directory) if name.startswith("fold-")]
    folds = [read_run(root) for root in (storage.join(run_root, name) for name in names) if is_finished(root)]
    if not folds:
        raise UserError(f"{run_root} holds no finished run (metrics.json is missing)")
    if len(folds) == 1:
        return folds[0]
    first, tables = folds[0][0], [table for _, table in folds]
    scores = first | metrics.pool(tables, first["labels"], seed=first["config"]["train"]["seed"])
    scores["fold"] = ", ".join(str(each["fold"]) for each, _ in folds)
    scores["notes"] = [f"Folds {scores['fold']} of a cross-validation that is not finished.", *first["notes"]]
    scores["timing"] = {"train_s": sum(each["timing"]["train_s"] for each, _ in folds)}
    return scores, pa.concat_tables(tables)


def write_run(
    run_root: str,
    store: Store,
    scores: dict[str, Any],
    predictions: pa.Table,
    history: Sequence[dict[str, Any]] = (),
    embed_audio: bool = False,
) -> None:
    """Write predictions, history, report and, last, metrics.

    Args:
        run_root: The run's folder or URI.
        store: Where the clips came from.
        scores: The content of `metrics.json`.
        predictions: One row per tested clip, with a column `path` for the report.
        history: One dict per epoch; empty where nothing was trained.
        embed_audio: Put the sounds of the worst mistakes into the report.
    """
    if history:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)
        storage.write_text(storage.join(run_root, "history.csv"), text.getvalue())
    table = predictions.drop_columns("path")
    storage.write(storage.join(run_root, "predictions.parquet"), lambda stream: pq.write_table(table, stream))
    page = report.run_page(
        title=run_root.rsplit("/", 1)[-1],
        metrics=scores,
        predictions=predictions,
        history=history,
        audit=store.info()["audit"],
        rejects=[asdict(reject) for reject in store.rejects()],
        command=scores["command"],
        embed_audio=embed_audio,
    )
    storage.write_text(storage.join(run_root, "report.html"), page)
    storage.write_json(storage.join(run_root, "metrics.json"), scores)


def versions() -> dict[str, str]:
    """Return the versions of ser_ray and of what its scores depend on."""
    return {"ser_ray": __version__, **{name: version(name) for name in _VERSIONED}}


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
    return f"LEAKY protocol: {text}" if scores.get("protocol") == "notebook" else text


def _between(interval: Sequence[float] | None) -> str:
    return f" (95 % interval by speaker {interval[0]:.1%} to {interval[1]:.1%})" if interval else ""
