"""How fast an exported file answers, against the model itself, on one core.

    python benchmarks/speed/export.py --json export.json

The default model, untrained, with its five views, is exported to ONNX and answers by onnxruntime on one thread; the
model answers by torch on one thread, features included. Calls alternate, and the median of each counts, so that a
machine that is busy slows both. Besides, features alone: the graph's transform, one strided convolution, against
`torch.fft.rfft` in float64 as the product computes it, both in onnxruntime.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import onnxruntime
import pyarrow as pa
import torch

from ser_ray.base.console import say, show_table
from ser_ray.base.settings import parse_flags, pick_config, run_job
from ser_ray.export.formats import OPSET, open_onnx, write_onnx
from ser_ray.export.graph import Answering, trace
from ser_ray.export.hearing import build_features
from ser_ray.export.proof import make_sounds, pad_sounds, prove
from ser_ray.features.arrays import encode_features, shape_of
from ser_ray.features.log_mel import LogMel
from ser_ray.model.examples import Examples
from ser_ray.model.model import Model
from ser_ray.model.together import Together
from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
from ser_ray.speech.emotions import LabelSet

sys.path.append(str(Path(__file__).parents[1]))  # where benchmarks have what they share

from shared import write_figures

CASES = {"one clip of 3 s": (1, 3.0), "one of 30 s": (1, 30.0), "four of 3 s": (4, 3.0)}
ROUNDS = 15


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        json: File for the figures; none is written when empty.
    """

    json: str = ""


def default_model() -> Model:
    torch.manual_seed(0)
    features, spec, labels = LogMel(), LogMelResNetSpec(), LabelSet()
    network = spec.build(shape_of(features.arrow_type()), len(labels.names)).eval()
    network.standardize.mean_F.fill_(-40.0)
    network.standardize.std_F.fill_(20.0)
    return Model([network], spec, features, labels, views=spec.views, temperature=0.05)


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
    write_figures(flags.json, {"export_s": exported_s, "bytes": size, "proof": vars(proof), "cases": rows})


if __name__ == "__main__":
    run_job(main)
