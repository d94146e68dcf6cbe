"""Puts a page together: facts and pictures into a template, everything escaped, nothing fetched."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import pyarrow as pa
import pyarrow.compute as pc

from ser_ray.base.storage import is_uri
from ser_ray.scores.report import charts, search, sound

MOST_WRONG = 12  # clips shown
MOST_ROWS = 200  # of a table; a longer one says how many are left out

LOSSES = {"train_loss": "training", "validation_loss": "validation"}
VALIDATION = {"validation_accuracy": "accuracy", "validation_uar": "UAR"}
LEAKY = "LEAKY: tested clips have relatives among the training clips, so these scores say little about new recordings."


class Corpora(NamedTuple):
    """What was found where a run's clips came from.

    Attributes:
        audit: Rows of the corpus audit table.
        rejects: Rows with `path` and `reason`.
    """

    audit: Sequence[Mapping[str, Any]]
    rejects: Sequence[Mapping[str, Any]]


def run_page(
    *,
    title: str,
    metrics: Mapping[str, Any],
    predictions: pa.Table,
    history: Sequence[Mapping[str, Any]],
    corpora: Corpora,
    embed_audio: bool = False,
) -> str:
    """Write the report of a run, of an evaluation, or (where the metrics hold `folds`) of a cross-validation.

    Args:
        title: Name of the run.
        metrics: The content of `metrics.json`, as `scores.Scores` makes it.
        predictions: One row per tested clip; with a column `path`, the sounds of the clips are looked up.
        history: One row per epoch: `epoch train_loss validation_loss validation_accuracy validation_uar
            learning_rate`, and `member` of several; empty where nothing was trained.
        corpora: What was found where the clips came from.
        embed_audio: Put the sounds of the clips that are shown into the page. Most corpora may not be passed on.

    Returns:
        One HTML document that needs no network.
    """
    best = metrics.get("best_epoch")
    pictures = {
        "counts": charts.confusion(metrics["confusion_matrix"], metrics["labels"], False),
        "shares": charts.confusion(metrics["confusion_matrix"], metrics["labels"], True),
        "corpora": charts.corpora(metrics["per_corpus"], len(metrics["labels"])),
        "speakers": charts.speakers(metrics["per_speaker"], _corpus_of_speaker(predictions)),
        "reliability": charts.reliability(metrics["calibration"]),
        "coverage": charts.coverage(metrics["coverage"]),
        "loss": charts.learning_curves(history, LOSSES, "loss (cross-entropy)", best) if history else None,
        "validation": charts.learning_curves(history, VALIDATION, "validation score", best) if history else None,
    }
    return _render(
        "run.html.jinja",
        title=title,
        **_warnings(metrics),
        metrics=metrics,
        pictures=pictures,
        speakers=sorted(metrics["per_speaker"].items(), key=lambda item: item[1]["uar"]),
        leak_rows=_leak_rows(metrics.get("leaks", {})),
        audit=corpora.audit,
        rejects=corpora.rejects,
        mistakes=_most_wrong(predictions, embed_audio),
        embed_audio=embed_audio,
        command=metrics["command"],
    )


def comparison_page(
    *,
    title: str,
    comparison: Mapping[str, Any],
    names: tuple[str, str],
    metrics: tuple[Mapping[str, Any], Mapping[str, Any]],
    command: str,
) -> str:
    """Write the report of two runs compared.

    Args:
        title: Heading of the page.
        comparison: What `metrics.compare` gives.
        names: Names of the first and the second run.
        metrics: Contents of their `metrics.json`.
        command: The exact command line that does it again.

    Returns:
        One HTML document that needs no network.
    """
    return _render(
        "comparison.html.jinja",
        title=title,
        **_warnings(*metrics),
        comparison=comparison,
        runs=list(zip(names, metrics, strict=True)),
        picture=charts.difference(comparison),
        command=command,
    )


def search_page(
    *, title: str, trials: Sequence[Mapping[str, Any]], space: Mapping[str, Any], best: Mapping[str, Any], command: str
) -> str:
    """Write the report of a hyperparameter search.

    Args:
        title: Name of the search.
        trials: The trials that ended, in that order: `trial values curve status error began ended`.
        space: What was searched, by flag.
        best: The best of the trials.
        command: The exact command line that does it again.

    Returns:
        One HTML document that needs no network.
    """
    scored = [trial for trial in trials if trial["curve"]]
    rows = sorted(scored, key=lambda trial: -trial["curve"][-1])
    return _render(
        "search.html.jinja",
        title=title,
        **_warnings(),
        trials=trials,
        best=best,
        pictures={
            "progress": search.progress(scored),
            "curves": search.curves(scored),
            "importances": search.importances(scored, list(space)) if len(scored) >= search.FEWEST else None,
            "coordinates": search.coordinates(scored, list(space)),
        },
        rows=[
            {"UAR": _percent(t["curve"][-1]), "epochs": len(t["curve"]), "status": t["status"], **t["values"]}
            for t in rows
        ],
        failed=[{"trial": t["trial"], "error": t["error"], **t["values"]} for t in trials if t["status"] == "failed"],
        fewest=search.FEWEST,
        command=command,
    )


def _render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(__file__)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "interval": _interval, "flat": _flat, "said": _said}
    environment.globals["most_rows"] = MOST_ROWS
    return environment.get_template(template).render(values)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"


def _interval(ends: Sequence[float]) -> str:
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}\u00a0%"


def _said(value: Any) -> str:
    """Say a value of a table as people write it."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(str(_said(each)) for each in value) or "–"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Lay nested facts out as rows, `outer.inner` and the value."""
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return rows


