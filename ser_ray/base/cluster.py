"""Ray as jobs need it: connected, quiet, and asked for what is there."""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

from ser_ray.base.console import say
from ser_ray.base.errors import UserError

POLL_S = 0.5  # how often the driver looks for news
SPEAK_S = 15.0  # how often it says that it is waiting
LAUNCH_S = 30.0  # an autoscaler that can bring nodes is at it by then


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
    if not verbose:
        atexit.register(ray.shutdown)  # before Ray's own, which waits half a second for log lines: there are none


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
    """Call `show` in a thread for each note on the board as it comes, until the context ends and the last was shown.

    What it raises ends the thread and is raised when the context ends.
    """
    over = threading.Event()
    raised: list[BaseException] = []

    def follow() -> None:
        seen, last = 0, False
        try:
            while not last:
                last = over.wait(POLL_S)
                for note in ray.get(board.since.remote(seen)):
                    seen += 1
                    show(note)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if raised:
        raise raised[0]


def count_resources() -> tuple[int, int]:
    """Return the whole CPUs and GPUs of the cluster."""
    return _count("CPU"), _count("GPU")


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

    What is missing is asked of the cluster's autoscaler, and waited for while it brings nodes.

    Args:
        num_workers: `auto`, a number, or `MIN:MAX`.
        device: `auto`, `cpu` or `cuda`; `auto` takes the GPUs that are there.
        share: How many trainings have the cluster at the same time.
        others: CPUs that something else takes meanwhile, such as reading data.

    Raises:
        UserError: The wish is malformed, or the cluster lacks what it takes.
    """
    least, most = parse_workers(num_workers)
    _, gpus = count_resources()
    gpu = device == "cuda" or (device == "auto" and gpus > 0)
    if gpu:
        await_resource("GPU", least, "use fewer --num-workers or --device cpu")
    await_resource("CPU", least, "use fewer --num-workers")
    cpus, gpus = (max(1, number // share) if number else 0 for number in count_resources())
    if num_workers == "auto" and gpu:
        least = most = max(gpus, 1)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest = max(int(node.get("CPU", 0)) for node in nodes if not gpu or node.get("GPU"))
    at_once = min(most, max(least, cpus))  # more workers of an elastic training come with more nodes
    each = min(max(1, min(largest, cpus // at_once)), (cpus - others) / at_once)
    count = (least, most) if ":" in num_workers else most
    return Workers(count, gpu, {"CPU": each, **({"GPU": 1} if gpu else {})})


def parse_workers(num_workers: str) -> tuple[int, int]:
    """Read the least and the most workers out of `--num-workers`; `auto` is 1.

    Raises:
        UserError: It is malformed.
    """
    low, _, high = ("1" if num_workers == "auto" else num_workers).partition(":")
    try:
        least, most = int(low), int(high or low)
    except ValueError:
        least = most = 0
    if not 1 <= least <= most:
        raise UserError(f"--num-workers {num_workers}: give auto, a number from 1, or MIN:MAX")
    return least, most


def await_resource(kind: str, count: int, advice: str) -> None:
    """Wait until the cluster has so many CPUs or GPUs, as long as its autoscaler is bringing nodes.

    A cluster of this job's own has no autoscaler.

    Args:
        kind: `CPU` or `GPU`.
        count: How many are needed.
        advice: What to do if they don't come.

    Raises:
        UserError: No node that could bring them is on its way.
    """
    here = _count(kind)
    if here >= count:
        return
    lack = f"{count} {kind}{'s are' if count > 1 else ' is'} needed and this cluster has"
    if not is_shared():
        raise UserError(f"{lack} {here}; {advice}")
    say(f"{lack} {here}: asking its autoscaler for more")
    request_resources(bundles=[{"CPU": 1, kind: 1}] * count)
    moved = spoke = time.monotonic()
    try:
        while (now_here := _count(kind)) < count:
            now = time.monotonic()
            if now_here != here or _is_launching():
                here, moved = now_here, now
            elif now - moved > LAUNCH_S:
                raise UserError(f"{lack} {here}; for {LAUNCH_S:.0f} s no node was coming; {advice}")
            if now - spoke > SPEAK_S:
                say(f"Waiting for nodes: {here} of {count} {kind}s are there")
                spoke = now
            time.sleep(POLL_S)
    finally:
        request_resources(bundles=[])  # what runs keeps its nodes; idle ones may go


def is_shared() -> bool:
    """Tell whether the cluster was there before this job, and may have an autoscaler."""
    return bool(os.environ.get("RAY_ADDRESS"))


def _count(kind: str) -> int:
    return int(ray.cluster_resources().get(kind, 0))


def _is_launching() -> bool:
    """Tell whether the autoscaler is bringing nodes: version 2 answers, version 1 leaves a note."""
    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        return bool(status.pending_launches or status.pending_nodes)
    note = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    report = json.loads(note).get("autoscaler_report") or {} if note else {}
    return bool(report.get("pending_launches") or report.get("pending_nodes"))
