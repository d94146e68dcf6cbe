"""What a search brings, and what it costs: TPE with early stopping against random search, side by side, and in memory.

    python benchmarks/speed/tune.py --data CORPORA --json tune.json

- A narrow `log_mel_resnet` on the first EmoBox fold of RAVDESS, judged on its validation speakers; the tested ones are
  never read. Random search trains `--trials` settings to the end. TPE with ASHA may spend as many epochs: wanted is a
  best validation UAR at least as high, or the same after at most 40 % of the epochs. Each with several seeds.
- The same trials one after the other and two at a time, one thread each. Wanted: at most 60 % of the time.
- Memory that rows take, in Ray's object store and in the trials' own processes, with eight trials at a time and with
  one, on made clips. Wanted: at most 1.5 times as much.

Nothing else should run on the machine. Each part can be left out, and run by itself another time.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from ser_ray.base.cluster import connect
from ser_ray.base.console import say, show_table
from ser_ray.base.errors import UserError
from ser_ray.base.settings import parse_flags, pick_config, run_job
from ser_ray.experiment.experiment import Experiment, choose_rows
from ser_ray.experiment.protocols import SplitConfig
from ser_ray.features.log_mel import LogMel
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
from ser_ray.networks.space import Space
from ser_ray.scores.run_folder import RunFolder
from ser_ray.search.search import Search, try_settings
from ser_ray.search.space import TuneConfig
from ser_ray.speech.corpora import discover
from ser_ray.store.pipeline import featurize
from ser_ray.store.rows import open_rows
from ser_ray.store.store import Store
from ser_ray.training.settings import Compute, TrainConfig

sys.path.extend(str(Path(__file__).parents[2] / room) for room in ("benchmarks", "tests"))

from local_cluster import descendants
from shared import FRAMES, make_store, pss_mb, write_figures

SPACE = {name: domain for name, domain in LogMelResNetSpec.space.items() if name not in ("width", "depth")}
MANY = 8  # trials whose memory is compared with that of one
SHORT = (4, 8)  # frames of the clips whose memory is taken off that of usual ones: what is left are rows
MEMORY_EPOCHS = 2
TRIAL = "ray::ImplicitFunc"  # the process of a trial of one worker
SAMPLE_S = 1.0  # looking at memory costs time itself
ALONE = 4  # trials whose memory is measured one at a time
TIMES = 3  # how often the time is taken


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        data: Folders, URIs or tables that hold corpora, RAVDESS among them.
        trials: Settings that random search tries.
        epochs: Epochs of a trial that is not stopped.
        width: Of the network; the default of trainings is 32.
        seeds: How many searches of each kind; 0 leaves them out.
        timed: Trials that are timed one after the other and two at a time; 0 leaves it out.
        memory_clips: Made clips for the comparison of memory; 0 leaves it out.
        json: File for the figures; none is written when empty.
    """

    data: tuple[str, ...] = ()
    trials: int = 8
    epochs: int = 12
    width: int = 8
    seeds: int = 3
    timed: int = 4
    memory_clips: int = 6000
    json: str = ""


@contextmanager
def ray_of(cpus: int) -> Iterator[None]:
    """Have a Ray of so many CPUs, whatever the machine has."""
    os.environ["RAY_ADDRESS"] = ""
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    connect()
    try:
        yield
    finally:
        ray.shutdown()


def experiment_of(flags: Flags, seed: int) -> Experiment:
    return Experiment(
        corpus=("ravdess",),
        split=SplitConfig("emobox"),
        network=LogMelResNetSpec(width=flags.width),
        train=TrainConfig.usual(LogMelResNetSpec, epochs=flags.epochs, seed=seed),
    )


def search(
    store: Store, experiment: Experiment, config: TuneConfig, folder: str, space: Space = SPACE
) -> list[dict[str, Any]]:
    """Return the trials of a search on CPUs, in the order in which they ended."""
    rows = choose_rows(open_rows(store), experiment)
    return try_settings(rows, Search(experiment, config, space, Compute(device="cpu")), RunFolder(folder))


def compare_searches(store: Store, flags: Flags, folder: str) -> dict[str, Any]:
    """Search at random and by TPE with ASHA, at equal epochs."""
    runs = []
    for seed in range(flags.seeds):
        todo = experiment_of(flags, seed)
        budget = flags.trials * flags.epochs
        wish = TuneConfig(num_samples=flags.trials, search="random", early_stopping=False)
        drawn = search(store, todo, wish, f"{folder}/random-{seed}")
        wish = TuneConfig(num_samples=3 * flags.trials)  # more than the budget allows: the rest does not count
        sought = search(store, todo, wish, f"{folder}/tpe-{seed}")
        best = max(trial["curve"][-1] for trial in drawn if trial["curve"])
        spent, reached, equal = 0, 0.0, None
        for trial in sought:
            spent += len(trial["curve"])
            if spent > budget:
                break
            reached = max([reached, *trial["curve"]])
            equal = spent if equal is None and reached >= best else equal
        runs.append(
            {
                "seed": seed,
                "random": best,
                "TPE + ASHA": reached,
                "epochs": budget,
                "as good after": equal,
            }
        )
    return {"searches": runs, "random": _mean(runs, "random"), "tpe": _mean(runs, "TPE + ASHA")}


