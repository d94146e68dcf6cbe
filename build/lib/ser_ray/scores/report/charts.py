"""The pictures of a report, drawn with matplotlib as data URIs, each with a text for those who cannot see it."""

from __future__ import annotations

import base64
import functools
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by all kinds of colour vision
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "ser_ray",  # the same picture has the same bytes
    "text.parse_math": False,  # a speaker named a$b$ is no formula
}
LARGEST_SVG = 100_000  # bytes; beyond that a bitmap, if smaller, serves as well


@dataclass(frozen=True)
class Picture:
    """A picture ready for an `img` element.

    Attributes:
        source: Data URI.
        alt: What is to be seen, in words.
    """

    source: str
    alt: str


def picture(width: float, height: float) -> Callable[[Callable[..., str]], Callable[..., Picture]]:
    """Turn a function that draws into a given figure (sizes in inches) and returns the alt text into a `Picture`."""

    def decorate(draw: Callable[..., str]) -> Callable[..., Picture]:
        @functools.wraps(draw)
        def render(*args: object) -> Picture:
            with matplotlib.rc_context(STYLE), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font lacks
                figure = Figure(figsize=(width, height), layout="constrained")
                alt = draw(figure, *args)
                kind, data = "svg+xml", _save(figure, "svg", {"Date": None})
                if len(data) > LARGEST_SVG:
                    kind, data = min((kind, data), ("png", _save(figure, "png", {})), key=lambda pair: len(pair[1]))
            return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", alt)

        return render

    return decorate


def _save(figure: Figure, kind: str, metadata: dict) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    return buffer.getvalue()


@picture(4.2, 4)
def confusion(figure: Figure, matrix: Sequence[Sequence[int]], labels: Sequence[str], shares: bool) -> str:
    """Draw a confusion matrix, rows true: counts, or each row's shares in percent."""
    counts = np.asarray(matrix, dtype=float)
    rows = counts.sum(axis=1, keepdims=True)
    share = np.divide(100 * counts, rows, out=np.full_like(counts, np.nan), where=rows > 0)
    values = share if shares else counts
    axes = figure.subplots()
    axes.imshow(values, cmap="Blues", vmin=0, vmax=100 if shares else None)
    middle = 50 if shares else counts.max() / 2
    for (row, column), value in np.ndenumerate(values):
        text = "–" if np.isnan(value) else f"{value:.0f}"
        axes.text(column, row, text, ha="center", va="center", color="white" if value > middle else "black", fontsize=8)
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="true")
    axes.grid(False)
    right = ", ".join(
        f"{label} {value:.0f}{' %' if shares else ''}"
        for label, value in zip(labels, np.diag(values), strict=True)
        if not np.isnan(value)
    )
    kind = "row shares in percent" if shares else "counts"
    return f"Confusion matrix, {kind}, true labels in rows. Recognized: {right}."


@picture(4.2, 3.2)
def learning_curves(
    figure: Figure, history: Sequence[Mapping], columns: Mapping[str, str], ylabel: str, best: int | None
) -> str:
    """Draw two columns of the history, `{column: what it is called}`, the kept epoch, and lowered learning rates.

    Of several members each has its own lines.
    """
    axes = figure.subplots()
    members = list(dict.fromkeys(row.get("member") for row in history))
    for member in members:
        rows = [row for row in history if row.get("member") == member]
        steps = [row["epoch"] for row in rows]
        for (column, name), color, line in zip(columns.items(), (BLUE, ORANGE), ("-", "--"), strict=True):
            values = [np.nan if row.get(column) is None else row[column] for row in rows]
            label, size = name if member == members[0] else None, 3 if len(members) == 1 else 0
            axes.plot(steps, values, line, color=color, label=label, marker="o", markersize=size)
    history = [row for row in history if row.get("member") == members[0]]
    epochs = [row["epoch"] for row in history]
    rates = [row.get("learning_rate") for row in history]
    lowered = [epochs[i] for i in range(1, len(rates)) if rates[i] != rates[i - 1]]
    for epoch in lowered if len(lowered) < len(rates) / 2 else ():  # not where it changes all the time
        label = "learning rate lowered" if epoch == lowered[0] else None
        axes.axvline(epoch, color=GREY, linewidth=0.8, linestyle=":", label=label)
    if best:
        axes.axvline(best, color=GREEN, linewidth=1.2, linestyle="-.", label="best epoch")
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    ends = (
        f"{name} from {history[0][column]:.2f} to {history[-1][column]:.2f}"
        for column, name in columns.items()
        if history[0].get(column) is not None and history[-1].get(column) is not None
    )
    return f"{ylabel.capitalize()} over {len(history)} epochs: {', '.join(ends)}."


@picture(4.2, 3)
def corpora(figure: Figure, per_corpus: dict[str, dict], num_labels: int) -> str:
    """Draw the UAR of each corpus, over all labels and over its own only."""
    names = list(per_corpus)
    figure.set_size_inches(4.2, 1.3 + 0.55 * len(names))
    axes = figure.subplots()
    places = np.arange(len(names))
    for shift, color, text, scores in (
        (-0.19, BLUE, "all labels", [per_corpus[name] for name in names]),
        (0.19, ORANGE, "the corpus's own labels", [per_corpus[name]["restricted"] for name in names]),
    ):
        bars = axes.barh(places + shift, [100 * each["uar"] for each in scores], 0.36, color=color, label=text)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    guess = axes.axvline(100 / num_labels, color=GREY, linestyle=":", label="guessing among all labels")
    axes.set_yticks(places, names)
    axes.set(xlabel="UAR in %", xlim=(0, 108), xticks=range(0, 101, 20))
    axes.invert_yaxis()
    figure.legend(handles=[*axes.containers, guess], loc="outside upper left", ncols=2, fontsize=8)
    values = "; ".join(
        f"{name} {per_corpus[name]['uar']:.1%}, own labels {per_corpus[name]['restricted']['uar']:.1%}"
        for name in names
    )
    return f"UAR of each corpus: {values}."


