"""What it costs to augment sound while training, beside changing stored log-mel frames.

    python benchmarks/speed/waveform.py --data CORPORA --clips 300 --json waveform.json

Training could keep 16-bit samples, change the sound and make the frames anew in every epoch, or keep frames and change
these, as it does. Timed on the same clips, for one clip of one epoch: noise, stretch and pitch shift of the samples and
their log-mel frames; the changes of frames; and for scale a whole step of training on changed frames. On CPUs all is on
one thread.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ser_ray.base.console import say, show_table
from ser_ray.base.errors import UserError
from ser_ray.base.settings import parse_flags, pick_config, run_job
from ser_ray.features.arrays import shape_of
from ser_ray.features.log_mel import LogMel
from ser_ray.features.spec import Kernel
from ser_ray.model.examples import Examples
from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
from ser_ray.speech.audio import AudioError
from ser_ray.speech.corpora import discover
from ser_ray.speech.emotions import LabelSet
from ser_ray.speech.utterance import Utterance
from ser_ray.store.task import read_clip
from ser_ray.training.batches import deal_batches
from ser_ray.training.frames import FrameAugment
from ser_ray.training.learner import Learner
from ser_ray.training.settings import FrameAugmentConfig, TrainConfig

sys.path.append(str(Path(__file__).parents[1]))  # where benchmarks have what they share

from shared import write_figures

ON_SOUND = ("noise+stretch+pitch",)
ROUNDS = 5


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        data: Folders, URIs or tables that hold corpora.
        clips: How many clips, taken evenly from all that are there.
        device: Where to work, `cpu` or `cuda`.
        json: File for the figures; none is written when empty.
    """

    data: tuple[str, ...] = ()
    clips: int = 300
    device: str = "cpu"
    json: str = ""


def read_waveforms(data: tuple[str, ...], clips: int, features: LogMel) -> dict[str, np.ndarray]:
    """Return the samples of some clips, float32 at 16 kHz, by the clips' ids; of those that can be read."""
    found: list[Utterance] = discover(data).utterances
    waveforms = {}
    for clip in found[:: max(1, len(found) // clips)][:clips]:
        with suppress(AudioError):
            waveforms[clip.utterance_id] = read_clip(clip, features)[1].waveform_T
    return waveforms


def change_sound(kernel: Kernel, waveforms: dict[str, np.ndarray], epoch: int) -> None:
    """Change each clip's samples and make its frames."""
    for name, waveform_T in waveforms.items():
        kernel.rows(waveform_T, name, ON_SOUND, epoch)


def change_frames(changes: FrameAugment, examples: Examples, batches: list[torch.Tensor], epoch: int) -> None:
    """Change windows of each clip's frames."""
    for index_B in batches:
        changes(examples, index_B, epoch)


def train(learner: Learner, examples: Examples, batches: list[torch.Tensor], epoch: int) -> None:
    """Train for an epoch."""
    learner.train_epoch(epoch, ((examples, index_B) for index_B in batches), len(batches))


def main(argv: list[str]) -> None:
    flags = pick_config(Flags, parse_flags(argv, __doc__, Flags))
    if not flags.data:
        raise UserError("--data is missing: name the folders that hold your corpora")
    torch.set_num_threads(1)
    load, device = os.getloadavg()[0], torch.device(flags.device)
    features, labels = LogMel(), LabelSet().names
    kernel = features.kernel().to(device)
    waveforms = read_waveforms(flags.data, flags.clips, features)
    rows = [kernel.rows(waveform_T, name, ("none",), 0)[0] for name, waveform_T in waveforms.items()]
    count = len(rows)
    offsets = torch.tensor([0, *np.cumsum([len(row_TM) for row_TM in rows])])
    zeros = torch.zeros(count, dtype=torch.long)
    targets, keys = torch.arange(count) % len(labels), torch.arange(count)
    examples = Examples(torch.from_numpy(np.concatenate(rows)), offsets, targets, keys, zeros, framed=True).to(device)
    torch.manual_seed(0)
    network = LogMelResNetSpec().build(shape_of(features.arrow_type()), len(labels)).to(device)
    network.standardize.set(*(values.to(device) for values in examples.statistics(keys.to(device))))
    changes = FrameAugment(FrameAugmentConfig(), features, network.standardize.mean_F.clone(), 0)
    config = TrainConfig.usual(LogMelResNetSpec)
    learner = Learner(network, config, torch.bincount(targets)[None], changes)
    batches = deal_batches(keys.to(device), config, 1)

    ways: dict[str, Callable[[int], None]] = {
        "change sound, make frames": partial(change_sound, kernel, waveforms),
        "change stored frames": partial(change_frames, changes, examples, batches),
        "whole step on changed frames": partial(train, learner, examples, batches),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for epoch in range(1, ROUNDS + 2):
        for name, way in ways.items():
            started = time.perf_counter()
            way(epoch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if epoch > 1:  # the first brings code and data into memory
                taken[name].append((time.perf_counter() - started) / count)
    medians = {name: float(np.median(seconds)) for name, seconds in taken.items()}
    sound, frames, step = medians.values()
    sizes = {"16-bit samples": 2 * sum(map(len, waveforms.values())), "frames": 4 * examples.values.numel()}
    show_table(
        f"{count} clips on {flags.device}",
        [{"for one clip": name, "ms (median)": 1000 * seconds} for name, seconds in medians.items()],
    )
    ratio = (step - frames + sound) / step
    say(f"trained on sound an epoch would take {ratio:.2f} times as long; load before: {load:.1f}")
    say("memory a clip: " + ", ".join(f"{size / count / 1000:.0f} kB as {name}" for name, size in sizes.items()))
    figures = {"clips": count, "seconds": medians, "bytes": sizes, "times_as_long": ratio}
    write_figures(flags.json, {**figures, "device": flags.device, "load_before": load})


if __name__ == "__main__":
    run_job(main)
