"""What Ray Train costs over a bare loop, and what a second worker brings.

    python benchmarks/train.py --json train.json

The same network takes the same steps on the same log-mel clips (made ones: normal noise of the usual lengths)

- in a bare PyTorch loop with the clips in memory, without Ray or checkpoints, on one thread;
- in two such loops at once that know nothing of each other: what a second core of this machine brings at all;
- in `training.fit` under Ray Train, checkpoints included, with one worker on one core;
- and there with two workers on two cores, at the same batch size in all, and at the same one for each.

An epoch's time runs from the end of one to the end of the next. Wanted: `epoch_ratio`, Ray's over the bare loop's,
at most 1.05; two workers at least 1.7 times the clips per second of one. Nothing else should run on the machine.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from featurize import machine, versions  # the benchmark beside this one

from ser_ray.base import storage
from ser_ray.base.cluster import connect
from ser_ray.base.console import say, show_table
from ser_ray.base.settings import parse_flags, pick_config, run_job
from ser_ray.experiment.splits import Split
from ser_ray.features.settings import FeatureConfig  # GONE
from ser_ray.model.examples import COLUMNS, Examples
from ser_ray.networks.models import ModelConfig, build  # GONE
from ser_ray.speech.emotions import EMOTIONS, LabelSet
from ser_ray.store.store import FORMAT, Store
from ser_ray.store.shards import METADATA, row_schema
from ser_ray.speech.corpora.files import encode
from ser_ray.store.store import feature_type, fingerprint  # GONE
from ser_ray.training.fit import fit  # GONE
from ser_ray.training.frames import FrameAugment
from ser_ray.training.settings import FrameAugmentConfig
from ser_ray.training.learner import Learner
from ser_ray.training.settings import TrainConfig
from ser_ray.training.learner import deal  # GONE

FRAMES = (120, 240)  # shortest and longest clip: 2 to 4 seconds
SHARD = 250
SPEAKERS = 20
BATCH = 32
# Name, workers, and batch size of each.
RAY_RUNS = (
    ("Ray Train, 1 worker", 1, BATCH),
    ("Ray Train, 2 workers, half the batch each", 2, BATCH // 2),
    ("Ray Train, 2 workers, the batch each", 2, BATCH),
)


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        clips: Training clips.
        epochs: Epochs to time, besides a first one to warm up.
        json: File for the figures; none is written when empty.
    """

    clips: int = 1000
    epochs: int = 5
    json: str = ""


def make_store(root: str, clips: int, frames: tuple[int, int] = FRAMES) -> Store:
    """Write a store of clips of noise, of drawn lengths, all emotions in turn, by twenty speakers."""
    features, draw = FeatureConfig.for_kind("log_mel"), np.random.default_rng(0)
    type_ = feature_type(features)
    store = Store(storage.normalize(root))
    for start in range(0, clips, SHARD):
        names = [f"noise/{i:06}" for i in range(start, min(start + SHARD, clips))]
        values = [draw.normal(-50, 15, (draw.integers(*frames), features.n_mels)).astype(np.float32) for _ in names]
        texts = {name: [""] * len(names) for name in METADATA}
        texts |= {"utterance_id": names, "emotion": [EMOTIONS[int(name[-6:]) % len(EMOTIONS)] for name in names]}
        texts |= {"augmentation": ["none"] * len(names), "duration_s": [3.0] * len(names)}
        texts |= {"corpus": ["noise"] * len(names), "sha256": names}
        texts |= {"speaker_id": [f"noise_{int(name[-6:]) // len(EMOTIONS) % SPEAKERS}" for name in names]}
        texts |= {"sample_rate": [16_000] * len(names)}
        schema = row_schema(type_)
        arrays = [pa.array(texts[name], schema.field(name).type) for name in METADATA]
        store.write_shard(pa.Table.from_arrays([*arrays, encode(values, type_)], schema=schema), [])
    settings = {"features": vars(features), "augmentations": ["none"], "seed": 0}
    facts = {"format": FORMAT, "fingerprint": fingerprint(settings), "clips_digest": "", "complete": True}
    store.write_info({**settings, **facts, "counts": {"noise": {"featurized": clips}}})
    return store


