"""The featurize job killed for real at random moments, then started again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from local_cluster import descendants, kill_tree

from ser_ray.store import pipeline
from ser_ray.store.shards import METADATA
from ser_ray.store.store import Store

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
JOB = Path(__file__).parent.parent / "jobs" / "featurize.py"
# The job on a Ray of two CPUs, whatever the machine has, so that it takes long enough to be killed.
ON_TWO_CPUS = """
import ray, runpy, sys
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
CLIPS = 96
PATIENCE_S = 240  # before a process that hangs fails the test


@pytest.fixture
def again(job, made):
    """Start the job again, in this process: what was done lies on the disk alone."""

    def run(root):
        code, out, err = job("featurize", "--features", "summary", "--data", *made, "--store", root)
        assert (code, err) == (0, ""), err
        return out

    return run


def start(data, root):
    command = [sys.executable, "-c", ON_TWO_CPUS, JOB, "--features", "summary", "--data", *data, "--store", root]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root.parent, start_new_session=True
    )


def output(job):
    return job.stdout.read()


def content(root):
    return Store(str(root)).table([*METADATA, "features"])


def started(pid):
    """Return when a process started, which tells it from a later one with its number; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def wait_for(condition, job=None):
    """Wait until a condition holds; false when the job ended before."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if job and job.poll() is not None:
            return False
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
    return True


def shards(root):
    return {path.name: path.stat() for path in (root / "shards").glob("*.parquet")}


def kill_driver(job):
    """Kill the driver alone: what works for it must go by itself; Ray's agents take a minute, so they are helped."""
    processes = [(pid, started(pid), name) for pid, name in descendants(job.pid).items()]
    os.kill(job.pid, signal.SIGKILL)
    agents = {pid for pid, _, name in processes if "Agent" in name}
    left = [(pid, since) for pid, since, _ in processes if since]
    try:
        wait_for(lambda: not any(started(pid) == since for pid, since in left if pid not in agents))
    finally:
        for pid, since in left:
            if started(pid) == since:
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("kill", "seed"), [(kill_driver, 1), (kill_tree, 2)])
@pytest.mark.usefixtures("local_ray")
def test_a_killed_job_goes_on_where_it_was(again, made, made_store, tmp_path, kill, seed):
    root, chance = tmp_path / "store", random.Random(seed)
    job = start(made, root)
    wanted = chance.randint(1, 4)
    assert wait_for(lambda: len(shards(root)) >= wanted, job), output(job)
    time.sleep(chance.uniform(0, 0.2))
    kill(job)
    job.wait()
    before = shards(root)
    rows_before = sum(pq.read_metadata(root / "shards" / name).num_rows for name in before)
    (root / "shards" / "0123456789abcdef.parquet").write_bytes((root / "shards" / min(before)).read_bytes()[:-100])
    (root / "shards" / "fedcba9876543210.parquet.1a2b3c4d.tmp").write_bytes(b"PAR1")

    said = again(root)
    after = shards(root)
    kept = [name for name in before if name in after and same_file(before[name], after[name])]
    rows_kept = sum(pq.read_metadata(root / "shards" / name).num_rows for name in kept)
    assert rows_kept >= 0.9 * rows_before and f"{rows_before // 3} of {CLIPS} clips are there already" in said
    assert content(root).equals(content(made_store.root))
    assert not list(root.rglob("*.tmp")) and not list(root.glob("attempts/*"))
    counts = Store(str(root)).info()["counts"].values()
    assert sum(corpus["found"] for corpus in counts) == sum(corpus["featurized"] for corpus in counts) == CLIPS


def same_file(one, other):
    return (one.st_ino, one.st_mtime_ns) == (other.st_ino, other.st_mtime_ns)


@pytest.mark.usefixtures("local_ray")
def test_a_killed_worker_costs_its_task_only(again, made_store, tmp_path, monkeypatch):
    killed = tmp_path / "killed"

    def write(tasks, arguments):
        from ser_ray.store import task as room

        def read_or_die(utterance, config):
            if not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return read_clip(utterance, config)

        read_clip, room.read_clip = room.read_clip, read_or_die
        try:
            return room.ShardWriter(*arguments)(tasks)
        finally:
            room.read_clip = read_clip

    monkeypatch.setattr(pipeline, "write_in_task", write)
    root = tmp_path / "store"
    again(root)
    assert killed.exists() and content(root).equals(content(made_store.root))
    assert not list(root.glob("attempts/*")) and not Store(str(root)).rejects()
