"""What a model that normalizes by speaker is worth with few clips of each, with many, and with none.

    python benchmarks/accuracy/speaker_norm.py --run runs/first --store stores/... --json speaker_norm.json

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
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ser_ray.base import storage
from ser_ray.base.console import say, show_table
from ser_ray.base.errors import UserError
from ser_ray.base.settings import parse_flags, pick_config, run_job
from ser_ray.features.arrays import decode_features
from ser_ray.model.examples import COLUMNS, Examples, accuracy_and_uar
from ser_ray.model.files import load_model
from ser_ray.model.model import Model
from ser_ray.model.speakers import Known, sums_of
from ser_ray.scores.run_folder import read_run
from ser_ray.store.rows import open_rows
from ser_ray.store.store import Store

sys.path.append(str(Path(__file__).parents[1]))  # where benchmarks have what they share

from shared import write_figures

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
    store = open_rows(Store(storage.normalize(flags.store)))
    where = {name: i for i, name in enumerate(store["utterance_id"].to_pylist())}
    logits, targets = {}, []
    for root in roots:
        model, (_, tested) = load_model(root), read_run(root)
        if not model.speaker_norm:
            raise UserError(f"{root} was not trained with --speaker-norm")
        rows = store.take(np.array([where[name] for name in tested["utterance_id"].to_pylist()]))
        clips = rows.table(COLUMNS).append_column("features", rows.features())
        targets.append(torch.tensor([model.labels.index(emotion) for emotion in clips["emotion"].to_pylist()]))
        for count in (*CLIPS, len(where)):
            for column in ("speaker_id", "emotion"):
                logits.setdefault((count, column), []).append(answer_knowing(model, clips, count, column))
        say(f"{root}: {len(rows)} clips")
    table = []
    for count in (*CLIPS, len(where)):
        row: dict[str, Any] = {"clips of the speaker": count if count in CLIPS else "all"}
        for column, name in (("speaker_id", "of all emotions"), ("emotion", "of one emotion")):
            row[name] = accuracy_and_uar(torch.cat(logits[count, column]), torch.cat(targets))[1].item()
        table.append(row)
    show_table("UAR", table)
    facts = {"protocol": scores["protocol"], "fold": scores["fold"], "corpora": sorted(scores["per_corpus"])}
    write_figures(flags.json, {**facts, "command": shlex.join(["python", *sys.argv]), "rows": table})


def answer_knowing(model: Model, clips: pa.Table, count: int, column: str) -> torch.Tensor:
    """Return the logits `[N, C]` for clips, each normalized by itself and others of its speaker; by none for 0.

    Args:
        model: Answers.
        clips: With the columns `COLUMNS` and `features`.
        count: How many clips are known, or all where there are fewer.
        column: `emotion` to know those of the same emotion only.
    """
    values, offsets = decode_features(clips["features"])
    sums = [sums_of(values[begin:end]) for begin, end in pairwise(offsets)]
    groups: dict[tuple[str, str], list[int]] = {}
    kinds = list(zip(clips["speaker_id"].to_pylist(), clips[column].to_pylist(), strict=True))
    for i, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(i)
    generator, lengths = np.random.default_rng(SEED), np.diff(offsets)
    names, known = clips["utterance_id"].to_pylist(), {}
    for i, kind in enumerate(kinds):
        others = generator.permutation([j for j in groups[kind] if j != i])[: max(0, count - 1)].astype(int)
        chosen = [i, *others.tolist()] if count else []
        known[names[i]] = Known(int(lengths[chosen].sum()), sum(sums[j] for j in chosen))
    alone = clips.set_column(clips.column_names.index("speaker_id"), "speaker_id", clips["utterance_id"])
    corpora = clips["corpus"].unique().to_pylist()
    return model.logits(Examples.from_table(alone, model.labels, corpora, model.normalizer(known)))


if __name__ == "__main__":
    run_job(main)
