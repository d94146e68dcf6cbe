"""Measure featurization: seconds a clip, the usual notebook against ser_ray.

    python benchmarks/speed/featurize.py --data CORPORA --clips 200 --json kernel.json
    python benchmarks/speed/featurize.py --data CORPORA --clips 50 --distance

Both take the same real clips in turn, ten by ten, in one process and on one thread each, and make the same three rows
of 162 features: the clip, the clip with noise, and the clip stretched and pitch-shifted.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import librosa
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from ser_ray.base.console import say, show_table
from ser_ray.base.errors import UserError
from ser_ray.base.settings import parse_flags, run_job
from ser_ray.features.augmentation import parse_augmentation
from ser_ray.features.kernels.copies import PITCH_RATE, STRETCH_RATE, augment, make_generator
from ser_ray.features.kernels.spectra import use_one_core
from ser_ray.features.summary import Summary
from ser_ray.speech.audio import AudioError, decode
from ser_ray.speech.corpora import discover

sys.path.append(str(Path(__file__).parents[1]))  # where benchmarks have what they share

from shared import write_figures

TURN = 10  # clips that one side takes before the other does
WARM_UP = 10  # clips of each side that are not counted: caches fill, librosa compiles
RATE = 22_050


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        data: Roots of corpora.
        clips: Clips to measure, drawn with a fixed seed.
        json: File for the figures; none is written when empty.
        distance: Instead of speed, tell how far `stretch+pitch` in one pass is from two passes of librosa.
    """

    data: tuple[str, ...] = ()
    clips: int = 200
    json: str = ""
    distance: bool = False


def main(argv: list[str]) -> None:
    values = parse_flags(argv, __doc__, Flags)
    paths = draw_clips(values["data"], values["clips"] + WARM_UP)
    with threadpool_limits(limits=1):
        use_one_core()
        figures = chain_distance(paths) if values["distance"] else kernel_speed(paths)
    write_figures(values["json"], figures)


def draw_clips(roots: tuple[str, ...], count: int) -> list[str]:
    """Return the paths of clips that can be decoded, drawn from all corpora under some roots."""
    if not roots:
        raise UserError("--data is missing: name the folders of the corpora")
    found = sorted(utterance.path for utterance in discover(list(roots)).utterances)
    random.Random(0).shuffle(found)
    usable: list[str] = []
    for path in found:
        if len(usable) == count:
            break
        try:
            load(path)
            usable.append(path)
        except AudioError as error:
            say(f"left out {path}: {error}")
    if len(usable) < 2 * WARM_UP:
        raise UserError(f"--data holds {len(usable)} usable clips; {2 * WARM_UP} are the least to measure")
    return usable


def kernel_speed(paths: list[str]) -> dict[str, Any]:
    """Time both sides on the same clips and print a table."""
    kernel = Summary().kernel()

    def ours(path: str) -> None:
        kernel.rows(load(path), path, Summary.augment, seed=0)

    sides: dict[str, Callable[[str], Any]] = {"notebook": notebook_rows, "ser_ray": ours}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for start in range(0, len(paths), TURN):
        for name, rows_of in sides.items():
            for path in paths[start : start + TURN]:
                began = time.perf_counter()
                rows_of(path)
                times[name].append(time.perf_counter() - began)
    seconds = {name: median(values[WARM_UP:]) for name, values in times.items()}
    ratio = seconds["notebook"] / seconds["ser_ray"]
    show_table(
        f"{len(paths) - WARM_UP} clips, three rows each, one thread",
        [
            {
                "side": name,
                "ms a clip (median)": 1000 * seconds[name],
                "times as fast": seconds["notebook"] / seconds[name],
            }
            for name in sides
        ],
    )
    return {"clips": len(paths) - WARM_UP, "rows_per_clip": 3, "seconds_per_clip": seconds, "ratio": ratio}


def load(path: str) -> np.ndarray:
    features = Summary()
    with open(path, "rb") as file:
        return decode(file, sample_rate=RATE, offset_s=features.offset_s, duration_s=features.duration_s).waveform_T


def notebook_rows(path: str) -> list[np.ndarray]:
    """Make the three rows the way the widely copied notebooks do."""
    waveform_T, _ = librosa.load(path, duration=2.5, offset=0.6)
    level = 0.035 * np.random.uniform() * np.amax(waveform_T)
    noisy_T = waveform_T + level * np.random.normal(size=len(waveform_T))
    stretched_T = librosa.effects.time_stretch(waveform_T, rate=0.8)
    pitched_T = librosa.effects.pitch_shift(stretched_T, sr=RATE, n_steps=0.7)
    return [notebook_features(row_T) for row_T in (waveform_T, noisy_T, pitched_T)]


def notebook_features(waveform_T: np.ndarray) -> np.ndarray:
    magnitude_FN = np.abs(librosa.stft(waveform_T))
    parts = [
        librosa.feature.zero_crossing_rate(y=waveform_T),
        librosa.feature.chroma_stft(S=magnitude_FN, sr=RATE),
        librosa.feature.mfcc(y=waveform_T, sr=RATE),
        librosa.feature.rms(y=waveform_T),
        librosa.feature.melspectrogram(y=waveform_T, sr=RATE),
    ]
    return np.hstack([np.mean(part.T, axis=0) for part in parts])


def chain_distance(paths: list[str]) -> dict[str, Any]:
    """Compare `stretch+pitch` in one pass with librosa's two, in waveform and averaged mel bands."""
    one_pass, unchanged = [], []
    for path in paths:
        clip_T = load(path)
        steps = parse_augmentation("stretch+pitch")
        generator = make_generator(0, path, "stretch+pitch")
        ours_T = augment(torch.from_numpy(clip_T)[None], steps, generator)[0].numpy()
        stretched_T = librosa.effects.time_stretch(clip_T, rate=STRETCH_RATE)
        theirs_T = librosa.effects.pitch_shift(stretched_T, sr=RATE, n_steps=-12 * np.log2(PITCH_RATE))
        one_pass.append(differences(ours_T, theirs_T))
        unchanged.append(differences(stretched_T, theirs_T))
    rows = [
        {"compared with two passes": name} | {key: median(one[key] for one in values) for key in values[0]}
        for name, values in (("one pass", one_pass), ("the stretch alone", unchanged))
    ]
    show_table(f"stretch+pitch, medians of {len(paths)} clips", rows)
    return {"clips": len(paths), "distance": rows}


def differences(actual_T: np.ndarray, expected_T: np.ndarray) -> dict[str, float]:
    """Return the distance of two waveforms, and of their averaged mel bands in level and in shape."""
    bands = [librosa.feature.melspectrogram(y=one_T, sr=RATE).mean(axis=1) for one_T in (actual_T, expected_T)]
    louder_M = librosa.power_to_db(bands[0]) - librosa.power_to_db(bands[1])
    return {
        "waveform, relative": float(np.linalg.norm(actual_T - expected_T) / np.linalg.norm(expected_T)),
        "level, dB": float(louder_M.mean()),
        "shape, dB": float(louder_M.std()),
    }


if __name__ == "__main__":
    run_job(main)
