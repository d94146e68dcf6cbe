"""How fast the whole featurize job is, start-up included, against its kernel on every core; and what memory it takes.

    python benchmarks/speed/featurize_job.py --clips 10000 --json featurize_job.json

The clips are made speech. The kernel is what a task does with each clip (read, decode, augment, features), on one
thread: alone, and in as many processes as there are cores, which share caches and memory. It is timed before the job
and after it, since machines that others use too are not as fast at all times, and the mean counts. The job runs in
processes of its own: on all cores, and on one. Wanted: on 10,000 clips at least 80 % of kernel speed × cores; on 64
clips done within 25 s; memory the same for 1,000 and 50,000 clips.
Nothing else should run on the machine: the load before the run stands in the results. Linux only.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow.parquet as pq

from ser_ray.base.console import say, show_table
from ser_ray.base.settings import parse_flags, pick_config, run_job
from ser_ray.features.kernels.spectra import use_one_core
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.speech import made
from ser_ray.speech.corpora import discover
from ser_ray.store.task import read_clip

sys.path.extend(str(Path(__file__).parents[2] / room) for room in ("benchmarks", "tests"))

from local_cluster import ROOT, descendants
from shared import pss_mb, write_figures

JOB = ROOT / "jobs" / "featurize.py"
SAMPLE = 1000  # clips that the kernel is timed on
WARM_UP = 50  # clips before those, which bring code into memory
# The job itself, on a Ray of so many CPUs.
ON_CPUS = """
import ray, runpy, sys
ray.init(address="local", num_cpus=int(sys.argv.pop(1)), include_dashboard=False, log_to_driver=False,
         logging_level="ERROR")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        clips: How many clips.
        made: Folder of made speech, kept for the next time; by default one in the system's folder of temporary files.
        scaling: Run the job on one core too.
        json: File for the figures; none is written when empty.
    """

    clips: int = 10_000
    made: str = ""
    scaling: bool = True
    json: str = ""


def time_kernel(data: list[str], clips: int) -> float:
    """Return clips per second of one thread, on clips from all over the corpora."""
    use_one_core()
    config = FeaturizeConfig()
    kernel = config.features.kernel()
    utterances = discover(data).utterances
    sample = utterances[:: max(1, len(utterances) // min(SAMPLE, clips))]

    for count in (WARM_UP, len(sample)):
        started = time.perf_counter()
        for utterance in sample[:count]:
            _, clip = read_clip(utterance, config.features)
            kernel.rows(clip.waveform_T, utterance.utterance_id, config.augment, config.seed)
    return len(sample) / (time.perf_counter() - started)


def time_all_cores(data: list[str], clips: int, cores: int) -> float:
    """Return clips per second of kernels on every core at once, without Ray."""
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        return sum(pool.map(time_kernel, [data] * cores, [clips] * cores))


def time_job(data: list[str], cpus: int | None, words: Sequence[str] = ("--features", "summary")) -> dict[str, Any]:
    """Run the job into a fresh store.

    Args:
        data: Roots.
        cpus: CPUs of its Ray; None leaves that to the job.
        words: Which features.

    Returns:
        `wall_s`, `first_shard_s` since the start, `clips_per_s` of the whole, `steady_clips_per_s` from each worker's
        first shard to the last one, and the peak proportional set sizes `driver_mb` and `worker_mb` (the largest).
    """
    folder = Path(tempfile.mkdtemp(prefix="featurize_job_"))
    prefix = [sys.executable, *(["-c", ON_CPUS, str(cpus)] if cpus else [])]
    started = time.time()
    job = subprocess.Popen(
        [*prefix, str(JOB), *words, "--data", *data, "--store", str(folder / "store")],
        stdout=subprocess.PIPE,
        text=True,
    )
    peaks = {"driver_mb": 0.0, "worker_mb": 0.0}
    watcher = threading.Thread(target=_watch, args=(job, peaks))
    watcher.start()
    said, _ = job.communicate()
    wall_s = time.time() - started
    watcher.join()
    if job.returncode:
        sys.exit(said)
    rows = json.loads((folder / "store" / "store.json").read_text())
    per_clip = len(rows["augmentations"])
    shards = sorted(
        (path.stat().st_mtime, pq.read_metadata(path).num_rows // per_clip)
        for path in (folder / "store" / "shards").glob("*.parquet")
    )
    clips = sum(count for _, count in shards)
    first, last = shards[0][0], shards[-1][0]
    begun = shards[: cpus or os.cpu_count() or 1]  # each worker's first: from then on all are at work
    steady_s = last - begun[-1][0]
    shutil.rmtree(folder)
    return {
        "wall_s": wall_s,
        "first_shard_s": first - started,
        "clips_per_s": clips / wall_s,
        "steady_clips_per_s": (clips - sum(count for _, count in begun)) / steady_s if steady_s else None,
        **peaks,
    }


def _watch(job: subprocess.Popen, peaks: dict[str, float]) -> None:
    """Note the peak memory of a job's driver and of the largest of its workers until it ends."""
    begun = time.time()
    while job.poll() is None:
        peaks["driver_mb"] = max(peaks["driver_mb"], pss_mb(job.pid))
        workers = [pid for pid, name in descendants(job.pid).items() if name.startswith("ray::")]
        peaks["worker_mb"] = max([peaks["worker_mb"], *map(pss_mb, workers)])
        time.sleep(1 if time.time() - begun < 30 else 5)  # looking costs time itself


def main(argv: list[str]) -> None:
    flags = pick_config(Flags, parse_flags(argv, __doc__, Flags))
    data = made.write_speech(flags.made or os.path.join(tempfile.gettempdir(), f"made-{flags.clips}"), flags.clips)
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    before = time_kernel(data, flags.clips), time_all_cores(data, flags.clips, cores)
    runs = {"all cores": time_job(data, None)}
    after = time_kernel(data, flags.clips), time_all_cores(data, flags.clips, cores)
    kernel, kernels = (mean(pair) for pair in zip(before, after, strict=True))
    if flags.scaling and cores > 1:
        runs["one core"] = time_job(data, 1)
    figures = {
        "clips": flags.clips,
        "cores": cores,
        "load_before": load,
        "kernel_before_and_after": [before, after],
        "kernel_clips_per_s": kernel,
        "kernels_clips_per_s": kernels,
        "share": runs["all cores"]["clips_per_s"] / (kernel * cores),
        "share_at_once": runs["all cores"]["clips_per_s"] / kernels,
        "scaling": _ratio(*(run["steady_clips_per_s"] for run in runs.values())) if len(runs) == 2 else None,
        "runs": runs,
    }
    show_table(f"Featurizing {flags.clips} clips", [{"job on": name} | run for name, run in runs.items()])
    say(f"kernel: {kernel:.1f} clips/s on one thread ({before[0]:.1f} before, {after[0]:.1f} after)")
    say(f"kernels on all {cores} cores at once: {kernels:.1f} clips/s ({before[1]:.1f} before, {after[1]:.1f} after)")
    said = f"{figures['share']:.1%} of kernel speed x {cores} cores, {figures['share_at_once']:.1%} of that at once"
    say(f"job, start-up included: {said}; load before: {load:.1f}")
    if figures["scaling"]:
        say(f"from one core to {cores} the steady state is {figures['scaling']:.2f} times as fast")
    write_figures(flags.json, figures)


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


if __name__ == "__main__":
    run_job(main)
