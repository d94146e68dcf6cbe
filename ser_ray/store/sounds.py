"""Decoded clips on their way from the CPUs that read them to the GPU that computes their features.

Shapes: T samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ser_ray.speech.audio import Clip

_NOTHING = Clip(np.zeros(0, np.float32), 0, 0.0)


class Sound(NamedTuple):
    """What was read of a clip.

    Attributes:
        sha256: Of its file.
        clip: Its decoded window.
        problem: Why it cannot be used, or empty.
    """

    sha256: str = ""
    clip: Clip = _NOTHING
    problem: str = ""


def pack_sounds(sounds: Sequence[Sound]) -> pa.Array:
    """Turn the sounds of a task into one Arrow value, a list of records."""
    clips = [sound.clip for sound in sounds]
    ends = np.cumsum([0, *(len(clip.waveform_T) for clip in clips)])
    samples = pa.array(np.concatenate([np.zeros(0, np.float32), *(clip.waveform_T for clip in clips)]))
    columns = {
        "sha256": pa.array([sound.sha256 for sound in sounds], pa.string()),
        "problem": pa.array([sound.problem for sound in sounds], pa.string()),
        "sample_rate": pa.array([clip.sample_rate for clip in clips], pa.int32()),
        "duration_s": pa.array([clip.duration_s for clip in clips], pa.float64()),
        "notes": pa.array([list(clip.notes) for clip in clips], pa.list_(pa.string())),
        "samples": pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), samples),
    }
    records = pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
    return pa.ListArray.from_arrays(pa.array([0, len(sounds)], pa.int32()), records)


def unpack_sounds(records: pa.StructArray) -> list[Sound]:
    """Return the sounds that `pack_sounds` packed."""
    told = ("sha256", "problem", "sample_rate", "duration_s", "notes")
    columns = [records.field(name).to_pylist() for name in told]
    waveforms = [np.array(waveform.values) for waveform in records.field("samples")]
    return [
        Sound(sha256, Clip(waveform_T, sample_rate, duration_s, tuple(notes)), problem)
        for sha256, problem, sample_rate, duration_s, notes, waveform_T in zip(*columns, waveforms, strict=True)
    ]