def _mean(runs: list[dict[str, Any]], name: str) -> float:
    return float(np.mean([run[name] for run in runs]))


def time_side_by_side(store: Store, flags: Flags, folder: str) -> list[tuple[float, float]]:
    """Return the seconds that the same trials take one after the other on one core, and two at a time on two."""
    seconds = []
    for turn in range(TIMES):
        pair = []
        for cpus in (1, 2):
            with ray_of(cpus):
                wish = TuneConfig(num_samples=flags.timed, search="random", early_stopping=False)
                started = time.time()
                search(store, experiment_of(flags, 0), wish, f"{folder}/at-{cpus}-{turn}")
                pair.append(time.time() - started)
        seconds.append(tuple(pair))
    return seconds


def measure_trials(store: Store, trials: int, folder: str) -> tuple[float, list[float]]:
    """Train so many trials at a time; return the most memory, MB, of Ray's object store, and of each trial's own."""
    shared, own, over = 0.0, {}, threading.Event()

    def watch() -> None:
        nonlocal shared
        while not over.wait(SAMPLE_S):
            there = descendants(os.getpid())
            shared = max(shared, sum(pss_mb(pid, "Pss_Shmem") for pid in [os.getpid(), *there]))
            for pid, name in there.items():
                if name.startswith(TRIAL):
                    own[pid] = max(own.get(pid, 0.0), pss_mb(pid, "Pss_Anon"))

    network = LogMelResNetSpec(width=4)
    todo = Experiment(network=network, train=TrainConfig.usual(network, epochs=MEMORY_EPOCHS))
    with ray_of(MANY):
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            wish = TuneConfig(num_samples=trials, search="random", early_stopping=False, max_concurrent=trials)
            search(store, todo, wish, folder, {"learning_rate": SPACE["learning_rate"]})
        finally:
            over.set()
            watcher.join()
    return shared, list(own.values())


def compare_memory(flags: Flags, folder: str) -> dict[str, Any]:
    """Return the memory that rows take with one trial and with many, MB.

    It is what Ray's object store holds, and what a trial's own memory has more of than that of a trial on as many clips
    that are very short: these take the same steps, on windows of the same size. The mean of several trials counts,
    since two of the same kind differ by tens of MB.
    """
    rows = {}
    stores = {
        kind: make_store(f"{folder}/{kind}", flags.memory_clips, frames)
        for kind, frames in (("short", SHORT), ("usual", FRAMES))
    }
    for trials, times in ((1, ALONE), (MANY, 1)):
        for kind, store in stores.items():
            runs = [measure_trials(store, trials, f"{folder}/{kind}-{trials}-{k}") for k in range(times)]
            name = f"{trials} at a time, {kind} clips"
            rows[f"{name}: object store"] = float(np.mean([shared for shared, _ in runs]))
            rows[f"{name}: each trial"] = [round(each) for _, own in runs for each in own]
        shared, own = (
            usual - short
            for short, usual in (
                [float(np.mean(rows[f"{trials} at a time, {kind} clips: {what}"])) for kind in ("short", "usual")]
                for what in ("object store", "each trial")
            )
        )
        rows[f"{trials} trials"] = shared + trials * own
    rows["decoded"] = 1000 * (open_rows(stores["usual"]).decoded_gb - open_rows(stores["short"]).decoded_gb)
    return rows


def main(argv: list[str]) -> None:
    flags = pick_config(Flags, parse_flags(argv, __doc__, Flags))
    if not flags.data:
        raise UserError("--data is missing: name the folders that hold your corpora")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        with ray_of(os.cpu_count() or 1):
            config = FeaturizeConfig(LogMel())
            store = featurize(discover(flags.data), config, f"{folder}/store")
            figures = compare_searches(store, flags, folder) if flags.seeds else {}
        if flags.timed:
            figures["seconds"] = time_side_by_side(store, flags, folder)
            figures["side_by_side"] = float(np.median([two / one for one, two in figures["seconds"]]))
        if flags.memory_clips:
            figures["rows_mb"] = compare_memory(flags, folder)
            figures["memory_ratio"] = figures["rows_mb"][f"{MANY} trials"] / figures["rows_mb"]["1 trials"]
    if flags.seeds:
        show_table("Best validation UAR at equal epochs", [_said(run) for run in figures["searches"]])
        say(f"mean of random search {figures['random']:.1%}, of TPE with ASHA {figures['tpe']:.1%}")
    if flags.timed:
        said = ", ".join(f"{one:.0f} and {two:.0f}" for one, two in figures["seconds"])
        say(f"one after the other and two at a time, seconds: {said}")
        say(f"two at a time take {figures['side_by_side']:.0%} of the time, in the median")
    if flags.memory_clips:
        say(f"rows of {MANY} trials take {figures['memory_ratio']:.2f} times the memory of those of one")
    say(f"load before: {load:.1f}")
    facts = {"trials": flags.trials, "epochs": flags.epochs, "width": flags.width, "load_before": load}
    write_figures(flags.json, {**facts, **figures})


def _said(run: dict[str, Any]) -> dict[str, Any]:
    after = run["as good after"]
    return {**run, "as good after": "–" if after is None else f"{after} epochs, {after / run['epochs']:.0%}"}


if __name__ == "__main__":
    run_job(main)
