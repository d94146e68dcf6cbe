"""Training workers as the cluster can bear them: counted, asked of its autoscaler, waited for."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

from ser_ray.base.cluster import cluster_address
from ser_ray.base.console import say
from ser_ray.base.errors import UserError

POLL_S = 0.5  # how often the driver looks whether nodes have come
SPEAK_S = 15.0  # how often it says that it is waiting
LAUNCH_S = 30.0  # an autoscaler that can bring nodes is at it by then


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
    return cluster_address() is not None


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
