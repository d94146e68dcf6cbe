"""What the file-name grammars of all corpora share."""

from __future__ import annotations

from collections.abc import Mapping


def decode_field(field: str, code: str, codes: Mapping[str, str]) -> str:
    """Translate one field of a file name.

    Raises:
        ValueError: The code is not one of `codes`; the message names the field and fits a reject's reason.
    """
    if code not in codes:
        names = list(codes)
        expected = " ".join(names) if len(names) < 20 else f"{names[0]} to {names[-1]}"
        raise ValueError(f"{field} {code} is not one of {expected}")
    return codes[code]
