"""The domain of a model: in what condition the sound was that it has heard, and what is outside of that.

A model that was trained on clear speech answers a telephone call with the same numbers and less right to them. So the
condition of its training clips (`speech.condition`) is kept with it, and that of each recording is held against it.

Shape: N clips.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ser_ray.store.rows import Rows

PERCENTS = (0, 1, 50, 99, 100)
_LEAST, _LOW, _MIDDLE, _HIGH, _MOST = range(len(PERCENTS))
_SLACK = 1e-4  # Relative; clips' measures are stored in single precision.
MEASURES = {  # what each measure is called, its unit, by what it is multiplied to be told in that, and the digits
    "sample_rate": ("sample rate", "kHz", 1e-3, "g"),
    "bandwidth_hz": ("bandwidth", "kHz", 1e-3, ".1f"),
    "level_db": ("level", "dB re full scale", 1, ".0f"),
    "clipped_share": ("clipped samples", "%", 100, ".2g"),
    "silent_share": ("silence", "%", 100, ".0f"),
    "snr_db": ("signal-to-noise", "dB", 1, ".0f"),
}
# What is said of recordings that lie below or above; {} is the one of them that lies nearest to what was heard.
_BELOW = {
    "sample_rate": "are sampled at {} or less",
    "bandwidth_hz": "are band-limited to {}",
    "level_db": "are quieter, at {} or less",
    "silent_share": "hardly pause: {} or less are silent",
    "snr_db": "are noisier, with {} or less between speech and noise",
}
_ABOVE = {
    "bandwidth_hz": "have a wider band, of {} or more",
    "level_db": "are louder, at {} or more",
    "clipped_share": "are clipped, {} or more of their samples",
    "silent_share": "are more silent, for {} of their time or more",
    "snr_db": "are cleaner, with {} or more between speech and noise",
}


@dataclass(frozen=True)
class Domain:
    """In what condition the clips were that a model was trained on.

    Attributes:
        clips: How many rows of clips were measured.
        heard_hz: The model's own sample rate: it hears nothing above half of that.
        percentiles: Of each measure, in its unit, the values at `PERCENTS`.
    """

    clips: int
    heard_hz: int
    percentiles: Mapping[str, tuple[float, ...]]

    def outside(self, measured: Mapping[str, float | None]) -> list[str]:
        """Return which measures of a recording lie outside of the 1st to the 99th percentile of what was heard.

        Args:
            measured: Its measures by name; what could not be measured is None.

        Returns:
            Such as `bandwidth_hz below`.
        """
        found = []
        for name in MEASURES:
            if measured.get(name) is not None:
                sides = self._beyond(name, np.array([measured[name]]), _LOW, _HIGH)
                found += [
                    f"{name} {side}" for side, is_there in zip(("below", "above"), sides, strict=True) if is_there
                ]
        return found

    def _beyond(self, name: str, value_N: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Return masks of the values that lie below one percentile and above another, as far as the model hears them.

        What lies above half of its own sample rate is cut off, and neither NaN nor a side of which nothing is said lies
        outside.
        """
        most = {"sample_rate": self.heard_hz, "bandwidth_hz": self.heard_hz / 2}.get(name, np.inf)
        value_N, nothing_N = np.minimum(value_N, most), np.zeros(len(value_N), bool)
        least, largest = (min(self.percentiles[name][place], most) for place in (low, high))
        below_N = value_N < least - _SLACK * abs(least) if name in _BELOW else nothing_N
        return below_N, value_N > largest + _SLACK * abs(largest) if name in _ABOVE else nothing_N

    def tell_outside(self, tables: Iterable[pa.Table], noun: str) -> list[str]:
        """Say in a line for each measure how many recordings lie outside, the most frequent first.

        Args:
            tables: With a column for each measure.
            noun: What a row is, in the plural.
        """
        count, groups = 0, {}
        for table in tables:
            count += len(table)
            for name in MEASURES:
                value_N = table[name].to_numpy().astype(np.float64)
                outer = self._beyond(name, value_N, _LEAST, _MOST)
                for above, found_N in enumerate(self._beyond(name, value_N, _LOW, _HIGH)):
                    if found := int(found_N.sum()):
                        nearest = value_N[found_N].min() if above else value_N[found_N].max()
                        before = groups.get((name, above), (0, 0, nearest))
                        groups[name, above] = (
                            before[0] + found,
                            before[1] + int(outer[above].sum()),
                            (min if above else max)(before[2], nearest),
                        )
        lines = []
        for (name, above), (found, unheard, nearest) in sorted(groups.items(), key=lambda group: -group[1][0]):
            what = (_ABOVE if above else _BELOW)[name].format(f"{tell_measure(name, nearest)} {MEASURES[name][1]}")
            if name == "sample_rate":
                what += f", so band-limited to {tell_measure(name, nearest / 2)} kHz"
            heard = "none such" if unheard == found else "hardly any such (at most 1 clip of 100)"
            lines.append(f"{found} of {count} {noun} {what}; the model has heard {heard}")
        return lines

    def describe(self) -> list[dict[str, str]]:
        """Return a row in words for each measure: what it is called, and its range in the training clips."""
        rows = []
        for name, (called, unit, _, _) in MEASURES.items():
            low, middle, high = (tell_measure(name, self.percentiles[name][k]) for k in (_LOW, _MIDDLE, _HIGH))
            rows.append({"measure": called, "unit": unit, "from": low, "to": high, "median": middle})
        return rows


