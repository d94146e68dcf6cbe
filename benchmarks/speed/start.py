"""What a training costs before its first step: imports by process, and how many processes are started in turn.

    python benchmarks/speed/start.py --json start.json

- what a process imports, modules and seconds (the least of three, in processes of their own): `torch` alone, Ray Train
  with torch, which its controller needs, and a training's worker;
- three members trained under Ray Train on few made clips: the controllers and workers that were started, one after the
  other, and the seconds in which no network learned.

The number of modules does not depend on what else the machine does; seconds do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ser_ray.base.cluster import connect
from ser_ray.base.console import say, show_table
from ser_ray.base.settings import parse_flags, pick_config, run_job
from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
from ser_ray.speech.emotions import LabelSet
from ser_ray.store.rows import open_rows
from ser_ray.training.fit import train_many
from ser_ray.training.settings import Compute, FrameAugmentConfig, TrainConfig
from ser_ray.training.task import Method, Place, Task

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "tests")]

from local_cluster import descendants
from shared import make_store, write_figures

IMPORTS = {"torch": "torch", "Ray Train": "ray.train.torch", "a worker": "ser_ray.training.worker"}
TIMES = 3
STARTED = ("TrainController", "RayTrainWorker")
POLL_S = 0.2


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        members: Networks to train.
        epochs: Epochs of each.
        json: File for the figures; none is written when empty.
    """

    members: int = 3
    epochs: int = 2
    json: str = ""


def time_import(module: str) -> dict[str, float]:
    """Return how many modules an import brings, and its seconds."""
    code = (
        f"import sys, time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t, len(sys.modules))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(TIMES)
    ]
    return {"modules": int(runs[0][1]), "s": min(float(run[0]) for run in runs)}


def train_members(flags: Flags, folder: str) -> dict[str, Any]:
    """Train some members and return what was started for them."""
    rows = open_rows(make_store(f"{folder}/store", 96))
    config = TrainConfig.usual(LogMelResNetSpec, epochs=flags.epochs)
    method = Method(LogMelResNetSpec(width=8), rows.recipe.features, LabelSet(), config, FrameAugmentConfig())
    first = Task(method, rows, rows.take(np.arange(32)), "")
    tasks = [replace(first, root=f"{folder}/member-{k}", names={"member": k}) for k in range(flags.members)]
    found: dict[int, str] = {}
    over, learned = threading.Event(), []

    def watch() -> None:
        while not over.wait(POLL_S):
            for pid, name in descendants(os.getpid()).items():
                found.update((pid, kind) for kind in STARTED if kind in name)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.time()
    for _ in train_many(tasks, Place(Compute("1")), lambda epoch: learned.append(epoch["seconds"])):
        pass
    took = time.time() - started
    over.set()
    watcher.join()
    kinds = {kind: list(found.values()).count(kind) for kind in STARTED}
    return {"started": kinds, "s": took, "start_s": took - sum(learned)}


def main(argv: list[str]) -> None:
    flags = pick_config(Flags, parse_flags(argv, __doc__, Flags))
    imports = {name: time_import(module) for name, module in IMPORTS.items()}
    show_table("Imports", [{"process": name, **figures} for name, figures in imports.items()])
    connect()
    with tempfile.TemporaryDirectory() as folder:
        members = train_members(flags, folder)
    say(
        f"{flags.members} members: {members['started']} started; "
        f"{members['start_s']:.1f} of {members['s']:.1f} s without learning"
    )
    write_figures(flags.json, {"imports": imports, "members": members, "load": os.getloadavg()[0]})


if __name__ == "__main__":
    sys.exit(run_job(main))
