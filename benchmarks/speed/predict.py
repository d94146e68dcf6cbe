"""What prediction costs, end to end: decoding, resampling, features, and the default network with its five views.

    python benchmarks/speed/predict.py --json predict.json
    python benchmarks/speed/predict.py --minutes 120 --cores 2 --clips 100000

The sound is noise that swells like speech, 48 kHz and 16 bits; the network is untrained, which costs the same. Speed is
told as how many times faster it is than playing: 200 times is an hour in 18 seconds. The plain loop calls the functions
that each task calls, in one process on one core; plain loops at once do so on as many cores as the job has, which share
caches and memory, each a part of the recordings. The job does the same on Ray, whose start stands apart; once it runs,
from when each core has done a task to the end of the last one. Memory is the most that a process of its own had while
it answered one recording; that of a job on short clips is looked at every ten seconds.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import soundfile as sf

from ser_ray.base.console import say, show_table
from ser_ray.base.errors import UserError
from ser_ray.base.settings import choice, parse_flags, pick_config, run_job

sys.path.extend(str(Path(__file__).parents[2] / room) for room in ("benchmarks", "tests"))

from local_cluster import descendants
from shared import pss_mb, write_figures

RATE, CLIP_S = 48_000, 2.0
MOST_NAMES = 50_000  # Of one file; ext4 allows 65,000.
LOOK_S, SHOWN = 10.0, 12  # How often memory is looked at, and how many looks are shown.


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        minutes: Of sound for the plain loop and the job, in recordings of two minutes.
        cores: That the job may use.
        device: `cpu`, or `cuda` for the GPU that the job's workers share, with how busy it was by `nvidia-smi`.
        clips: Short clips of two seconds that are answered as well; 0 to leave that out.
        long_minutes: Length of the recording whose memory is compared with that of one minute; 0 to leave that out.
        json: File for the figures; none is written when empty.
        alone: Internal: a recording that this process answers, to tell what memory that takes.
    """

    minutes: int = 20
    cores: int = 2
    device: str = choice("cpu", "cuda")
    clips: int = 1000
    long_minutes: int = 180
    json: str = ""
    alone: str = ""


def swelling(seconds: float, seed: int) -> np.ndarray:
    """Return noise that swells three times a second."""
    noise = np.random.default_rng(seed).standard_normal(int(seconds * RATE)).astype(np.float32)
    return 0.1 * noise * (1.1 + np.sin(np.arange(len(noise)) * (6 * np.pi / RATE))).astype(np.float32)


def save_default_model(folder: Path) -> str:
    """Save an untrained model of the default network with the usual views."""
    import torch

    from ser_ray.features.arrays import shape_of
    from ser_ray.features.log_mel import LogMel
    from ser_ray.model.files import save_model
    from ser_ray.model.model import Model
    from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
    from ser_ray.speech.emotions import LabelSet

    features, spec, labels = LogMel(), LogMelResNetSpec(), LabelSet()
    torch.manual_seed(0)
    network = spec.build(shape_of(features.arrow_type()), len(labels.names)).eval()
    save_model(Model([network], spec, features, labels, views=spec.views), str(folder / "run" / "model"))
    return str(folder / "run")


def answer_plainly(run: str, paths: list[str]) -> float:
    """Answer recordings one after the other on one core; return the seconds."""
    from ser_ray.features.kernels.spectra import use_one_core
    from ser_ray.model.together import open_models
    from ser_ray.predict.inputs import Piece, find_pieces
    from ser_ray.predict.task import PredictConfig, answer_piece
    from ser_ray.predict.voices import open_hearing

    use_one_core()
    together, pieces, config = open_models([run]), find_pieces(paths), PredictConfig()

    def answer(piece: Piece) -> None:
        answer_piece(together, piece, open_hearing(piece, config.windows, together.features[0]), config)

    answer(pieces[0])  # warm
    started = time.perf_counter()
    for piece in pieces:
        answer(piece)
    return time.perf_counter() - started


def answer_by_a_job(run: str, folder: str, output: Path, flags: Flags) -> dict[str, Any]:
    """Answer a folder on Ray, which runs; return the seconds, the accounts, and memory over time.

    Returns:
        `seconds`; `pace_s`, those that it would take at the pace it had once it ran; `accounts`; `memory`, rows of
        seconds and MB of the driver and of the largest worker; and of a GPU how busy it was.
    """
    from ser_ray.model.together import open_models
    from ser_ray.predict.output import Output
    from ser_ray.predict.predict import predict_recordings
    from ser_ray.predict.task import PredictConfig

    together, started = open_models([run]).on(flags.device), time.perf_counter()
    with watch_gpu(flags.device) as busy, watch_memory() as memory:
        content = predict_recordings(together, [folder], PredictConfig(), Output(str(output)))
    seconds = time.perf_counter() - started
    gpu = {"gpu_busy": sum(busy) / max(1, len(busy)) / 100} if flags.device == "cuda" else {}
    pace_s = measure_pace(output, flags.cores)
    return {"seconds": seconds, "pace_s": pace_s, "accounts": content["recordings"], "memory": memory, **gpu}


