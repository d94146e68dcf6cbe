"""What Ray Train costs over a bare loop, and what a second worker brings.

    python benchmarks/speed/train.py --json train.json

The same network takes the same steps on the same log-mel clips (made ones: normal noise of the usual lengths)

- in a bare PyTorch loop with the clips in memory, without Ray or checkpoints, on one thread;
- in two such loops at once that know nothing of each other: what a second core of this machine brings at all;
- by `training.fit.train` under Ray Train, checkpoints included, with one worker on one core;
- and there with two workers on two cores, at the same batch size in all, and at the same one for each.

An epoch's time runs from the end of one to the end of the next. Wanted: `epoch_ratio`, Ray's over the bare loop's,
at most 1.05; two workers at least 1.7 times the clips per second of one. Nothing else should run on the machine.

    python benchmarks/speed/train.py --device cuda --clips 1440 --epochs 5 --json train.json

On a GPU, for batches of 32, 128 and 512 clips and in bfloat16 with augmentation, mixup and averaging of weights, the
clips per second of an epoch's steps (validation and checkpoints apart)

- in a bare loop whose steps are launched kernel by kernel, and in one whose steps are captured in a CUDA graph, with
  the part of the time in which the GPU was busy, by torch's profiler;
- by `training.fit.train` under Ray Train, and by `train_many` with three members on one start of its workers.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from ser_ray.base.cluster import connect
from ser_ray.base.console import say, show_table
from ser_ray.base.errors import UserError
from ser_ray.base.settings import choice, parse_flags, pick_config, run_job
from ser_ray.features.arrays import shape_of
from ser_ray.model.examples import Examples
from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
from ser_ray.speech.emotions import LabelSet
from ser_ray.store.rows import open_rows
from ser_ray.training.batches import deal_batches
from ser_ray.training.capture import Captured
from ser_ray.training.fit import train, train_many
from ser_ray.training.frames import FrameAugment
from ser_ray.training.learner import Learner
from ser_ray.training.settings import Compute, FrameAugmentConfig, TrainConfig
from ser_ray.training.task import Method, Place, Task

sys.path.append(str(Path(__file__).parents[1]))  # where benchmarks have what they share

from shared import make_store, write_figures

BATCH = 32
GPU_BATCHES = (32, 128, 512)
MEMBERS = 3
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
        device: `cpu`, or `cuda` for what one GPU does.
        json: File for the figures; none is written when empty.
    """

    clips: int = 1000
    epochs: int = 5
    device: str = choice("cpu", "cuda")
    json: str = ""


def make_bare(task: Task, device: str = "cpu") -> tuple[Learner, Examples]:
    """Return a learner without Ray, and the rows that it trains on, on a device."""
    method, config = task.method, task.method.config
    torch.manual_seed(config.seed)
    rows = Examples.from_rows(task.train, method.labels)
    network = method.network.build(shape_of(method.features.arrow_type()), len(method.labels.names))
    network.standardize.set(*rows.statistics(torch.arange(len(rows))))
    network.to(device)
    augment = FrameAugment(method.changes, method.features, network.standardize.mean_F.clone(), config.seed)
    return Learner(network, config, torch.from_numpy(task.counts()), augment), rows.to(torch.device(device))


def take_epoch(learner: Learner, rows: Examples, epoch: int) -> None:
    batches = deal_batches(torch.arange(len(rows), device=rows.targets.device), learner.config, epoch)
    learner.train_epoch(epoch, ((rows, index_B) for index_B in batches), len(batches))


def time_bare(task: Task) -> list[float]:
    """Return the seconds of each epoch but the first in a loop without Ray."""
    torch.set_num_threads(1)
    learner, train_rows = make_bare(task)
    validation = Examples.from_rows(task.validation, task.method.labels)
    ends = []
    for epoch in range(1, task.method.config.epochs + 1):
        take_epoch(learner, train_rows, epoch)
        learner.validate(validation)
        ends.append(time.time())
    return np.diff(ends).tolist()