def domain_of(rows: Rows, heard_hz: int) -> Domain | None:
    """Return the domain of a model that is trained on some rows; None where they were not measured.

    Args:
        rows: The rows.
        heard_hz: Sample rate of their features.
    """
    table = rows.measures()
    if table is None or any(table[name].null_count == len(table) for name in MEASURES):
        return None
    columns = {name: table[name].drop_null().to_numpy().astype(np.float64) for name in MEASURES}
    percentiles = {
        name: tuple(map(float, np.percentile(value_N, PERCENTS, method="nearest"))) for name, value_N in columns.items()
    }
    return Domain(len(table), heard_hz, percentiles)


def join_domains(domains: Sequence[Domain | None]) -> Domain | None:
    """Return the domain of what any of some models has heard; None where one does not know what it has."""
    if not domains or any(domain is None for domain in domains):
        return None
    if len(domains) == 1:
        return domains[0]
    joined = {}
    for name in MEASURES:
        each = np.array([domain.percentiles[name] for domain in domains])
        ends = (each[:, _LEAST].min(), each[:, _LOW].min(), each[:, _MIDDLE].mean(), each[:, _HIGH].max())
        joined[name] = tuple(map(float, (*ends, each[:, _MOST].max())))
    heard_hz = max(domain.heard_hz for domain in domains)
    return Domain(sum(domain.clips for domain in domains), heard_hz, joined)


def write_domain(domain: Domain | None) -> dict[str, Any] | None:
    """Return what `read_domain` reads again, for JSON."""
    if domain is None:
        return None
    return {"clips": domain.clips, "heard_hz": domain.heard_hz, "percents": PERCENTS, **domain.percentiles}


def read_domain(content: Mapping[str, Any] | None) -> Domain | None:
    """Read a domain from what a model's JSON holds; None where an earlier version wrote none."""
    if content is None:
        return None
    if tuple(content["percents"]) != PERCENTS:
        raise ValueError("its domain has other percentiles")
    percentiles = {name: tuple(map(float, content[name])) for name in MEASURES}
    return Domain(int(content["clips"]), int(content["heard_hz"]), percentiles)


def describe_domain(domain: Domain | None) -> list[str]:
    """Return the lines of a model card that say in what condition the sound was that a model has heard."""
    if domain is None:
        return ["", "In what condition the sound was that it has heard is not known."]
    lines = [
        "",
        f"It has heard {domain.clips} clips, changed copies counted, in this condition (docs/features.md defines the",
        "measures); of recordings outside of it, answers are less to be believed:",
        "",
        "| measure | 1st percentile | median | 99th percentile |",
        "|---|---|---|---|",
    ]
    rows = domain.describe()
    return [*lines, *(f"| {r['measure']}, {r['unit']} | {r['from']} | {r['median']} | {r['to']} |" for r in rows)]


def tell_measure(name: str, value: float) -> str:
    """Return a measure in the unit and with the digits in which it is told."""
    _, _, factor, digits = MEASURES[name]
    return f"{value * factor + 0.0:{digits}}"
