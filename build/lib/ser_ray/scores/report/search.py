"""The pictures of a hyperparameter search. A trial holds `values curve status`; its score is the end of its curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ser_ray.scores.report.charts import BLUE, GREEN, GREY, ORANGE, picture

FEWEST = 8  # trials from which importances are drawn
COLORS = {"finished": BLUE, "stopped": GREY, "failed": ORANGE}
_SEED = 0  # of the forest behind the importances

Trial = Mapping


@picture(4.2, 3)
def progress(figure: Figure, trials: Sequence[Trial]) -> str:
    """Draw the score of each trial as they ended, and the best so far."""
    axes = figure.subplots()
    scores = [100 * trial["curve"][-1] for trial in trials]
    for status, color in COLORS.items():
        places = [i for i, trial in enumerate(trials) if trial["status"] == status]
        if places:
            axes.plot(
                [i + 1 for i in places], [scores[i] for i in places], "o", color=color, markersize=5, label=status
            )
    axes.step(range(1, len(scores) + 1), np.maximum.accumulate(scores), where="post", color=GREEN, label="best so far")
    axes.set(xlabel="trials that ended", ylabel="validation UAR in %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside upper left", ncols=3)
    return f"Validation UAR of {len(trials)} trials; the best reached {max(scores):.1f} %."


@picture(4.2, 3)
def curves(figure: Figure, trials: Sequence[Trial]) -> str:
    """Draw the best score so far of each trial over its epochs; stopped ones are grey."""
    axes = figure.subplots()
    for trial in sorted(trials, key=lambda trial: trial["curve"][-1]):
        scores = [100 * score for score in trial["curve"]]
        epochs = range(1, len(scores) + 1)
        axes.plot(epochs, scores, color=COLORS[trial["status"]], alpha=0.7, linewidth=1)
        axes.plot(len(scores), scores[-1], "o", color=COLORS[trial["status"]], markersize=3)
    for status, color in COLORS.items():
        if any(trial["status"] == status for trial in trials):
            axes.plot([], [], color=color, label=status)
    axes.set(xlabel="epoch", ylabel="best validation UAR so far in %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    stopped = sum(trial["status"] == "stopped" for trial in trials)
    return f"Learning curves of {len(trials)} trials, {stopped} of them stopped early."


@picture(4.2, 3)
def importances(figure: Figure, trials: Sequence[Trial], names: Sequence[str]) -> str:
    """Draw how much each parameter moves the score, by permuting it under a random forest fitted to the trials."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    values = np.stack([_positions(trials, name) for name in names], axis=1)
    scores = np.array([100 * trial["curve"][-1] for trial in trials])
    forest = RandomForestRegressor(200, random_state=_SEED).fit(values, scores)
    drops = permutation_importance(forest, values, scores, n_repeats=20, random_state=_SEED).importances_mean
    order = np.argsort(drops)
    figure.set_size_inches(4.2, 0.8 + 0.24 * len(names))
    axes = figure.subplots()
    axes.barh([names[i] for i in order], drops[order].clip(min=0), color=BLUE)
    axes.set(xlabel="loss of fit (R²) when permuted")
    said = ", ".join(f"{names[i]} {drops[i]:.2f}" for i in order[::-1])
    return f"Importance of parameters: {said}."


@picture(8.6, 3.4)
def coordinates(figure: Figure, trials: Sequence[Trial], names: Sequence[str]) -> str:
    """Draw each trial as a line through its parameters, coloured by its score."""
    axes = figure.subplots()
    scores = np.array([100 * trial["curve"][-1] for trial in trials])
    columns = np.stack([*(_positions(trials, name) for name in names), scores], axis=1)
    low, high = columns.min(0), columns.max(0)
    places = (columns - low) / np.where(high > low, high - low, 1)
    norm = Normalize(scores.min(), scores.max())
    colors = matplotlib_colors(norm(scores))
    for i in np.argsort(scores):
        axes.plot(range(len(names) + 1), places[i], color=colors[i], linewidth=1.2, alpha=0.8)
    for k, name in enumerate(names):
        ends = sorted({trial["values"][name] for trial in trials}, key=lambda v: (isinstance(v, str), v))
        for place, value in ((-0.06, ends[0]), (1.04, ends[-1])):
            text = f"{value:.2g}" if isinstance(value, float) else str(value)
            axes.text(k, place, text, ha="center", va="center", fontsize=7)
    axes.text(len(names), 1.04, f"{scores.max():.1f}", ha="center", va="center", fontsize=7)
    axes.text(len(names), -0.06, f"{scores.min():.1f}", ha="center", va="center", fontsize=7)
    axes.set_xticks(range(len(names) + 1), [*names, "UAR %"], rotation=35, ha="right", rotation_mode="anchor")
    axes.set(yticks=[], ylim=(-0.12, 1.1))
    axes.grid(axis="y", visible=False)
    best = trials[int(scores.argmax())]["values"]
    return "Parallel coordinates; the best trial has " + ", ".join(f"{name} {best[name]}" for name in names) + "."


def matplotlib_colors(parts: np.ndarray) -> np.ndarray:
    """Return colours from dark to bright for numbers from 0 to 1."""
    from matplotlib import colormaps

    return colormaps["viridis"](parts)


def _positions(trials: Sequence[Trial], name: str) -> np.ndarray:
    """Return where each trial stands on the axis of a parameter: by value, or by rank among texts."""
    values = [trial["values"][name] for trial in trials]
    if all(isinstance(value, int | float) for value in values):
        return np.array(values, dtype=float)
    ranks = {value: rank for rank, value in enumerate(sorted(set(map(str, values))))}
    return np.array([ranks[str(value)] for value in values], dtype=float)
