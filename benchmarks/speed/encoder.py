"""How fast a pretrained encoder is applied by the job, against bare loops of it; its memory; and a kill in the midst.

    python benchmarks/speed/encoder.py --encoder ~/whisper-base --data ~/corpora/ravdess --json encoder.json

Bare loops read, decode and compute, one process a core on a share of the clips each, without Ray or a store. The job
does the same clips on as many CPUs into a fresh store. Both are warm: processes are started and encoders loaded before
the clock runs. They take turns, since machines that others use are not as fast at all times, and the median of the
ratios of neighbours counts; wanted are 90 %. `--sizes` times encoders of usual sizes, with drawn weights, on clips of
3.7 s, in seconds of one CPU. Memory is that of the largest worker, on made speech and with a tiny encoder, since clips
and not weights shall tell; it should be the same for 500 and 5,000 clips. The kill ends driver and workers at once;
started again, the job keeps the shards that were there. Linux only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from ser_ray.base.console import say, show_table
from ser_ray.base.errors import UserError
from ser_ray.base.settings import parse_flags, pick_config, run_job
from ser_ray.features.encoder import Encoder
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.speech import made
from ser_ray.speech.corpora import Manifest, discover
from ser_ray.speech.utterance import Utterance
from ser_ray.store.store import Store
from ser_ray.store.task import read_clip

sys.path.extend(str(Path(__file__).parents[2] / room) for room in ("benchmarks", "tests"))

from featurize_job import JOB, time_job
from local_cluster import descendants
from shared import write_figures

CLIP_S = 3.7  # of a clip of RAVDESS, about
WHISPERS = {"tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12), "medium": (1024, 24, 16)}
OTHERS = ("wav2vec2_base", "wavlm_base", "wav2vec2_xlsr_300m", "wavlm_large")  # as torchaudio.models has them


def whisper_settings(width: int, layers: int, heads: int) -> dict[str, Any]:
    """Return `config.json` of a Whisper."""
    return {
        **{"model_type": "whisper", "d_model": width, "encoder_layers": layers, "encoder_attention_heads": heads},
        **{"encoder_ffn_dim": 4 * width, "num_mel_bins": 80, "max_source_positions": 1500},
    }


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        encoder: A pretrained encoder, as `jobs/featurize.py` takes it; without it speed is not measured.
        data: Folders of corpora; without them made speech.
        clips: How many clips speed is measured on.
        repeats: How often bare loops and job take turns.
        sizes: Time encoders of usual sizes.
        memory: Clips that memory is measured on; 0 twice for none.
        json: File for the figures; none is written when empty.
    """

    encoder: str = ""
    data: tuple[str, ...] = ()
    clips: int = 400
    repeats: int = 3
    sizes: bool = False
    memory: tuple[int, int] = (500, 5000)
    json: str = ""


def loop(encoder: Encoder, clips: list[Utterance]) -> float:
    """Read, decode and compute some clips on one core; return seconds of this process's CPU."""
    from ser_ray.features.kernels.spectra import use_one_core

    use_one_core()
    kernel, begun = encoder.kernel(), time.process_time()
    for clip in clips:
        kernel.rows(read_clip(clip, encoder)[1].waveform_T, clip.utterance_id, ("none",), 0)
    return time.process_time() - begun


def time_loops(pool: ProcessPoolExecutor, encoder: Encoder, clips: list[Utterance], cores: int) -> dict[str, float]:
    """Return clips per second, and per second of a CPU, of bare loops on all cores."""
    begun = time.perf_counter()
    cpu_s = sum(pool.map(loop, [encoder] * cores, [clips[core::cores] for core in range(cores)]))
    return {"clips_per_s": len(clips) / (time.perf_counter() - begun), "clips_per_cpu_s": len(clips) / cpu_s}


def time_warm_job(encoder: Encoder, clips: list[Utterance], manifest: Manifest) -> dict[str, float]:
    """Return the same of the job, on a Ray that runs."""
    from ser_ray.store.pipeline import featurize

    with tempfile.TemporaryDirectory() as folder:
        before, begun = _cpu_s(), time.perf_counter()
        featurize(replace(manifest, utterances=clips), FeaturizeConfig(encoder), f"{folder}/store")
        wall_s, cpu_s = time.perf_counter() - begun, _cpu_s() - before
        assert Store(f"{folder}/store").table().num_rows == len(clips)
    return {"clips_per_s": len(clips) / wall_s, "clips_per_cpu_s": len(clips) / cpu_s}


