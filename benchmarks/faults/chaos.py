"""What clusters do to jobs, done for real on three nodes of this machine, each beside the same job undisturbed.

    python benchmarks/faults/chaos.py --json chaos.json
    python benchmarks/faults/chaos.py --only "a node goes while featurizing"

Workers, nodes and drivers are killed with SIGKILL; object store and disk are made too small. A featurized store must
hold the same rows to the last bit; a training with as many workers as before must end with the same predictions; an
elastic one with scores within noise. Linux; the small disk needs the right to mount one, and is left out without.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ser_ray.base import storage
from ser_ray.base.console import say, show_table
from ser_ray.base.errors import UserError
from ser_ray.base.settings import parse_flags, pick_config, run_job
from ser_ray.speech import made
from ser_ray.store.shards import METADATA
from ser_ray.store.store import Store

sys.path.extend(str(Path(__file__).parents[2] / room) for room in ("benchmarks", "tests"))

from local_cluster import ROOT, LocalCluster, descendants, kill_tree
from shared import write_figures

FEATURIZE, TRAIN = ROOT / "jobs" / "featurize.py", ROOT / "jobs" / "train.py"
KILLS = 10
EPOCHS, KILL_AFTER = 6, 2  # of the trainings, and the epoch after which something is killed
NOISE = 0.15  # UAR between an elastic training that lost a node and one that did not, on so few clips
PATIENCE_S = 400


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        clips: Clips of made speech.
        made: Folder of made speech, kept for the next time; by default one in the system's folder of temporary files.
        only: Names of what to do; all when empty.
        json: File for the figures; none is written when empty.
    """

    clips: int = 2000
    made: str = ""
    only: tuple[str, ...] = ()
    json: str = ""


class Chaos:
    """The cluster, the speech, and what undisturbed jobs make of it."""

    def __init__(self, cluster: LocalCluster, data: list[str], folder: Path) -> None:
        self.cluster, self.data, self.folder = cluster, data, folder
        self.nodes = [cluster.add_node(), cluster.add_node()]

    def featurize(self, name: str, disturb: Callable[[Job], None] | None = None) -> tuple[pa.Table, Job]:
        """Featurize into a fresh store; return its rows."""
        root = self.folder / name
        job = Job(self.cluster, FEATURIZE, "--features", "summary", "--data", *self.data, "--store", root)
        job.root = root
        if disturb:
            disturb(job)
        job.end()
        return Store(str(root)).table([*METADATA, "features"]), job

    def train(self, name: str, workers: str, disturb: Callable[[Job], None] | None = None) -> tuple[dict, Job]:
        """Train on the undisturbed store; return the scores."""
        root = self.folder / name
        flags = ("--store", self.folder / "undisturbed", "--model", "cnn1d", "--patience", "100")
        flags = (*flags, "--epochs", EPOCHS, "--num-workers", workers)
        job = Job(self.cluster, TRAIN, *flags, "--output", root)
        if disturb:
            disturb(job)
        job.end()
        return storage.read_json(str(root / "metrics.json")) | {"root": root}, job


