"""How fast an exported file answers, against the model itself, on one core.

    python benchmarks/speed/export.py --json export.json
    python benchmarks/speed/export.py --int8 --json int8.json

The default model, untrained, with its five views, is exported to ONNX and answers by onnxruntime on one thread; the
model answers by torch on one thread, features included. Calls alternate, and the median of each counts, so that a
machine that is busy slows both. Besides, features alone: the graph's transform, one strided convolution, against
`torch.fft.rfft` in float64 as the product computes it, both in onnxruntime; and how far the graph's resampling is from
the product's, on made speech. `--int8` instead times networks, and encoders of drawn weights, in float32 and int8.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import onnxruntime
import pyarrow as pa
import torch

from ser_ray.base.console import say, show_table
from ser_ray.base.settings import parse_flags, pick_config, run_job
from ser_ray.export.formats import OPSET, open_onnx, write_onnx
from ser_ray.export.graph import Answering, trace
from ser_ray.export.hearing import Ears, build_features
from ser_ray.export.proof import make_sounds, pad_sounds, prove
from ser_ray.export.quantize import time_both, write_int8
from ser_ray.features.arrays import encode_features, shape_of
from ser_ray.features.encoder import Encoder
from ser_ray.features.log_mel import LogMel
from ser_ray.features.spec import Features
from ser_ray.features.summary import Summary
from ser_ray.model.examples import Examples
from ser_ray.model.model import Model
from ser_ray.model.together import Together
from ser_ray.model.windows import Hearing, WindowConfig, as_file
from ser_ray.networks.cnn1d import Cnn1dSpec
from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
from ser_ray.networks.probe import ProbeSpec
from ser_ray.speech.emotions import LabelSet

sys.path.extend(str(Path(__file__).parents[2] / room) for room in ("benchmarks", "tests"))

from encoder import WHISPERS, whisper_settings
from shared import write_figures
from test_encoders import write_whisper

CASES = {"one clip of 3 s": (1, 3.0), "one of 30 s": (1, 30.0), "four of 3 s": (4, 3.0)}
ROUNDS = 15


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        json: File for the figures; none is written when empty.
        int8: Time networks and encoders in int8 against float32, and nothing else.
    """

    json: str = ""
    int8: bool = False


def untrained(spec: Any, features: Features) -> Model:
    """A model without views, whose inputs are brought to about 1."""
    torch.manual_seed(0)
    labels = LabelSet()
    network = spec.build(shape_of(features.arrow_type()), len(labels.names)).eval()
    if not isinstance(features, Encoder):
        network.standardize.mean_F.fill_(-40.0)
        network.standardize.std_F.fill_(20.0)
    return Model([network], spec, features, labels, temperature=0.05)


def default_model() -> Model:
    spec = LogMelResNetSpec()
    return replace(untrained(spec, LogMel()), views=spec.views)


def time_int8(folder: str) -> list[dict[str, Any]]:
    """Return milliseconds for a clip of 3 s, and megabytes, in float32 and int8."""
    models = {
        "log_mel_resnet": (untrained(LogMelResNetSpec(), LogMel()), "voices.", "aten."),
        "cnn1d": (untrained(Cnn1dSpec(), Summary()), "voices.", "aten."),
    }
    for size in ("tiny", "base"):
        encoder = Encoder(write_whisper(Path(folder, size), **whisper_settings(*WHISPERS[size])))
        models[f"probe on a Whisper {size}"] = untrained(ProbeSpec(), encoder), "ears.", "aten.linear"
    rows = []
    for name, (model, part, kind) in models.items():
        rate, paths = model.features.sample_rate, [f"{folder}/{name}{end}.onnx" for end in ("", "8")]
        write_onnx(trace(Answering([model], [1.0], rate, {}), rate), paths[0])
        maps = write_int8(*paths, part, kind)
        before, after = time_both(*(open_onnx(path, threads=1) for path in paths), rate)
        sizes = {f"{at}_mb": os.path.getsize(path) / 1e6 for at, path in zip(("float32", "int8"), paths, strict=True)}
        times = {"float32_ms": before, "int8_ms": after, "times_faster": before / after}
        rows.append({"what": name, "maps": maps, **times, **sizes})
    return rows


