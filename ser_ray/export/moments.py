"""What is known of the one speaker whom an exported model that normalizes by speaker is to hear.

Shapes: T samples, N frames, F bands.
"""

from __future__ import annotations

import numpy as np

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.features.arrays import shape_of
from ser_ray.features.spec import Features
from ser_ray.model.speakers import Known, is_framed, sums_of
from ser_ray.model.windows import Hearing, WindowConfig
from ser_ray.speech.audio import AudioError


def read_moments(path: str, features: Features) -> Known:
    """Read what is known of a speaker.

    Args:
        path: A recording of the speaker, in mixed moods; or a JSON file of moments: `frames`, their number, `mean` and
            `std` of each band over them, dB (of each number of a state, for an encoder, where a clip is one frame).
        features: Of the model.

    Raises:
        UserError: The file cannot be read or does not fit the features.
    """
    try:
        known = _from_json(path, features) if path.lower().endswith(".json") else _from_recording(path, features)
    except (AudioError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--speaker-moments {path}: {' '.join(str(error).split())}") from None
    if not known.frames:
        raise UserError(f"--speaker-moments {path}: nothing is heard in it; name a recording in which somebody speaks")
    return known


def _from_json(path: str, features: Features) -> Known:
    content = storage.read_json(path)
    frames = int(content["frames"])
    mean_F, std_F = (np.array(content[name], np.float64) for name in ("mean", "std"))
    shape = shape_of(features.arrow_type())[1:] if is_framed(features) else shape_of(features.arrow_type())
    if frames < 1 or mean_F.shape != shape or std_F.shape != shape or not np.isfinite(mean_F + std_F).all():
        raise ValueError(f"holds no moments of this model's features, frames and {shape} numbers as mean and as std")
    return Known(frames, frames * np.stack([mean_F, std_F**2 + mean_F**2]))


def _from_recording(path: str, features: Features) -> Known:
    kernel, known = features.kernel(), Known()
    with storage.open_read(path) as file:
        hearing = Hearing(file, WindowConfig(), features)
        for place, sound_T in hearing.sounds(features.sample_rate):
            values = kernel.rows(sound_T, str(place), ("none",), 0)[0]
            frames_NF = values if is_framed(features) else values[None]
            known = Known(known.frames + len(frames_NF), known.sums_2F + sums_of(frames_NF))
    return known
