"""Ray as jobs need it: connected, quiet, and with a board for what the driver shall see."""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
import warnings
from typing import Any

import grpc
import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import services
from ray._private.authentication.authentication_token_setup import (
    ensure_token_if_auth_enabled,
    maybe_enable_token_auth_if_token_available,
)
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
from ray.exceptions import AuthenticationError, RayError

from ser_ray.base.errors import UserError
from ser_ray.base.registry import registered_specs

ANSWER_S = 5.0  # a cluster that is there answers long before
# The longest path below Ray's temp folder, here with the largest process id there is, and what macOS allows of such a
# path; Linux allows 107 bytes.
SOCKET = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
MAX_SOCKET_BYTES = 103


def connect(verbose: bool = False) -> None:
    """Join the cluster that `RAY_ADDRESS` names, as in a submitted job, or start one on this machine alone.

    Args:
        verbose: Show Ray's own log lines and warnings; otherwise they stay in its log files.

    Raises:
        UserError: The cluster cannot be joined, or no folder is fit for the sockets of one of this job's own.
    """
    # Ray Train's controller fetches reports this often (its default is 2 s), and a worker waits until its last report
    # has been fetched: epochs may be shorter than that.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    # Ray Data looks every 0.1 s what is done. With a thread that fetches what tasks tell, it needs two looks until it
    # gives a worker the next task; without, one.
    os.environ.setdefault("RAY_DATA_METADATA_PREFETCH_ON_THREAD", "0")
    if not verbose:
        quiet()
    if ray.is_initialized():
        return
    options = {"log_to_driver": verbose, "logging_level": logging.INFO if verbose else logging.ERROR}
    address = cluster_address()
    if address:
        check_address()
        try:
            ray.init(address=address, **options)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            why = " ".join(str(error.__cause__ or error).split())
            raise UserError(f"the Ray cluster at RAY_ADDRESS={address} cannot be joined: {why}") from None
    else:
        # Ray Train's helpers are processes too; without the first Ray warns of their number on small machines.
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
        ray.init(address="local", include_dashboard=False, **_folders(), **options)
    if not verbose:
        atexit.register(ray.shutdown)  # before Ray's own, which waits half a second for log lines: there are none


def cluster_address() -> str | None:
    """Return what `RAY_ADDRESS` says of a cluster to join; None where a job starts one of its own."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def check_address() -> None:
    """Refuse a `RAY_ADDRESS` at which there is no cluster to join, within seconds; Ray's own attempt takes minutes.

    Raises:
        UserError: It is no address of a cluster, none answers there, or it takes neither this machine nor its token.
    """
    address = cluster_address()
    if address is None or ray.is_initialized():
        return
    given, away = f"RAY_ADDRESS={address}", "`unset RAY_ADDRESS` to run on this machine alone"
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"{given} is where jobs are submitted to: do so by `ray job submit --working-dir . -- python jobs/...`, "
            f"or {away}"
        )
    if address != "auto" and not re.fullmatch(r"(\[[^]]+\]|[^:/]+):\d{1,5}", address):
        raise UserError(f"{given} is no address that a job can join: give HOST:PORT, such as 10.0.0.1:6379, or {away}")
    logging.getLogger("ray").setLevel(logging.ERROR)  # what is wrong is said here, in one line
    try:
        target = services.canonicalize_bootstrap_address(address)
    except ConnectionError:
        raise UserError(f"{given}, but no Ray cluster runs here: start one by `ray start --head`, or {away}") from None
    try:
        if address == "auto":  # Ray takes the token of this machine by itself, for such an address alone
            maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        ensure_token_if_auth_enabled(create_token_if_missing=False)
        answer = _ask(target)
    except AuthenticationError:
        answer = grpc.StatusCode.UNAUTHENTICATED
    if answer is grpc.StatusCode.UNAUTHENTICATED:
        raise UserError(
            f"the Ray cluster at {given} wants its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what `ray "
            f"get-auth-token` prints on the cluster (or put it into ~/.ray/auth_token), or {away}"
        )
    if answer is not grpc.StatusCode.OK:
        raise UserError(f"no Ray cluster answers at {given}: start it, correct the address, or {away}")
    if not services.find_node_ids():
        raise UserError(
            f"this machine is no node of the Ray cluster at {given}: make it one by `ray start --address={address}`, "
            f"submit the job to the cluster by `ray job submit`, or {away}"
        )


def _ask(target: str) -> grpc.StatusCode:
    """Return what the head of a cluster says to a question that needs its token."""
    with init_grpc_channel(target, GLOBAL_GRPC_OPTIONS) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            ask(b"", timeout=ANSWER_S, wait_for_ready=True)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def _folders() -> dict[str, str]:
    """Return options of `ray.init` by which a Ray of this job's own has its sockets where they can be.

    That is its usual folder, below `RAY_TMPDIR` or `TMPDIR`, unless batch systems made those too long. What Ray has no
    memory for still goes there.

    Raises:
        UserError: No folder is fit.
    """
    usual = get_default_ray_temp_dir()
    others = ("/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR"), os.path.expanduser("~"))
    for folder in (usual, *(os.path.join(other, "ray") for other in others if other)):
        if len(os.fsencode(os.path.join(folder, SOCKET))) <= MAX_SOCKET_BYTES and _is_writable(folder):
            spills = folder != usual and "RAY_object_spilling_directory" not in os.environ and _is_writable(usual)
            return {"_temp_dir": folder, **({"object_spilling_directory": usual} if spills else {})}
    most = MAX_SOCKET_BYTES - len(os.path.join("/ray", SOCKET))
    raise UserError(
        f"Ray can have its sockets neither in {usual} nor in /tmp/ray: set RAY_TMPDIR to a folder that can be written, "
        f"with a path of at most {most} bytes"
    )


def _is_writable(folder: str) -> bool:
    """Tell whether files can be made in a folder, which is made where it is not there."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


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
        self.is_read = True

    def add(self, note: dict[str, Any]) -> bool:
        """Pin up a note; tell whether anybody reads it."""
        self.notes.append(note)
        return self.is_read

    def since(self, count: int) -> list[dict[str, Any]]:
        """Return all notes but the first `count`."""
        return self.notes[count:]

    def leave(self) -> None:
        """Note that nobody reads any more."""
        self.is_read = False


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


def carry_registered() -> None:
    """Have what callers registered reach workers by value, since these cannot import a caller's own modules."""
    for spec in (*registered_specs("features"), *registered_specs("network")):
        module = sys.modules[spec.__module__]
        if spec.__module__ != "__main__" and not spec.__module__.startswith("ser_ray."):
            ray.cloudpickle.register_pickle_by_value(module)
