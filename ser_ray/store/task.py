"""One task of featurization: some clips in, their shard out.

On CPUs a worker does the whole of it, clip by clip. Where features are computed on GPUs, CPUs read and decode the clips
of a task, and an actor on a GPU, which has them all, does the rest.

A task may be killed and run again: a shard's name and content depend on its clips alone. Workers import this room and
what it needs, and no more of ser_ray, since each second that takes is one that all of them take.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.features.arrays import encode_features
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.features.spec import Features
from ser_ray.speech.audio import NOTES, AudioError, Clip, count_notes, decode
from ser_ray.speech.utterance import Reject, Utterance, from_table
from ser_ray.store.crashes import Attempts
from ser_ray.store.shards import METADATA, name_clips, row_schema
from ser_ray.store.sounds import Sound, pack_sounds, unpack_sounds
from ser_ray.store.store import Store

WHOLE_FILE_BYTES = 32 << 20  # a smaller file is read once for both its hash and its sound
UNREADABLE, INTERNAL = "cannot be read", "internal error"
CRASHED = f"{INTERNAL}: it kills the worker that takes it; please report it"
PASSING = (UNREADABLE, INTERNAL)  # reasons that may be gone in the next run, which tries such clips again


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
        self.ended, self.busy_s = time.monotonic(), 0.0
        try:
            self.kernel = config.features.kernel()
            self.kernel.to(device)
        except UserError as error:  # what the kernel reads is not on this node
            self.problem = str(error)
        except (RuntimeError, AssertionError) as error:  # Ray has a GPU there and torch has not
            self.problem = f"torch cannot use the GPU that Ray gave it ({str(error).splitlines()[0]}); use --device cpu"

    def __call__(self, tasks: pa.Table) -> pa.Table:
        """Do some tasks.

        Args:
            tasks: In the column `clips` the clips of each, a list of records of `UTTERANCE_SCHEMA`; where they are read
                already, what `read_in_task` adds.

        Returns:
            One row per task: the counts and the error of `write`, the `node` it ran on, how long it took since the task
            before, `spent_s`, and how much of that the kernel was at work, `busy_s`.
        """
        node = {"node": ray.get_runtime_context().get_node_id()}
        outcomes = []
        for row in range(tasks.num_rows):
            clips = from_table(pa.Table.from_struct_array(tasks["clips"][row].values))
            sounds, self.busy_s = None, 0.0
            if "sounds" in tasks.column_names:
                self.problem = self.problem or tasks["problem"][row].as_py()
                sounds = unpack_sounds(tasks["sounds"][row].values)
            outcome = self.write(clips, sounds)
            ended = time.monotonic()
            outcomes.append(outcome | node | {"busy_s": self.busy_s, "spent_s": ended - self.ended})
            self.ended = ended
        return pa.Table.from_pylist(outcomes)

    def write(self, clips: list[Utterance], sounds: Sequence[Sound] | None = None) -> dict[str, Any]:
        """Featurize some clips and write their shard.

        Args:
            clips: The clips.
            sounds: What was read of each; None to read them here.

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
            shard = self._write(clips, sounds)
            outcome |= {"rejected": len(shard.rejects), "notes": count_notes(shard.notes), "cut": shard.cut}
        except UserError as error:
            outcome["error"] = str(error)
        except OSError as error:
            outcome["error"] = unusable(self.store, error)
        return outcome

    def _write(self, clips: list[Utterance], sounds: Sequence[Sound] | None) -> _Shard:
        """Write the shard of some clips."""
        attempts = Attempts(self.store.attempts_path(clips))
        shard = _Shard(self.config)
        if sounds is None or attempts.again or not hasattr(self.kernel, "rows_of_clips"):
            for place, utterance in enumerate(clips):
                if not attempts.take(utterance.utterance_id):
                    shard.add(utterance, Sound(problem=CRASHED), [])
                    continue
                sound = sounds[place] if sounds else try_clip(utterance, self.config.features)
                shard.add(utterance, sound, self._compute([utterance], [sound])[0])
        else:
            for utterance, sound, rows in zip(clips, sounds, self._compute(clips, sounds, True), strict=True):
                shard.add(utterance, sound, rows)
        name = name_clips(clip.utterance_id for clip in clips)
        if attempts.again:
            self.store.write_rejects(name, [])  # a reason of the attempt before may be gone
        self.store.write_shard(shard.table(), shard.rejects, name)
        attempts.end()
        return shard

    def _compute(
        self, clips: Sequence[Utterance], sounds: Sequence[Sound], together: bool = False
    ) -> list[list[np.ndarray] | Exception]:
        """Return the rows of each clip, or what is wrong with it."""
        started = time.monotonic()
        usable = [place for place, sound in enumerate(sounds) if not sound.problem]
        pairs = [(sounds[place].clip.waveform_T, clips[place].utterance_id) for place in usable]
        computed = None
        if together:
            with suppress(Exception):  # which clip is to blame is found one by one
                computed = self.kernel.rows_of_clips(pairs, self.config.augment, self.config.seed)
        if computed is None:
            computed = [self._compute_one(*pair) for pair in pairs]
        answers = dict(zip(usable, computed, strict=True))
        self.busy_s += time.monotonic() - started
        return [answers.get(place, []) for place in range(len(clips))]

    def _compute_one(self, waveform_T: np.ndarray, utterance_id: str) -> list[np.ndarray] | Exception:
        try:
            return self.kernel.rows(waveform_T, utterance_id, self.config.augment, self.config.seed)
        except Exception as error:  # whatever is wrong with a clip, it costs that clip only
            return error


