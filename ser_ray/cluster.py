"""Ray as jobs need it: connected, quiet, and asked for what is there."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from ser_ray.errors import UserError

POLL_S = 0.5  # how often the driver looks for news


def connect(verbose: bool = False) -> None:
    """Join the cluster that `RAY_ADDRESS` names, as in a submitted job, or start one on this machine alone.

    Args:
        verbose: Show Ray's own log lines and warnings; otherwise they stay in its log files.

    Raises:
        UserError: The cluster does not answer.
    """
    # Ray Train's controller fetches reports this often (its default is 2 s), and a worker waits until its last report
    # has been fetched: epochs may be shorter than that.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    if not verbose:
        quiet()
    if ray.is_initialized():
        return
    options = {"log_to_driver": verbose, "logging_level": logging.INFO if verbose else logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(**options)
        else:
            # Ray Train's helpers are processes too; without the first Ray warns of their number on small machines.
            os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
            ray.init(address="local", include_dashboard=False, **options)
    except ConnectionError as error:
        raise UserError(f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}") from None


def quiet() -> None:
    """Keep Ray's progress bars, log lines and warnings off the terminal."""
    import ray.data

    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    warnings.filterwarnings("ignore", module=r"ray(\.|$)")
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@ray.remote(num_cpus=0)
class Board:
    """Where work on the cluster pins up what the driver shall see, in order."""

    def __init__(self) -> None:
        self.notes: list[dict[str, Any]] = []

    def add(self, note: dict[str, Any]) -> None:
        """Pin up a note."""
        self.notes.append(note)

    def since(self, count: int) -> list[dict[str, Any]]:
        """Return all notes but the first `count`."""
        return self.notes[count:]


@ray.remote(num_cpus=0)
class Brake:
    """Where the driver asks trainings to end at their next epoch, by name."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def pull(self, name: str) -> None:
        """Ask a training to end."""
        self.names.add(name)

    def is_pulled(self, name: str) -> bool:
        """Tell a training whether it should end."""
        return name in self.names


@contextmanager
def following(board: ray.actor.ActorHandle, show: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call `show` for each note on the board as it comes, until the context ends and the last has been shown."""
    over = threading.Event()

    def follow() -> None:
        seen, last = 0, False
        while not last:
            last = over.wait(POLL_S)
            for note in ray.get(board.since.remote(seen)):
                seen += 1
                show(note)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def count_resources() -> tuple[int, int]:
    """Return the whole CPUs and GPUs of the cluster."""
    total = ray.cluster_resources()
    return int(total.get("CPU", 0)), int(total.get("GPU", 0))


@dataclass(frozen=True)
class Workers:
    """How many training workers to start and what each takes.

    Attributes:
        count: A number, or `(min, max)` for elastic training.
        gpu: Whether each takes a GPU.
        resources: What each takes, by Ray's names.
    """

    count: int | tuple[int, int]
    gpu: bool
    resources: dict[str, float]


def plan_workers(num_workers: str, device: str, share: int = 1, others: float = 0) -> Workers:
    """Fit the wish of `--num-workers` and `--device` to the cluster.

    Args:
        num_workers: `auto`, a number, or `MIN:MAX`.
        device: `auto`, `cpu` or `cuda`.
        share: How many trainings have the cluster at the same time.
        others: CPUs that something else takes meanwhile, such as reading data.

    Raises:
        UserError: The wish is malformed, or the cluster lacks what it takes.
    """
    cpus, gpus = (max(1, number // share) if number else 0 for number in count_resources())
    gpu = device == "cuda" or (device == "auto" and gpus > 0)
    try:
        low, _, high = ("1" if num_workers == "auto" else num_workers).partition(":")
        least, most = int(low), int(high or low)
        if not 1 <= least <= most:
            raise ValueError
    except ValueError:
        raise UserError(f"--num-workers {num_workers}: give auto, a number from 1, or MIN:MAX") from None
    if num_workers == "auto" and gpu:
        least = most = max(gpus, 1)
    if gpu and least > gpus:
        raise UserError(f"{least} GPUs are needed and this cluster has {gpus}; use fewer --num-workers or --device cpu")
    if least > cpus:
        raise UserError(f"{least} workers need a CPU each and this cluster has {cpus}; use fewer --num-workers")
    largest = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    each = min(max(1, min(largest, cpus // most)), (cpus - others) / most)
    return Workers((least, most) if high else most, gpu, {"CPU": each, **({"GPU": 1} if gpu else {})})
