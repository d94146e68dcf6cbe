"""What benchmarks share: what machine it was, what a process takes of memory, a store of noise, where figures go."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ser_ray.base import storage
from ser_ray.base.console import say
from ser_ray.features.arrays import encode_features
from ser_ray.features.log_mel import LogMel
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.speech.emotions import EMOTIONS
from ser_ray.store.shards import METADATA, row_schema
from ser_ray.store.store import Store

FRAMES = (120, 240)  # shortest and longest clip of noise: 2 to 4 seconds
SHARD = 250
SPEAKERS = 20


def versions() -> dict[str, str]:
    packages = ("ser-ray", "torch", "librosa", "numpy", "soundfile", "soxr")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def machine() -> dict[str, Any]:
    import torch  # here, since the memory of a driver that does without is measured, too

    model = ""
    if platform.system() == "Linux":
        with open("/proc/cpuinfo") as file:
            model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    return {
        "system": platform.platform(),
        "processor": model or platform.processor(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def write_figures(path: str, figures: dict[str, Any]) -> None:
    """Write what was measured, and on which machine and versions; nothing where the path is empty."""
    if path:
        storage.write_json(path, {**figures, "versions": versions(), "machine": machine()})
        say(f"figures: {path}")


def pss_mb(pid: int, kind: str = "Pss") -> float:
    """Return the proportional set size of a process, MB: pages that it shares count by its share.

    Args:
        pid: The process.
        kind: `Pss` is all of it, `Pss_Anon` its own data, `Pss_Shmem` what it has of shared memory.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{kind}:")), 0.0)


def make_store(root: str, clips: int, frames: tuple[int, int] = FRAMES) -> Store:
    """Write a store of clips of noise, of drawn lengths, all emotions in turn, by twenty speakers."""
    features, draw = LogMel(), np.random.default_rng(0)
    type_ = features.arrow_type()
    schema = row_schema(type_)
    store = Store(storage.normalize(root))
    store.claim(FeaturizeConfig(features))
    for start in range(0, clips, SHARD):
        numbers = range(start, min(start + SHARD, clips))
        values = [draw.normal(-50, 15, (draw.integers(*frames), features.n_mels)).astype(np.float32) for _ in numbers]
        names, count = [f"noise/{i:06}" for i in numbers], len(numbers)
        columns = {name: [""] * count for name in METADATA}
        columns |= {"utterance_id": names, "sha256": names, "corpus": ["noise"] * count}
        columns |= {"emotion": [EMOTIONS[i % len(EMOTIONS)] for i in numbers]}
        columns |= {"speaker_id": [f"noise_{i // len(EMOTIONS) % SPEAKERS}" for i in numbers]}
        columns |= {"augmentation": ["none"] * count, "duration_s": [3.0] * count, "sample_rate": [16_000] * count}
        arrays = [pa.array(columns[name], schema.field(name).type) for name in METADATA]
        store.write_shard(pa.Table.from_arrays([*arrays, encode_features(values, type_)], schema=schema), [])
    counts = {"noise": {"featurized": clips}}
    store.write_info({**store.info(), "clips_digest": "", "complete": True, "counts": counts})
    return store