def measure_pace(output: Path, cores: int) -> float:
    """Return the seconds that all windows take at the pace from when each core has done a task to the last one.

    Raises:
        UserError: There was one task alone.
    """
    files = (output / "windows").glob("*.parquet")
    tasks = sorted((path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in files)
    if len(tasks) < 2:
        raise UserError("one task did all windows, which tells no pace: choose more --minutes")
    windows = [rows for _, rows in tasks]
    begun = min(cores, len(tasks) - 1)
    return (tasks[-1][0] - tasks[begun - 1][0]) * sum(windows) / sum(windows[begun:])


@contextmanager
def watch_memory() -> Iterator[list[dict[str, float]]]:
    """Yield a list that grows by the memory, MB, of this process and of the largest worker."""
    rows: list[dict[str, float]] = []
    started, over = time.perf_counter(), threading.Event()

    def look() -> None:
        while not over.wait(LOOK_S):
            workers = [pid for pid, name in descendants(os.getpid()).items() if name.startswith("ray::MapBatches")]
            at_s = time.perf_counter() - started
            largest = max(map(pss_mb, workers), default=0.0)
            rows.append({"seconds": at_s, "driver, MB": pss_mb("self"), "largest worker, MB": largest})

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield rows
    finally:
        over.set()
        watcher.join()


@contextmanager
def watch_gpu(device: str) -> Iterator[list[float]]:
    """Yield a list that in the end holds how busy the GPU was, in per cent, four times a second."""
    busy: list[float] = []
    if device == "cpu":
        yield busy
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "250"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        yield busy
        watcher.terminate()
        busy += map(float, watcher.communicate()[0].split())


def memory_of(run: str, path: Path) -> float:
    """Return the most memory, MB, that a process of its own has while it answers one recording."""
    command = [sys.executable, __file__, "--alone", json.dumps([run, str(path)])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_memory(run: str, folder: Path, minutes: int) -> dict[str, float]:
    """Compare the memory of a long recording with that of a short one."""
    figures = {}
    for length in (1, minutes):
        path = folder / f"{length}.wav"
        with sf.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
            for k in range(length):
                file.write(swelling(60, k))
        figures[f"{length} minutes, MB"] = memory_of(run, path)
    return figures


def main(argv: list[str]) -> None:
    flags = pick_config(Flags, parse_flags(argv, __doc__, Flags))
    if flags.alone:
        run, path = json.loads(flags.alone)
        answer_plainly(run, [path])
        say(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run = save_default_model(folder)
        if flags.long_minutes:
            figures["memory"] = measure_memory(run, folder, flags.long_minutes)
            show_table("Memory of a process that answers one recording", [figures["memory"]])
        figures |= measure_speed(flags, run, folder)
    write_figures(flags.json, figures)


def measure_speed(flags: Flags, run: str, folder: Path) -> dict[str, Any]:
    """Compare a plain loop with a job, then answer short clips."""
    import ray

    from ser_ray.base.cluster import connect

    (folder / "long").mkdir()
    for k in range(-(-flags.minutes // 2)):
        sf.write(folder / "long" / f"{k}.wav", swelling(120, k), RATE)
    whole_s = 120 * -(-flags.minutes // 2)
    paths = [str(path) for path in sorted((folder / "long").iterdir())]
    plain_s = answer_plainly(run, paths)
    with ProcessPoolExecutor(flags.cores, mp_context=get_context("spawn")) as pool:
        shares = [paths[core :: flags.cores] for core in range(flags.cores)]
        at_once_s = max(pool.map(answer_plainly, [run] * flags.cores, shares))
    started = time.perf_counter()
    gpus = int(flags.device == "cuda")
    ray.init(address="local", num_cpus=flags.cores, num_gpus=gpus, include_dashboard=False, log_to_driver=False)
    connect()
    start_s = time.perf_counter() - started
    answer_by_a_job(run, str(folder / "long"), folder / "warm", flags)  # workers start and import
    job = answer_by_a_job(run, str(folder / "long"), folder / "job", flags)
    names = ("plain loop, one core", f"plain loops at once, cores: {flags.cores}", f"job, cores: {flags.cores}")
    names += ("the job once it runs",)
    each = dict(zip(names, (plain_s, at_once_s, job["seconds"], job["pace_s"]), strict=True))
    rows = [{"how": how, "seconds": took_s, "times as fast": whole_s / took_s} for how, took_s in each.items()]
    show_table(f"{whole_s / 60:.0f} minutes of 48 kHz", rows)
    whole, running = ((plain_s / flags.cores / job[name], at_once_s / job[name]) for name in ("seconds", "pace_s"))
    for when, (share, at_once) in (("The job", whole), ("Once it runs", running)):
        say(f"{when}, of {flags.cores} times one plain loop: {share:.0%}; of plain loops at once: {at_once:.0%}")
    say(f"Start of Ray: {start_s:.1f} s")
    figures = {"speed": rows, "whole": whole, "running": running, "start_s": start_s, "job": job}
    if flags.clips:
        (folder / "short").mkdir()
        for k in range(flags.clips):  # names of few files: what is read is the same, what is written is not
            if k % MOST_NAMES == 0:
                sf.write(sound := folder / "short" / f"{k}.wav", swelling(CLIP_S, 0), RATE)
            else:
                (folder / "short" / f"{k}.wav").hardlink_to(sound)
        clips = answer_by_a_job(run, str(folder / "short"), folder / "clips", flags)
        assert clips["accounts"]["answered"] == flags.clips, clips
        row = {"clips": flags.clips, "a second": flags.clips / clips["seconds"]}
        row |= {"once it runs": flags.clips / clips["pace_s"]}
        row |= {"GPU busy, long and short": f"{job['gpu_busy']:.0%}, {clips['gpu_busy']:.0%}"} if gpus else {}
        show_table("Short clips", [row])
        show_table("Memory meanwhile", clips["memory"][:: -(-len(clips["memory"]) // SHOWN) or 1])
        figures["clips"] = clips | {"count": flags.clips}
    ray.shutdown()
    return figures


if __name__ == "__main__":
    run_job(main)
