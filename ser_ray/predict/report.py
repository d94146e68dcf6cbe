"""What the report of a prediction shows, gathered from the folder of answers."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.model.domain import MEASURES, Domain, tell_measure
from ser_ray.predict.output import Output

MOST_UNCERTAIN = 50  # recordings that are named where there are too many to show each
MOST_REJECTS = 200


def refuse_report(path: str, output: Output) -> None:
    """Refuse to write a report over another file, unless the output's own job goes on, or where none can be written.

    Raises:
        UserError: There is one, or the place takes none.
    """
    if not storage.exists(path):
        _write(path, "")  # what cannot be written is told before hours of work
        storage.remove(path)
    elif not output.is_begun():
        raise UserError(f"--report {path} is there already; name another file, or take it away")


def write_answers_report(
    path: str, output: Output, names: Sequence[str], content: Mapping[str, Any], domain: Domain | None, embed: bool
) -> None:
    """Write the report of some answers.

    Args:
        path: Of the HTML file, local or a URI.
        output: The answers.
        names: Of their tasks.
        content: Of `predict.json`.
        domain: In what condition the sound was that the models have heard.
        embed: Put the recordings' sound into it.
    """
    from ser_ray.scores.report.answers import MOST_RECORDINGS, Answers, answers_page  # with matplotlib

    recordings, windows = _rows(output, "parts", names), []
    if content["recordings"]["found"] <= MOST_RECORDINGS:
        recordings, each = list(recordings), _rows(output, "windows", names)
        windows = [list(islice(each, row["windows"])) for row in recordings]  # they stand in the same order
    else:
        answered = (row for row in recordings if row["probability"] is not None)
        recordings = heapq.nsmallest(MOST_UNCERTAIN, answered, key=lambda row: (row["probability"], row["file"]))
    seconds = _seconds_of_each(output, names, content["model"]["labels"])
    rejects = list(islice(_rows(output, "rejects", names), MOST_REJECTS))
    answers = Answers(content, recordings, windows, rejects, seconds, _measure_rows(output, names, domain))
    _write(path, answers_page(answers, embed))


def _write(path: str, text: str) -> None:
    try:
        storage.write_text(path, text)
    except OSError as error:
        raise UserError(f"--report {path} cannot be written: {' '.join(str(error).split())}") from None


def _rows(output: Output, folder: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for table in output.read(folder, names):
        for batch in table.to_batches(max_chunksize=10_000):
            yield from batch.to_pylist()


def _seconds_of_each(output: Output, names: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Return for how many seconds each emotion is heard, and how many are unsure and silent."""
    second_C, answered, silent = np.zeros(len(labels)), 0.0, 0.0
    for table in output.read("parts", names):
        heard = table.filter(pc.is_valid(table["shares"]))
        if len(heard):
            answered_N = heard["answered_s"].to_numpy()
            second_C += answered_N @ np.stack(heard["shares"].to_pylist())
            answered += answered_N.sum()
        silent += pc.sum(table["silent_s"]).as_py() or 0.0
    seconds = dict(zip(labels, second_C.tolist(), strict=True))
    return seconds | {"unsure": max(0.0, float(answered - second_C.sum())), "silent": silent}


def _measure_rows(output: Output, names: Sequence[str], domain: Domain | None) -> list[dict[str, Any]]:
    """Return a row for each measure: its range in training, in the recordings, and how many of them lie outside."""
    least: dict[str, float] = {}
    most: dict[str, float] = {}
    outside: Counter[str] = Counter()
    for table in output.read("parts", names):
        for name in MEASURES:
            ends = pc.min_max(table[name]).as_py()
            if ends["min"] is not None:
                least[name] = min(ends["min"], least.get(name, np.inf))
                most[name] = max(ends["max"], most.get(name, -np.inf))
        outside.update(text.split()[0] for text in pc.list_flatten(table["outside"]).to_pylist())
    heard = domain.describe() if domain else [None] * len(MEASURES)
    rows = []
    for (name, (called, unit, _, _)), row in zip(MEASURES.items(), heard, strict=True):
        here = f"{tell_measure(name, least[name])} to {tell_measure(name, most[name])}" if name in least else None
        of_model = {"the model has heard": f"{row['from']} to {row['to']}"} if row else {}
        beyond = {"outside": outside[name]} if row else {}
        rows.append({"measure": f"{called}, {unit}", **of_model, "these recordings": here, **beyond})
    return rows
