"""What a manifest of a million clips takes of the driver: finding, planning, resuming and accounting, without Ray.

    python benchmarks/speed/manifest.py --clips 1000000 --json manifest.json

The clips are files of nothing, each of its own size, listed in a table; the shards are what a job would have written,
with features of zeros. Wanted: at most 2 GB of memory for a million clips.
"""

from __future__ import annotations

import csv
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ser_ray.base.console import show_table
from ser_ray.base.settings import parse_flags, pick_config, run_job
from ser_ray.features.arrays import encode_features, shape_of
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.speech.corpora import discover
from ser_ray.speech.emotions import EMOTIONS
from ser_ray.speech.utterance import Utterance
from ser_ray.store import pipeline
from ser_ray.store.accounts import settle
from ser_ray.store.shards import METADATA, row_schema
from ser_ray.store.store import Store

sys.path.append(str(Path(__file__).parents[1]))  # where benchmarks have what they share

from shared import write_figures

PER_FOLDER, SPEAKERS = 10_000, 5_000


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        clips: How many clips.
        json: File for the figures; none is written when empty.
    """

    clips: int = 1_000_000
    json: str = ""


def make_files(root: Path, clips: int) -> str:
    """Make the files and return the table that lists them."""
    with (root / "many.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("path", "emotion", "speaker_id", "gender"))
        for i in range(clips):
            path = f"{i // PER_FOLDER:04}/clip_{i:08}.wav"
            if i % PER_FOLDER == 0:
                (root / path).parent.mkdir()
            os.close(os.open(root / path, os.O_CREAT))
            os.truncate(root / path, 44 + i)  # sparse: no blocks
            table.writerow((path, EMOTIONS[i % 8], f"s{i % SPEAKERS:05}", ("female", "male")[i % 2]))
    return str(root / "many.csv")


def write_shards(store: Store, clips: list[Utterance]) -> None:
    """Write what a job would have."""
    type_ = store.recipe().features.arrow_type()
    schema = row_schema(type_)
    for start in range(0, len(clips), pipeline.MAX_CLIPS_PER_TASK):
        some = clips[start : start + pipeline.MAX_CLIPS_PER_TASK]
        given = {
            "duration_s": [3.0] * len(some),
            "sample_rate": [16_000] * len(some),
            "augmentation": ["none"] * len(some),
        }
        given["sha256"] = [f"{clip.size:064x}" for clip in some]
        arrays = [
            pa.array(given.get(name) or [getattr(clip, name) for clip in some], schema.field(name).type)
            for name in METADATA
        ]
        zeros = np.zeros((len(some), *shape_of(type_)), np.float32)
        store.write_shard(pa.Table.from_arrays([*arrays, encode_features(list(zeros), type_)], schema=schema), [])


def main(argv: list[str]) -> None:
    flags = pick_config(Flags, parse_flags(argv, __doc__, Flags))
    table: list[dict[str, Any]] = []

    def measure(what: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        table.append({"what": what, "seconds": time.perf_counter() - started, "peak memory so far, GB": peak})
        return result

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = measure("(making the files)", lambda: make_files(root, flags.clips))
        config = FeaturizeConfig(augment=("none",))
        store = Store(str(root / "store"))
        store.claim(config)
        manifest = measure("find", lambda: discover([path]))
        todo = measure("plan", lambda: pipeline._plan(store, manifest))
        measure("(writing shards in the place of workers)", lambda: write_shards(store, todo))
        left = measure("plan again: all is there", lambda: pipeline._plan(store, manifest))
        measure("account", lambda: settle(store, manifest, 1))
        counts = store.info()["counts"]["many"]
    assert len(todo) == flags.clips and not left and counts["featurized"] == flags.clips
    show_table(f"{flags.clips} clips in the driver", table)
    write_figures(flags.json, {"clips": flags.clips, "steps": table})


if __name__ == "__main__":
    run_job(main)