def time_bare(store: Store, parts: Split, config: TrainConfig) -> list[float]:
    """Return the seconds of each epoch but the first in a loop without Ray."""
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    rows, features = store.rows(COLUMNS), FeatureConfig(**store.info()["features"])
    train, validation = (Examples.from_rows(rows.take(part), parts.labels) for part in (parts.train, parts.validation))
    network = build(ModelConfig(), features.n_mels, len(EMOTIONS))
    all_N = torch.arange(len(train))
    network.standardize.set(*train.statistics(all_N))
    augment = FrameAugment(FrameAugmentConfig(), features, network.standardize.mean_F.clone(), config.seed)
    counts_GC = torch.bincount(train.targets, minlength=len(EMOTIONS))[None]
    learner = Learner(network, config, counts_GC, augment, FrameAugmentConfig.mixup)
    ends = []
    for epoch in range(1, config.epochs + 1):
        batches = deal(all_N, config, epoch)
        learner.train_epoch(epoch, ((train, index_B) for index_B in batches), len(batches))
        learner.validate(validation)
        ends.append(time.time())
    return np.diff(ends).tolist()


def time_two_bare(store: Store, parts: Split, config: TrainConfig) -> list[float]:
    """Return what `time_bare` does, halved, for two processes at once: the seconds for an epoch's clips."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        both = [pool.submit(time_bare, store, parts, config) for _ in range(2)]
        return [seconds / 2 for one in both for seconds in one.result()]


def time_ray(store: Store, parts: Split, config: TrainConfig, root: str) -> tuple[list[float], float]:
    """Return the seconds of each epoch but the first under Ray Train, and those of the start."""
    started = time.time()
    network, changes = ModelConfig(), FrameAugmentConfig()
    fitted = fit(store, parts, parts.labels, network, config, changes, root, lambda epoch: None)
    ends = [epoch["time"] for epoch in fitted.history]
    return np.diff(ends).tolist(), ends[0] - started - fitted.history[0]["seconds"]


def main(argv: list[str]) -> None:
    flags = pick_config(Flags, parse_flags(argv, __doc__, Flags))
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(f"{folder}/store", flags.clips)
        indices, held_out = np.arange(flags.clips), np.arange(min(100, flags.clips))
        parts = Split(indices, held_out, held_out, LabelSet(), "", {})
        config = TrainConfig.for_model("log_mel_resnet", epochs=flags.epochs + 1, batch_size=BATCH, patience=1000)
        runs: dict[str, Any] = {"bare loop": {"epoch_s": time_bare(store, parts, config)}}
        if cores > 1:
            runs["two bare loops"] = {"epoch_s": time_two_bare(store, parts, config)}
        for name, workers, batch_size in RAY_RUNS[: 3 if cores > 1 else 1]:
            os.environ |= {"RAY_ADDRESS": "", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # as a job's own Ray
            ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
            connect()
            wish = TrainConfig.for_model(
                "log_mel_resnet",
                **{**vars(config), "num_workers": str(workers), "batch_size": batch_size, "device": "cpu"},
            )
            epochs, start = time_ray(store, parts, wish, f"{folder}/{name}")
            runs[name] = {"epoch_s": epochs, "start_s": start}
            ray.shutdown()
    medians = {name: float(np.median(run["epoch_s"])) for name, run in runs.items()}
    bare, two_bare = medians["bare loop"], medians.get("two bare loops")
    one, two, two_large = (medians.get(name) for name, *_ in RAY_RUNS)
    figures = {
        "clips": flags.clips,
        "cores": cores,
        "load_before": load,
        "epoch_ratio": one / bare,
        "two_workers": one / two if two else None,
        "two_workers_large": one / two_large if two_large else None,
        "two_bare": bare / two_bare if two_bare else None,
        "runs": runs,
        "versions": versions(),
        "machine": machine(),
    }
    table = [
        {"run": name, "epoch s (median)": s, "clips/s": flags.clips / s, "start s": runs[name].get("start_s", 0.0)}
        for name, s in medians.items()
    ]
    show_table(f"{flags.epochs} epochs of {flags.clips} clips, one thread a worker", table)
    say(f"Ray Train over the bare loop: {figures['epoch_ratio']:.3f}; load before: {load:.1f}")
    if two:
        say(f"two workers on two cores: {figures['two_workers']:.2f} times the clips per second of one on one,")
        say(f"{figures['two_workers_large']:.2f} times with as large a batch each")
        say(f"two bare loops at once: {figures['two_bare']:.2f} times those of one")
    if flags.json:
        storage.write_json(flags.json, figures)
        say(f"figures: {flags.json}")


if __name__ == "__main__":
    sys.exit(run_job(main))
