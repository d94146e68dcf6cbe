"""How fast a pretrained encoder is applied on a GPU, against all cores beside it, and how near its rows are.

    python benchmarks/speed/encoder_gpu.py --size base --clips 2000 --json encoder_gpu.json

A Whisper of a usual size, with drawn weights, hears made speech: by a bare loop on the GPU, whose clips are decoded
before the clock runs; by the job with `--device cuda`, whose progress lines tell how much of its time the GPU waited;
and by the job on all cores. Jobs run on a Ray that is there, after a small one that loads encoders. Rows of the GPU, in
bfloat16, are compared with those of the cores: the root mean square of the difference by that of the state, of the
worst clip and state; wanted is 1e-2.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ser_ray.base.console import say, show_table
from ser_ray.base.settings import choice, parse_flags, pick_config, run_job
from ser_ray.features.arrays import decode_features
from ser_ray.features.encoder import Encoder
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.speech import made
from ser_ray.speech.corpora import discover
from ser_ray.speech.utterance import Utterance
from ser_ray.store.store import Store
from ser_ray.store.task import read_clip

sys.path.extend(str(Path(__file__).parents[2] / room) for room in ("benchmarks", "tests"))

from encoder import WHISPERS, whisper_settings
from shared import write_figures

WARM = 64  # Clips of the small job.
AT_ONCE = 128  # Clips that the bare loop has at a time, as the job's actors do.


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        size: Of Whisper.
        clips: How many clips.
        device: What is measured beside all cores.
        json: File for the figures; none is written when empty.
    """

    size: str = choice("base", *WHISPERS)
    clips: int = 2000
    device: str = choice("cuda", "cpu")
    json: str = ""


def write_whisper(folder: str, size: str) -> str:
    """Write a Whisper of drawn weights."""
    import safetensors.torch
    import torch

    from ser_ray.features.kernels.whisper import WhisperEncoder

    torch.manual_seed(0)
    settings = whisper_settings(*WHISPERS[size])
    Path(folder, "config.json").write_text(json.dumps(settings))
    safetensors.torch.save_file(WhisperEncoder(settings).state_dict(), Path(folder, "model.safetensors"))
    return folder


def time_loop(encoder: Encoder, clips: list[Utterance], device: str) -> float:
    """Return the seconds of a bare loop, after a small part of it."""
    from ser_ray.features.kernels.encoder import EncoderKernel

    kernel = EncoderKernel(encoder).to(device)
    sounds = [(read_clip(clip, encoder)[1].waveform_T, clip.utterance_id) for clip in clips]
    kernel.rows_of_clips(sounds[:WARM], ("none",), 0)
    begun = time.perf_counter()
    for first in range(0, len(sounds), AT_ONCE):
        kernel.rows_of_clips(sounds[first : first + AT_ONCE], ("none",), 0)
    return time.perf_counter() - begun


def distance(store: Store, other: Store) -> float:
    """Return how far rows of one store are from those of another, by the scale of each state."""
    rows_NSD, others_NSD = (
        decode_features(each.table(["utterance_id", "augmentation", "features"])["features"])[0].astype(float)
        for each in (store, other)
    )
    scale_NS = np.sqrt(np.square(others_NSD).mean(2))
    return float((np.sqrt(np.square(rows_NSD - others_NSD).mean(2)) / scale_NS).max())


def measure(flags: Flags, folder: Path) -> dict[str, Any]:
    """Return clips per second by each way, and how near the rows are."""
    import ray

    from ser_ray.base.cluster import connect
    from ser_ray.store.pipeline import featurize

    (folder / "encoder").mkdir()
    encoder = Encoder(write_whisper(str(folder / "encoder"), flags.size))
    manifest = discover(made.write_speech(str(folder / "made"), flags.clips))
    clips = manifest.utterances
    rows = [{"by": f"bare loop, {flags.device}", "clips/s": len(clips) / time_loop(encoder, clips, flags.device)}]
    show_table("Bare loop", rows)
    ray.init(
        address="local",
        num_gpus=flags.device == "cuda",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    connect()
    stores = []
    for device in (flags.device, "cpu"):
        for name, some in (("warm", clips[:WARM]), ("job", clips)):
            begun, place = time.perf_counter(), str(folder / f"{name}-{device}-{len(stores)}")
            store = featurize(replace(manifest, utterances=some), FeaturizeConfig(encoder), place, device)
            seconds = time.perf_counter() - begun
            say(f"{name} on {device}: {seconds:.1f} s for {len(some)} clips")
        stores.append(store)
        rows.append({"by": f"job, {device}, {os.cpu_count()} cores", "clips/s": len(clips) / seconds})
    ray.shutdown()
    return {"size": flags.size, "clips": len(clips), "rows": rows, "distance": distance(*stores)}


def main(argv: list[str]) -> None:
    flags = pick_config(Flags, parse_flags(argv, __doc__, Flags))
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(flags, Path(folder))
    show_table(f"Whisper {flags.size}", figures["rows"])
    say(f"Distance of the rows, by the scale of each state: {figures['distance']:.4f}")
    write_figures(flags.json, figures)


if __name__ == "__main__":
    run_job(main)