def measure_resampling(rate: int) -> dict[str, Any]:
    """Return how far sound resampled in the graph, and its frames, are from the product's."""
    ears, kernel, distances, frames = Ears(LogMel(), rate).eval(), LogMel().kernel(), [], []
    for sound_T in make_sounds(rate)[2:8]:
        with as_file(sound_T, rate) as file:
            ((_, wanted_T),) = Hearing(file, WindowConfig(window_s=30), LogMel()).sounds(16_000)
        waveform_1T, length_1 = torch.from_numpy(sound_T)[None], torch.tensor([len(sound_T)])
        with torch.inference_mode():
            made_T = ears.resample(waveform_1T, length_1)[0][0, : len(wanted_T)].numpy()
            made_NF = ears(waveform_1T, length_1)[0][0].numpy()
        wanted_NF = kernel.rows(wanted_T, "", ("none",), 0)[0]
        distances.append(10 * np.log10(np.square(made_T - wanted_T).mean() / np.square(wanted_T).mean()))
        frames.append(np.abs(made_NF[: len(wanted_NF)] - wanted_NF).mean())
    return {"rate": rate, "below_db": -float(max(distances)), "frames_db": float(np.mean(frames))}


def by_torch(model: Model) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    kernel, count = model.features.kernel(), len(model.labels.names)

    def run(sounds: Sequence[np.ndarray]) -> np.ndarray:
        rows = [kernel.rows(sound_T, "", ("none",), 0)[0] for sound_T in sounds]
        columns = {name: [""] * len(rows) for name in ("utterance_id", "corpus", "speaker_id")}
        columns["emotion"] = [model.labels.names[0]] * len(rows)
        table = pa.table({**columns, "features": encode_features(rows, model.features.arrow_type())})
        answer_NC = model.answer(Examples.from_table(table, model.labels, [""]))
        assert answer_NC.shape[1] == count
        return answer_NC

    return run


def alternate(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Return the median seconds of each."""
    taken: tuple[list[float], list[float]] = ([], [])
    for k in range(ROUNDS + 1):
        for run, seconds in zip((first, second), taken, strict=True):
            started = time.perf_counter()
            run()
            if k:  # the first call of each is its warm-up
                seconds.append(time.perf_counter() - started)
    return median(taken[0]), median(taken[1])


def open_features(features: torch.nn.Module, path: str) -> onnxruntime.InferenceSession:
    free = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, 16_000), torch.full((2,), 16_000)
    program = torch.export.export(features.eval(), example, dynamic_shapes=({0: free, 1: free}, {0: free}))
    names = {"input_names": ["waveform", "lengths"], "opset_version": OPSET, "verbose": False}
    torch.onnx.export(program, dynamo=True, **names).save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


class Plain(torch.nn.Module):
    """The product's own features."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = LogMel().kernel()

    def forward(self, waveform_BT: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features and each waveform's number of frames."""
        return self.kernel(waveform_BT, lengths_B)


def main(argv: list[str]) -> None:
    flags = pick_config(Flags, parse_flags(argv, __doc__, Flags))
    torch.set_num_threads(1)
    if flags.int8:
        with tempfile.TemporaryDirectory() as folder:
            rows = time_int8(folder)
        show_table("One clip of 3 s on one core", rows)
        write_figures(flags.json, {"int8": rows})
        return
    resampled = [measure_resampling(rate) for rate in (8_000, 44_100, 48_000)]
    show_table("Resampled in the graph: the difference from the product's sound, and of log-mel frames", resampled)
    model, rate, rows = default_model(), 16_000, []
    voice_T = np.resize(make_sounds(rate)[13], 30 * rate)
    with tempfile.TemporaryDirectory() as folder:
        path, started = f"{folder}/model.onnx", time.perf_counter()
        write_onnx(trace(Answering([model], [1.0], rate, {}), rate), path)
        exported_s, size = time.perf_counter() - started, os.path.getsize(path)
        run = open_onnx(path, threads=1)
        proof = prove(Together.of([model]), run, rate, {})
        say(f"exported in {exported_s:.0f} s, {size / 1e6:.1f} MB; {proof}")
        product = by_torch(model)
        plain, waves = open_features(Plain(), f"{folder}/a"), open_features(build_features(LogMel()), f"{folder}/b")
        for name, (count, seconds) in CASES.items():
            sounds = [voice_T[k * 1000 :][: round(seconds * rate)] for k in range(count)]
            padded_BT, lengths_B = pad_sounds(sounds)
            feed = {"waveform": padded_BT, "lengths": lengths_B}
            row = {"what": name}
            pairs = {
                ("onnxruntime_ms", "torch_ms"): (partial(run, padded_BT, lengths_B), partial(product, sounds)),
                ("waves_ms", "rfft_ms"): (partial(waves.run, None, feed), partial(plain.run, None, feed)),
            }
            for names, both in pairs.items():
                row |= {each: 1e3 * value for each, value in zip(names, alternate(*both), strict=True)}
            rows.append(row | {"times_torch": row["onnxruntime_ms"] / row["torch_ms"]})
    show_table("One core", rows)
    write_figures(
        flags.json, {"export_s": exported_s, "bytes": size, "proof": vars(proof), "cases": rows, "resampled": resampled}
    )


if __name__ == "__main__":
    run_job(main)