def _warnings(*runs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands above the scores: whether any run is leaky, and the notes of all, each once."""
    leaky = [LEAKY for metrics in runs if metrics.get("protocol") == "notebook"]
    leaky += [f"LEAKY: {m['leaks']['encoder']}" for m in runs if "encoder" in m.get("leaks", {})]
    return {
        "leaky": leaky[0] if leaky else "",
        "notes": list(dict.fromkeys(n for m in runs for n in m.get("notes", ()))),
    }


def _leak_rows(leaks: Mapping[str, Any]) -> list[dict]:
    """Return a row for each pair of parts, with its counts."""
    pairs = ((name, counts) for name, counts in leaks.items() if isinstance(counts, Mapping))
    return [{"shared between": name.replace("_", " and "), **counts} for name, counts in pairs]


def _corpus_of_speaker(predictions: pa.Table) -> dict[str, str]:
    pairs = zip(predictions["speaker_id"].to_pylist(), predictions["corpus"].to_pylist(), strict=True)
    return {speaker or "unknown": corpus or "unknown" for speaker, corpus in pairs}


def _most_wrong(predictions: pa.Table, embed_audio: bool) -> list[dict]:
    """Find the clips with the highest probability on a wrong label, and their sounds."""
    wrong = predictions.filter(pc.not_equal(predictions["predicted"], predictions["emotion"]))
    highest = [max(probabilities) for probabilities in wrong["probabilities"].to_pylist()]
    rows = wrong.append_column("confidence", pa.array(highest, pa.float64()))
    rows = rows.sort_by([("confidence", "descending"), ("utterance_id", "ascending")]).slice(0, MOST_WRONG).to_pylist()
    for row in rows:
        clip = sound.read_sound(row["path"]) if row.get("path") else None
        row["picture"] = (
            charts.log_mel(*sound.draw_log_mel(clip), len(clip) / sound.SAMPLE_RATE) if clip is not None else None
        )
        row["audio"] = sound.audio_uri(clip) if clip is not None and embed_audio else None
        row["link"] = _link(row["path"]) if clip is not None else None
    return rows


def _link(path: str) -> str | None:
    """Return the address that a browser can open, if there is one."""
    if is_uri(path):
        return path if path.startswith(("http://", "https://", "file://")) else None
    return pathlib.Path(path).absolute().as_uri()
