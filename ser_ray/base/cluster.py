"""Ray as jobs need it: connected, quiet, and with a board for what the driver shall see."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from ser_ray.base.errors import UserError

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
