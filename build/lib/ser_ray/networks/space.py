"""What a search may change: ranges and choices, by flag."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, whole ones if both are; on a logarithmic scale if `log`."""

    low: float
    high: float
    log: bool = False


Space = dict[str, Range | tuple[Any, ...]]