class Job:
    """A job in its own process whose output is read while it runs."""

    def __init__(self, cluster: LocalCluster, *command: object) -> None:
        self.cluster, self.command = cluster, command
        self.log = Path(tempfile.mkstemp(suffix=".log", dir=cluster.folder)[1])
        self.started = time.monotonic()
        self.start()

    def start(self) -> None:
        """Start, or start again after a kill."""
        with self.log.open("a") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, self.command)],
                env=self.cluster.env,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=self.cluster.folder,
            )

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Wait until a condition holds; false when the job ended before."""
        until = time.monotonic() + PATIENCE_S
        while not condition():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > until:
                raise RuntimeError(f"waited too long: {self.log.read_text()}")
            time.sleep(0.05)
        return True

    def says(self, text: str) -> bool:
        """Tell whether the job has printed a text."""
        return text in self.log.read_text()

    def end(self) -> None:
        """Wait until the job is done."""
        if self.process.wait(PATIENCE_S) != 0:
            raise RuntimeError(f"the job failed: {self.log.read_text()}")
        self.seconds = time.monotonic() - self.started

    def count_shards(self) -> int:
        """Return how many shards the store of the job holds."""
        return len(list((self.root / "shards").glob("*.parquet")))


def busy(cluster: LocalCluster, name: str) -> list[int]:
    """Return the workers of the cluster that are at a kind of work."""
    return [pid for node in cluster.nodes for pid, line in descendants(node.pid).items() if name in line]


def workers_die(chaos: Chaos) -> dict[str, Any]:
    """SIGKILL a featurizing worker ten times."""
    killed, chance = [], random.Random(0)

    def disturb(job: Job) -> None:
        while len(killed) < KILLS and job.wait_for(lambda: bool(busy(chaos.cluster, "MapBatches"))):
            with suppress(ProcessLookupError, IndexError):
                pid = chance.choice(busy(chaos.cluster, "MapBatches"))
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(chance.uniform(0.2, 0.6))

    rows, job = chaos.featurize("workers", disturb)
    return {"killed": len(killed), "same": rows.equals(chaos.rows), "seconds": job.seconds}


def node_goes_featurizing(chaos: Chaos) -> dict[str, Any]:
    """Take a node away while it featurizes."""

    def disturb(job: Job) -> None:
        if job.wait_for(lambda: job.count_shards() >= 1):
            kill_tree(chaos.nodes.pop())

    rows, job = chaos.featurize("node", disturb)
    chaos.nodes.append(chaos.cluster.add_node())
    return {"killed": 1, "same": rows.equals(chaos.rows), "seconds": job.seconds}


def driver_dies(chaos: Chaos) -> dict[str, Any]:
    """SIGKILL the driver of a featurization and start the same command again."""

    def disturb(job: Job) -> None:
        if job.wait_for(lambda: job.count_shards() >= 2):
            job.process.kill()
            job.process.wait()
            job.start()

    rows, job = chaos.featurize("driver", disturb)
    return {"killed": 1, "same": rows.equals(chaos.rows) and job.says("are there already"), "seconds": job.seconds}


def training_worker_dies(chaos: Chaos) -> dict[str, Any]:
    """SIGKILL the worker of a training after an epoch."""
    before, first = chaos.train("train-1", "1")
    killed = []

    def disturb(job: Job) -> None:
        if job.wait_for(lambda: job.says(f"epoch   {KILL_AFTER}/")):
            for pid in busy(chaos.cluster, "RayTrainWorker"):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    after, job = chaos.train("train-1-killed", "1", disturb)
    return {"killed": len(killed), **_compare(before, after, job, exactly=True), "undisturbed s": first.seconds}


def training_driver_dies(chaos: Chaos) -> dict[str, Any]:
    """SIGKILL the driver of a training after an epoch and start the same command again."""
    before, first = chaos.train("train-2", "1")

    def disturb(job: Job) -> None:
        if job.wait_for(lambda: job.says(f"epoch   {KILL_AFTER}/")):
            job.process.kill()
            job.process.wait()
            job.start()

    after, job = chaos.train("train-2-killed", "1", disturb)
    return {"killed": 1, **_compare(before, after, job, exactly=True), "undisturbed s": first.seconds}


def node_goes_training(chaos: Chaos) -> dict[str, Any]:
    """Take a node away from an elastic training."""
    before, first = chaos.train("elastic", "1:3")

    def disturb(job: Job) -> None:
        if job.wait_for(lambda: job.says(f"epoch   {KILL_AFTER}/")):
            kill_tree(chaos.nodes.pop())

    after, job = chaos.train("elastic-killed", "1:3", disturb)
    chaos.nodes.append(chaos.cluster.add_node())
    outcome = _compare(before, after, job)
    fewer = "2 workers on 2 nodes afterwards" if job.says("2 workers on 2 nodes") else "never on fewer nodes"
    return {"killed": 1, **outcome, "undisturbed s": first.seconds, "note": f"{outcome['note']}; {fewer}"}


def _compare(before: dict, after: dict, job: Job, exactly: bool = False) -> dict[str, Any]:
    """Compare a disturbed training with an undisturbed one; epochs that were done twice are counted."""
    done = [
        line.split("epoch")[1].split("/")[0].strip() for line in job.log.read_text().splitlines() if "epoch  " in line
    ]
    twice = len(done) - len(set(done))
    one, two = (pq.read_table(scores["root"] / "predictions.parquet") for scores in (before, after))
    same = one.equals(two) if exactly else abs(before["uar"] - after["uar"]) < NOISE
    note = f"UAR {before['uar']:.3f}, disturbed {after['uar']:.3f}; {twice} epochs twice"
    return {"same": same and twice <= 1 and len(set(done)) == EPOCHS, "seconds": job.seconds, "note": note}


def object_store_is_small(chaos: Chaos) -> dict[str, Any]:
    """Train on rows that are more than the smallest object store that Ray allows, 75 MB."""
    with LocalCluster(2, "--object-store-memory=78643200") as small:
        root = chaos.folder / "small"
        flags = ("--data", *chaos.data, "--epochs", "1", "--width", "4", "--n-mels", "128", "--store", root / "store")
        job = Job(small, TRAIN, *flags, "--output", root / "run")
        job.end()
        (size,) = (line for line in job.log.read_text().splitlines() if line.startswith("Training rows"))
    return {"killed": 0, "same": (root / "run" / "metrics.json").exists(), "seconds": job.seconds, "note": size}


def disk_is_nearly_full(chaos: Chaos) -> dict[str, Any]:
    """Featurize onto a disk that is full after some shards."""
    disk = chaos.folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True).returncode:
        return {"killed": 0, "same": None, "note": "no right to mount a small disk"}
    try:
        job = Job(chaos.cluster, FEATURIZE, "--features", "summary", "--data", *chaos.data, "--store", disk / "store")
        code = job.process.wait(PATIENCE_S)
        last = job.log.read_text().splitlines()[-1]
        clear = code == 2 and "No space left" in last and "Traceback" not in job.log.read_text()
        info = Store(str(disk / "store")).info() or {}
        return {"killed": 0, "same": clear and not info.get("complete"), "note": last[-90:]}
    finally:
        subprocess.run(["umount", disk], check=False)


SCENES: dict[str, Callable[[Chaos], dict[str, Any]]] = {
    "a featurizing worker is killed ten times": workers_die,
    "a node goes while featurizing": node_goes_featurizing,
    "the driver of a featurization is killed": driver_dies,
    "a training worker is killed": training_worker_dies,
    "the driver of a training is killed": training_driver_dies,
    "a node goes while training": node_goes_training,
    "the object store is small": object_store_is_small,
    "the disk is nearly full": disk_is_nearly_full,
}


def main(argv: list[str]) -> None:
    flags = pick_config(Flags, parse_flags(argv, __doc__, Flags))
    if unknown := set(flags.only) - set(SCENES):
        raise UserError(f"--only {min(unknown)}: choose from {'; '.join(SCENES)}")
    data = made.write_speech(flags.made or os.path.join(tempfile.gettempdir(), f"made-{flags.clips}"), flags.clips)
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, LocalCluster() as cluster:
        chaos = Chaos(cluster, data, Path(folder))
        chaos.rows, undisturbed = chaos.featurize("undisturbed")
        say(f"undisturbed featurization: {undisturbed.seconds:.0f} s")
        for name in flags.only or SCENES:
            outcome = SCENES[name](chaos)
            table.append({"what": name, "same": outcome["same"], **outcome})
            say(f"{name}: {outcome}")
    show_table("Chaos", [{key: row.get(key) for key in ("what", "killed", "same", "seconds", "note")} for row in table])
    write_figures(flags.json, {"undisturbed_featurize_s": undisturbed.seconds, "rows": table})
    if any(row["same"] is False for row in table):
        sys.exit(1)


if __name__ == "__main__":
    run_job(main)
