"""What a model that normalizes by speaker is worth with few clips of each, with many, and with none.

    python benchmarks/speaker_norm.py --run runs/first --store stores/... --json speaker_norm.json

Answers again for the clips that a finished run tested, of one fold or of all. Each is normalized by itself and some
more clips of its speaker, drawn from all of them; at last by all there are, as in the run. And by as many of its own
emotion alone: of speakers who are known in one mood, what is theirs and what is the mood's look the same.
With none, clips are as they are, which is the plain task.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from featurize import machine, versions  # the benchmark beside this one

from ser_ray.base import storage
from ser_ray.base.console import say, show_table
from ser_ray.base.errors import UserError
from ser_ray.base.settings import parse_flags, pick_config, run_job
from ser_ray.model.bundle import Bundle, answer, load  # GONE
from ser_ray.model.examples import COLUMNS, Examples, accuracy_and_uar
from ser_ray.model.speakers import Heard  # GONE
from ser_ray.model.speakers import sums_of
from ser_ray.scores.run_folder import read_run
from ser_ray.store.store import Store
from ser_ray.speech.audio import decode

CLIPS = (0, 1, 2, 5, 10, 20)  # that are known of a speaker, and then all
SEED = 0


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        run: A finished run with --speaker-norm, or one of all folds.
        store: The feature store that it used.
        json: File for the figures; none is written when empty.
    """

    run: str = ""
    store: str = ""
    json: str = ""


def main(argv: list[str]) -> None:
    flags = pick_config(Flags, parse_flags(argv, __doc__, Flags))
    if not flags.run or not flags.store:
        raise UserError("--run or --store is missing: name a finished run and the feature store that it used")
    scores, _ = read_run(flags.run)
    folds = range(len(scores["folds"])) if scores["fold"] == "all" else None
    roots = [flags.run] if folds is None else [storage.join(flags.run, f"fold-{fold}") for fold in folds]
    store = Store(storage.normalize(flags.store))
    where = {name: i for i, name in enumerate(store.rows()["utterance_id"].to_pylist())}
    logits, targets = {}, []
    for root in roots:
        model, (_, tested) = load(root), read_run(root)
        if not model.model.speaker_norm:
            raise UserError(f"{root} was not trained with --speaker-norm")
        rows = store.take(np.array([where[name] for name in tested["utterance_id"].to_pylist()]), COLUMNS)
        targets.append(torch.tensor([model.labels.index(emotion) for emotion in rows["emotion"].to_pylist()]))
        for count in (*CLIPS, len(where)):
            for column in ("speaker_id", "emotion"):
                logits.setdefault((count, column), []).append(answer_knowing(model, rows, count, column))
        say(f"{root}: {rows.num_rows} clips")
    table = []
    for count in (*CLIPS, len(where)):
        row: dict[str, Any] = {"clips of the speaker": count if count in CLIPS else "all"}
        for column, name in (("speaker_id", "of all emotions"), ("emotion", "of one emotion")):
            row[name] = accuracy_and_uar(torch.cat(logits[count, column]), torch.cat(targets))[1].item()
        table.append(row)
    show_table("UAR", table)
    if flags.json:
        facts = {"protocol": scores["protocol"], "fold": scores["fold"], "corpora": sorted(scores["per_corpus"])}
        facts |= {"command": shlex.join(["python", *sys.argv]), "versions": versions(), "machine": machine()}
        storage.write_json(flags.json, {**facts, "rows": table})


def answer_knowing(model: Bundle, rows: pa.Table, count: int, column: str) -> torch.Tensor:
    """Return the logits `[N, C]` for clips, each normalized by itself and others of its speaker; by none for 0.

    Args:
        model: Answers.
        rows: The clips, with `COLUMNS`.
        count: How many clips are known, or all where there are fewer.
        column: `emotion` to know those of the same emotion only.
    """
    values, offsets = decode(rows["features"])
    sums = [sums_of(values[begin:end]) for begin, end in pairwise(offsets)]
    groups: dict[tuple[str, str], list[int]] = {}
    kinds = list(zip(rows["speaker_id"].to_pylist(), rows[column].to_pylist(), strict=True))
    for i, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(i)
    generator, lengths = np.random.default_rng(SEED), np.diff(offsets)
    names, known = rows["utterance_id"].to_pylist(), {}
    for i, kind in enumerate(kinds):
        others = generator.permutation([j for j in groups[kind] if j != i])[: max(0, count - 1)].astype(int)
        chosen = [i, *others.tolist()] if count else []
        known[names[i]] = Heard(int(lengths[chosen].sum()), sum(sums[j] for j in chosen))
    alone = rows.set_column(rows.column_names.index("speaker_id"), "speaker_id", rows["utterance_id"])
    return answer(model, Examples.from_rows(alone, model.labels, speakers=model.normalizer(known)))


if __name__ == "__main__":
    run_job(main)
