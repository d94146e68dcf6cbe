"""One task of featurization: some clips in, their shard out.

A task may be killed and run again: a shard's name and content depend on its clips alone. Workers import this room and
what it needs, and no more of ser_ray, since each second that takes is one that all of them take.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from ser_ray.base.errors import UserError
from ser_ray.features.arrays import encode_features
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.features.spec import Features
from ser_ray.speech.audio import NOTES, AudioError, Clip, count_notes, decode
from ser_ray.speech.media import MISSING
from ser_ray.speech.packed import open_sound
from ser_ray.speech.utterance import Reject, Utterance, from_table
from ser_ray.store.crashes import Attempts
from ser_ray.store.shards import METADATA, name_clips, row_schema
from ser_ray.store.store import Store

WHOLE_FILE_BYTES = 32 << 20  # a smaller file is read once for both its hash and its sound
UNREADABLE, INTERNAL = "cannot be read", "internal error"
CRASHED = f"{INTERNAL}: it kills the worker that takes it; please report it"
PASSING = (UNREADABLE, INTERNAL, MISSING)  # reasons that may be gone in the next run, which tries such clips again


@ray.remote
def import_kernel() -> None:
    """Have a worker import what its tasks will need."""
    from ser_ray.features.kernels import spectra  # noqa: F401


class ShardWriter:
    """Turns clips of the plan into shards and says how many were featurized."""

    def __init__(self, store: Store, config: FeaturizeConfig, device: str) -> None:
        from ser_ray.features.kernels.spectra import (  # with torch, which the driver does without
            use_one_core,
        )

        use_one_core()  # Ray runs one task a core
        self.store, self.config = store, config
        self.problem = ""
        try:
            self.kernel = config.features.kernel()
            self.kernel.to(device)
        except UserError as error:  # what the kernel reads is not on this node
            self.problem = str(error)
        except (RuntimeError, AssertionError) as error:  # Ray has a GPU there and torch has not
            self.problem = f"torch cannot use the GPU that Ray gave it ({str(error).splitlines()[0]}); use --device cpu"
        self.schema = row_schema(config.features.arrow_type())

    def __call__(self, tasks: pa.Table) -> pa.Table:
        """Do some tasks.

        Args:
            tasks: In the column `clips` the clips of each, a list of records of `UTTERANCE_SCHEMA`.

        Returns:
            One row per task: the counts and the error of `write`, and the `node` it ran on.
        """
        node = {"node": ray.get_runtime_context().get_node_id()}
        clips = (pa.Table.from_struct_array(records.values) for records in tasks["clips"])
        return pa.Table.from_pylist([self.write(from_table(clips_of_task)) | node for clips_of_task in clips])

    def write(self, clips: list[Utterance]) -> dict[str, Any]:
        """Featurize some clips and write their shard.

        Returns:
            The numbers of `clips`, of those `rejected`, of those that bear `notes` of each kind and of those that were
            `cut` at the window's end, and the `error` that stopped the task, or an empty text.
        """
        outcome = {
            "clips": len(clips),
            "rejected": 0,
            "notes": dict.fromkeys(NOTES, 0),
            "cut": 0,
            "error": self.problem,
        }
        if self.problem:
            return outcome
        try:
            rejects, outcome["notes"], outcome["cut"] = self._write(clips)
            outcome["rejected"] = len(rejects)
        except UserError as error:
            outcome["error"] = str(error)
        except OSError as error:
            outcome["error"] = unusable(self.store, error)
        return outcome

    def _write(self, clips: list[Utterance]) -> tuple[list[Reject], dict[str, int], int]:
        """Write the shard of some clips; return rejects, the number of notes of each kind, and that of clips cut."""
        attempts = Attempts(self.store.attempts_path(clips))
        columns: dict[str, list[Any]] = {name: [] for name in METADATA}
        kept = Kept()
        rejects, notes, cut = [], [], 0
        offset_s, duration_s = self.config.features.offset_s, self.config.features.duration_s
        for utterance in clips:
            if not attempts.take(utterance.utterance_id):
                rejects.append(Reject(utterance.path, utterance.corpus, utterance.utterance_id, CRASHED))
                continue
            try:
                digest, clip = read_clip(utterance, self.config.features)
                features = self.kernel.rows(
                    clip.waveform_T, utterance.utterance_id, self.config.augment, self.config.seed
                )
            except Exception as error:  # whatever is wrong with a clip, it costs that clip only
                rejects.append(Reject(utterance.path, utterance.corpus, utterance.utterance_id, _reason(error)))
                continue
            notes += clip.notes
            cut += duration_s is not None and clip.duration_s > offset_s + duration_s
            facts = {"sha256": digest, "duration_s": clip.duration_s, "sample_rate": clip.sample_rate}
            for augmentation, values in zip(self.config.augment, features, strict=True):
                row = facts | {"augmentation": augmentation}
                for name, column in columns.items():
                    column.append(row[name] if name in row else getattr(utterance, name))
                kept.add(values)
        arrays = [pa.array(columns[name], self.schema.field(name).type) for name in METADATA]
        arrays.append(encode_features(kept.arrays(), self.schema.field("features").type))
        name = name_clips(clip.utterance_id for clip in clips)
        if attempts.again:
            self.store.write_rejects(name, [])  # a reason of the attempt before may be gone
        self.store.write_shard(pa.Table.from_arrays(arrays, schema=self.schema), rejects, name)
        attempts.end()
        return rejects, count_notes(notes), cut


class Kept:
    """Arrays of one type, copied to one place.

    Each by itself would stand in the way of the large ones that come and go with every clip: what one clip gives back
    would no longer be in one piece for the next, and the process would grow.
    """

    def __init__(self) -> None:
        self._bytes, self._dtype = io.BytesIO(), np.dtype(np.float32)
        self._shapes: list[tuple[int, ...]] = []

    def add(self, array: np.ndarray) -> None:
        """Keep a copy of a C-contiguous array."""
        self._bytes.write(array)
        self._shapes.append(array.shape)
        self._dtype = array.dtype

    def arrays(self) -> list[np.ndarray]:
        """Return what was kept; nothing can be added as long as that lives."""
        flat = np.frombuffer(self._bytes.getbuffer(), self._dtype)
        ends = [0, *accumulate(math.prod(shape) for shape in self._shapes)]
        spans = zip(pairwise(ends), self._shapes, strict=True)
        return [flat[start:end].reshape(shape) for (start, end), shape in spans]


_WRITERS: dict[tuple[Store, FeaturizeConfig, str], ShardWriter] = {}


def write_in_task(tasks: pa.Table, arguments: tuple[Store, FeaturizeConfig, str]) -> pa.Table:
    """Do some tasks as `ShardWriter` does, whose arguments are given too."""
    if arguments not in _WRITERS:  # a worker process runs many tasks
        _WRITERS[arguments] = ShardWriter(*arguments)
    return _WRITERS[arguments](tasks)


def read_clip(utterance: Utterance, features: Features) -> tuple[str, Clip]:
    """Read a clip without taking more into memory than its window needs.

    Returns:
        The file's sha256, and the window at the features' sample rate.

    Raises:
        AudioError: The file cannot be used.
        OSError: It cannot be read.
    """
    window = {name: getattr(features, name) for name in ("sample_rate", "offset_s", "duration_s")}
    with open_sound(utterance.path) as stream:
        if utterance.size <= WHOLE_FILE_BYTES:
            data = stream.read()
            return hashlib.sha256(data).hexdigest(), decode(io.BytesIO(data), **window)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        stream.seek(0)
        return digest, decode(stream, **window)


def _reason(error: Exception) -> str:
    """Say in one line why a clip could not be used."""
    if isinstance(error, AudioError):
        return str(error)
    if isinstance(error, OSError):
        return f"{UNREADABLE}: {_what(error)}"
    return f"{INTERNAL}: {type(error).__name__}: {' '.join(str(error).split())}; please report it"


def unusable(store: Store, error: OSError) -> str:
    """Say in one line what is wrong with a store, and what to do."""
    return (
        f"the store {store.root} cannot be read or written: {_what(error)}; "
        "put that right or name another --store, and the same command goes on from here"
    )


def _what(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())