class _Shard:
    """What becomes of the clips of a task: rows, rejects, notes, and how many were cut at the window's end."""

    def __init__(self, config: FeaturizeConfig) -> None:
        self.config = config
        self.columns: dict[str, list[Any]] = {name: [] for name in METADATA}
        self.kept = Kept()
        self.rejects: list[Reject] = []
        self.notes: list[str] = []
        self.cut = 0

    def add(self, utterance: Utterance, sound: Sound, rows: Sequence[np.ndarray] | Exception) -> None:
        """Add a clip: its rows, one per augmentation, or what is wrong with it."""
        problem = sound.problem or (_reason(rows) if isinstance(rows, Exception) else "")
        if problem:
            self.rejects.append(Reject(utterance.path, utterance.corpus, utterance.utterance_id, problem))
            return
        clip, features = sound.clip, self.config.features
        self.notes += clip.notes
        self.cut += features.duration_s is not None and clip.duration_s > features.offset_s + features.duration_s
        facts = {"sha256": sound.sha256, "duration_s": clip.duration_s, "sample_rate": clip.sample_rate}
        for augmentation, values in zip(self.config.augment, rows, strict=True):
            row = facts | {"augmentation": augmentation}
            for name, column in self.columns.items():
                column.append(row[name] if name in row else getattr(utterance, name))
            self.kept.add(values)

    def table(self) -> pa.Table:
        """Return the rows."""
        features = encode_features(self.kept.arrays(), self.config.features.arrow_type())
        schema = row_schema(features.type)
        arrays = [*(pa.array(self.columns[name], schema.field(name).type) for name in METADATA), features]
        return pa.Table.from_arrays(arrays, schema=schema)


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


def read_in_task(tasks: pa.Table, arguments: tuple[Store, FeaturizeConfig]) -> pa.Table:
    """Read and decode the clips of some tasks, for `ShardWriter` on a GPU.

    Args:
        tasks: In the column `clips` the clips of each.
        arguments: The store and what it is made by.

    Returns:
        The tasks with columns `sounds` (`pack_sounds`), and `problem`, which stops the task, or is empty.
    """
    store, config = arguments
    packed, problems = [], []
    for records in tasks["clips"]:
        clips = from_table(pa.Table.from_struct_array(records.values))
        sounds, problem = [], ""
        try:
            attempts = Attempts(store.attempts_path(clips))
            for utterance in clips:
                taken = attempts.take(utterance.utterance_id)
                sounds.append(try_clip(utterance, config.features) if taken else Sound(problem=CRASHED))
            attempts.end()
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = unusable(store, error)
        packed.append(pack_sounds(sounds))
        problems.append(problem)
    return tasks.append_column("sounds", pa.chunked_array(packed)).append_column("problem", pa.array(problems))


def try_clip(utterance: Utterance, features: Features) -> Sound:
    """Read a clip, or say why it cannot be used."""
    try:
        return Sound(*read_clip(utterance, features))
    except Exception as error:  # whatever is wrong with a clip, it costs that clip only
        return Sound(problem=_reason(error))


def read_clip(utterance: Utterance, features: Features) -> tuple[str, Clip]:
    """Read a clip without taking more into memory than its window needs.

    Returns:
        The file's sha256, and the window at the features' sample rate.

    Raises:
        AudioError: The file cannot be used.
        OSError: It cannot be read.
    """
    window = {name: getattr(features, name) for name in ("sample_rate", "offset_s", "duration_s")}
    with storage.open_read(utterance.path) as stream:
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