@picture(4.2, 3)
def speakers(figure: Figure, per_speaker: dict[str, dict], corpus_of: dict[str, str]) -> str:
    """Draw one dot per speaker, by UAR, a row per corpus; the lowest of each row is named."""
    names = sorted(set(corpus_of.values()))
    figure.set_size_inches(4.2, 1 + 0.8 * len(names))
    axes = figure.subplots()
    for place, corpus in enumerate(names):
        members = sorted((100 * per_speaker[s]["uar"], s) for s in per_speaker if corpus_of[s] == corpus)
        spread = 0.12 * (np.arange(len(members)) % 3 - 1)  # dots of equal value stay apart
        axes.scatter([uar for uar, _ in members], place + spread, s=26, color=BLUE, alpha=0.6, linewidth=0)
        axes.annotate(members[0][1], (members[0][0], place + spread[0]), (0, 6), textcoords="offset points", fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="UAR in % of each speaker's clips", xlim=(-2, 102), ylim=(len(names) - 0.4, -0.6))
    values = [100 * scores["uar"] for scores in per_speaker.values()]
    low, middle, high = np.quantile(values, (0, 0.5, 1))
    return f"UAR of {len(values)} speakers: from {low:.0f} % to {high:.0f} %, median {middle:.0f} %."


@picture(4.2, 4.4)
def reliability(figure: Figure, calibration: dict) -> str:
    """Draw accuracy against confidence, and how many clips have each confidence."""
    bins = calibration["bins"]
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    left, right, count, confidence, accuracy = (
        np.array([each[name] for each in bins]) for name in ("lower", "upper", "count", "confidence", "accuracy")
    )
    upper.bar(left, accuracy, right - left, align="edge", color=BLUE, alpha=0.85, edgecolor="white")
    upper.plot([0, 1], [0, 1], "--", color=GREY, label="calibrated: as often right as sure")
    upper.plot(confidence, accuracy, "o", color=ORANGE, markersize=4)
    upper.set(ylabel="accuracy", ylim=(0, 1), xlim=(0, 1))
    figure.legend(loc="outside upper right")
    lower.bar(left, count, right - left, align="edge", color=GREY, edgecolor="white")
    lower.set(ylabel="clips", xlabel="confidence (highest probability)")
    values = ", ".join(f"{each['confidence']:.2f} sure {each['accuracy']:.2f} right" for each in bins)
    return f"Reliability diagram, expected calibration error {calibration['ece']:.3f}: {values}."


@picture(4.2, 3.2)
def coverage(figure: Figure, points: Sequence[dict]) -> str:
    """Draw accuracy and UAR against the share of clips that the machine keeps."""
    axes = figure.subplots()
    share = [100 * point["share"] for point in points]
    for name, text, color, line in (("accuracy", "accuracy", BLUE, "-"), ("uar", "UAR", ORANGE, "--")):
        values = [100 * point[name] for point in points]
        axes.plot(share, values, line, color=color, label=text, marker="o", markersize=3)
    axes.set(xlabel="most certain clips kept, in %", ylabel="score of these in %", xlim=(0, 102), ylim=(0, 102))
    axes.legend()
    values = ", ".join(f"{p['share']:.0%} kept {p['accuracy']:.0%}" for p in points)
    return f"Accuracy against coverage: {values}."


@picture(4.2, 1.7)
def log_mel(figure: Figure, decibels_MF: np.ndarray, centres_hz: np.ndarray, seconds: float) -> str:
    """Draw a log-mel spectrogram."""
    axes = figure.subplots()
    extent = (0, seconds, -0.5, len(centres_hz) - 0.5)
    axes.imshow(decibels_MF, origin="lower", aspect="auto", cmap="magma", extent=extent, interpolation="none")
    marks = [hz for hz in (500, 1000, 2000, 4000, 8000) if hz <= centres_hz[-1]]
    axes.set_yticks(np.interp(marks, centres_hz, np.arange(len(centres_hz))), [f"{hz / 1000:g}" for hz in marks])
    axes.set(xlabel="seconds", ylabel="kHz")
    axes.grid(False)
    return f"Log-mel spectrogram, {seconds:.1f} s."


@picture(4.2, 1.9)
def difference(figure: Figure, comparison: dict) -> str:
    """Draw the differences of two runs with their intervals against zero, in percentage points."""
    axes = figure.subplots()
    names = {"uar": "UAR", "accuracy": "accuracy"}
    for place, name in enumerate(names):
        scores = comparison[name]
        if scores["interval"]:
            axes.plot([100 * end for end in scores["interval"]], [place, place], color=BLUE, linewidth=3)
        axes.plot(100 * scores["difference"], place, "o", color=ORANGE, markersize=8)
    axes.axvline(0, color=GREY, linestyle="--")
    axes.set_yticks(range(len(names)), list(names.values()))
    axes.set(xlabel="second run minus first, percentage points", ylim=(1.6, -0.6))
    values = ", ".join(f"{text} {100 * comparison[name]['difference']:+.1f}" for name, text in names.items())
    return f"Differences in percentage points: {values}."