def _cpu_s() -> float:
    """Return the CPU seconds of this process and of all workers of its Ray."""
    ticks = 0
    for pid in [os.getpid(), *(pid for pid, name in descendants(os.getpid()).items() if name.startswith("ray::"))]:
        try:
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        except OSError:  # it ended
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def measure_speed(flags: Flags, data: list[str]) -> dict[str, Any]:
    """Let bare loops and job take turns."""
    import ray

    from ser_ray.base.cluster import connect

    encoder, manifest, cores = Encoder(flags.encoder), discover(data), os.cpu_count() or 1
    found = manifest.utterances
    clips = found[:: max(1, len(found) // flags.clips)][: flags.clips]
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 -- or what others run would cost the job more
    begun, turns = time.perf_counter(), []
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        connect()
        warm = clips[: 16 * cores]
        time_loops(pool, encoder, warm, cores), time_warm_job(encoder, warm, manifest)
        say(f"start and warm-up: {time.perf_counter() - begun:.0f} s")
        for _ in range(flags.repeats):
            turns.append((time_loops(pool, encoder, clips, cores), time_warm_job(encoder, clips, manifest)))
        ray.shutdown()
    audio_s = sum(read_clip(clip, encoder)[1].duration_s for clip in clips)
    ratios = {name: median(job[name] / bare[name] for bare, job in turns) for name in turns[0][0]}
    cpu_s = median(bare["clips_per_cpu_s"] for bare, _ in turns)
    return {
        "model": encoder.origin(),
        "clips": len(clips),
        "mean_clip_s": audio_s / len(clips),
        "turns": turns,
        "job_of_loops": ratios,
        "audio_s_per_cpu_s": audio_s / len(clips) * cpu_s,
    }


def measure_sizes() -> list[dict[str, Any]]:
    """Time encoders of usual sizes on one core."""
    import torch
    from torchaudio import models

    from ser_ray.features.kernels.whisper import WhisperEncoder

    torch.set_num_threads(1)
    rows, clip_1T = [], 0.1 * torch.randn(1, round(CLIP_S * 16_000))
    for name in (*WHISPERS, *OTHERS):
        network = WhisperEncoder(whisper_settings(*WHISPERS[name])) if name in WHISPERS else getattr(models, name)()
        hear = network.eval() if name in WHISPERS else network.eval().extract_features
        spent = []
        with torch.inference_mode():
            for _ in range(4):
                begun = time.process_time()
                hear(clip_1T)
                spent.append(time.process_time() - begun)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        row = {"encoder": f"whisper {name}" if name in WHISPERS else name, "million_parameters": parameters / 1e6}
        rows.append(row | {"memory_mb": parameters * 4 / 1e6, "cpu_s_per_hour_of_audio": median(spent) * 3600 / CLIP_S})
    return rows


def write_tiny(folder: str) -> str:
    """Write a tiny Whisper of drawn weights."""
    import safetensors.torch

    from ser_ray.features.kernels.whisper import WhisperEncoder

    Path(folder).mkdir(parents=True, exist_ok=True)
    settings = whisper_settings(16, 2, 2)
    Path(folder, "config.json").write_text(json.dumps(settings))
    safetensors.torch.save_file(WhisperEncoder(settings).state_dict(), Path(folder, "model.safetensors"))
    return folder


def measure_kill(words: list[str], data: list[str]) -> dict[str, Any]:
    """Kill a job once it has shards, and start it again.

    Raises:
        UserError: A shard that was there was made anew, or a clip is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder, "store", "shards")
        command = [sys.executable, str(JOB), *words, "--data", *data, "--store", f"{folder}/store"]
        job = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        while job.poll() is None and not list(shards.glob("*.parquet")):
            time.sleep(0.2)
        family = [job.pid, *descendants(job.pid)]
        for pid in family:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        job.wait()
        before = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.parquet")}
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        after = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.parquet")}
        rows = Store(f"{folder}/store").table().num_rows
    if any(after.get(name) != changed for name, changed in before.items()):
        raise UserError("shards that were there when the job was killed are no longer, or were made anew")
    return {"shards_before_kill": len(before), "shards": len(after), "rows": rows}


def main(argv: list[str]) -> None:
    flags = pick_config(Flags, parse_flags(argv, __doc__, Flags))
    temp = tempfile.gettempdir()
    data = list(flags.data) or made.write_speech(f"{temp}/made-{flags.clips}", flags.clips)
    figures: dict[str, Any] = {"cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    if flags.encoder:
        figures["speed"] = measure_speed(flags, data)
        for name, ratio in figures["speed"]["job_of_loops"].items():
            say(f"job, of what bare loops reach, {name.replace('_', ' ')}: {ratio:.1%}")
    if flags.sizes:
        figures["sizes"] = measure_sizes()
        show_table(f"On one core, clips of {CLIP_S} s", figures["sizes"])
    if any(flags.memory):
        words = ["--features", "encoder", "--encoder", write_tiny(f"{temp}/tiny-whisper")]
        runs = {}
        for clips in flags.memory:
            speech = made.write_speech(f"{temp}/made-{clips}", clips)
            runs[clips] = time_job(speech, None, words)
        figures["memory"] = runs
        show_table("Memory, tiny encoder", [{"clips": clips} | run for clips, run in runs.items()])
        figures["kill"] = measure_kill(words, made.write_speech(f"{temp}/made-{flags.memory[0]}", flags.memory[0]))
        say(f"killed and started again: {figures['kill']}")
    write_figures(flags.json, figures)


if __name__ == "__main__":
    run_job(main)