def time_two_bare(task: Task) -> list[float]:
    """Return what `time_bare` does, halved, for two processes at once: the seconds for an epoch's clips."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        both = [pool.submit(time_bare, task) for _ in range(2)]
        return [seconds / 2 for one in both for seconds in one.result()]


def time_ray(task: Task, workers: int) -> tuple[list[float], float]:
    """Return the seconds of each epoch but the first under Ray Train, and those of the start."""
    started = time.time()
    fitted = train(task, Place(Compute(num_workers=str(workers), device="cpu")), lambda epoch: None)
    ends = [epoch["time"] for epoch in fitted.history]
    return np.diff(ends).tolist(), ends[0] - started - fitted.history[0]["seconds"]


def time_gpu(task: Task, captured: bool) -> dict[str, Any]:
    """Return clips per second of each epoch's steps but the first's in a bare loop, and how busy the GPU was then."""
    learner, rows = make_bare(task, "cuda")
    if captured:
        learner.take = Captured(learner.take)
    speeds = []
    for epoch in range(1, task.method.config.epochs + 1):
        started = time.perf_counter()
        take_epoch(learner, rows, epoch)  # it waits for the GPU at its end
        speeds.append(len(rows) / (time.perf_counter() - started))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        started = time.perf_counter()
        take_epoch(learner, rows, task.method.config.epochs)
        took_us = 1e6 * (time.perf_counter() - started)
    busy_us = sum(event.self_device_time_total for event in profiler.key_averages())
    if captured and learner.take.refusal:
        say(f"not captured: {learner.take.refusal}")
    return {"clips_per_s": speeds[1:], "busy": busy_us / took_us}


def time_gpu_ray(tasks: list[Task]) -> dict[str, Any]:
    """Return clips per second of each epoch's steps but the first's under Ray Train, and the seconds of it all."""
    started, seen = time.time(), []
    place = Place(Compute(num_workers="1", device="cuda"))
    for _ in train_many(tasks, place, seen.append):
        pass
    start = seen[0]["time"] - started - seen[0]["seconds"]
    return {
        "clips_per_s": [e["clips_per_s"] for e in seen if e["epoch"] > 1],
        "start_s": start,
        "s": time.time() - started,
    }


def measure_gpu(flags: Flags) -> None:
    if not torch.cuda.is_available():
        raise UserError("no GPU is here: leave --device cuda out")
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = open_rows(make_store(f"{folder}/store", flags.clips))
        validation = rows.take(np.arange(min(100, flags.clips)))
        for batch in GPU_BATCHES:
            config = TrainConfig.usual(LogMelResNetSpec, epochs=flags.epochs + 1, batch_size=batch, patience=1000)
            method = Method(LogMelResNetSpec(), rows.recipe.features, LabelSet(), config, FrameAugmentConfig())
            task = Task(method, rows, validation, f"{folder}/{batch}")
            for captured in (False, True):
                runs[f"bare loop, {'captured' if captured else 'as usual'}, batch {batch}"] = time_gpu(task, captured)
        connect()
        for batch in (GPU_BATCHES[0], GPU_BATCHES[-1]):
            one = replace(task, method=replace(method, config=replace(config, batch_size=batch)))
            runs[f"Ray Train, batch {batch}"] = time_gpu_ray([replace(one, root=f"{folder}/ray-{batch}")])
        many = [replace(one, root=f"{folder}/member-{k}", names={"member": k}) for k in range(MEMBERS)]
        runs[f"Ray Train, {MEMBERS} members, batch {batch}"] = time_gpu_ray(many)
    card = torch.cuda.get_device_name()
    table = [
        {
            "run": name,
            "clips/s (median)": float(np.median(run["clips_per_s"])),
            "GPU busy": run.get("busy", float("nan")),
            "start s": run.get("start_s", float("nan")),
        }
        for name, run in runs.items()
    ]
    show_table(f"{flags.epochs} epochs of {flags.clips} clips on one {card}", table)
    write_figures(flags.json, {"clips": flags.clips, "card": card, "runs": runs})


def main(argv: list[str]) -> None:
    flags = pick_config(Flags, parse_flags(argv, __doc__, Flags))
    if flags.device == "cuda":
        measure_gpu(flags)
        return
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        rows = open_rows(make_store(f"{folder}/store", flags.clips))
        config = TrainConfig.usual(LogMelResNetSpec, epochs=flags.epochs + 1, batch_size=BATCH, patience=1000)
        method = Method(LogMelResNetSpec(), rows.recipe.features, LabelSet(), config, FrameAugmentConfig())
        task = Task(method, rows, rows.take(np.arange(min(100, flags.clips))), f"{folder}/bare")
        runs: dict[str, Any] = {"bare loop": {"epoch_s": time_bare(task)}}
        if cores > 1:
            runs["two bare loops"] = {"epoch_s": time_two_bare(task)}
        for name, workers, batch_size in RAY_RUNS[: 3 if cores > 1 else 1]:
            os.environ |= {"RAY_ADDRESS": "", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # as a job's own Ray
            ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
            connect()
            own = replace(method, config=replace(config, batch_size=batch_size))
            epochs, start = time_ray(replace(task, method=own, root=f"{folder}/{name}"), workers)
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
    write_figures(flags.json, figures)


if __name__ == "__main__":
    sys.exit(run_job(main))
