"""Files that hold a graph: ONNX for onnxruntime and its kin, `.pt2` for torch alone.

Shapes: B waveforms, T samples, C classes.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ser_ray.base.errors import UserError
from ser_ray.export.graph import INPUTS, OUTPUTS
from ser_ray.export.proof import Runner

OPSET = 20  # Of ONNX; the first that has what is needed here was 18.
FACTS = "ser_ray.json"  # Name of the facts within a .pt2 file.
MISSING = (
    "export to ONNX needs the libraries onnx, onnxscript and onnxruntime: pip install -c constraints.txt -e '.[onnx]'"
)


def write_onnx(program: torch.export.ExportedProgram, path: str) -> None:
    """Write a graph as ONNX by torch's dynamo exporter.

    Raises:
        UserError: The libraries are missing.
    """
    _import_onnx()
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program,
                input_names=INPUTS,
                output_names=OUTPUTS,
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    made.save(path)


def note_onnx(path: str, facts: dict[str, Any]) -> None:
    """Write facts into an ONNX file's metadata, each by its name, as JSON, and name its axes."""
    onnx = _import_onnx()
    model = onnx.load(path)
    for values, axes in ((model.graph.input, ("batch", "samples")), (model.graph.output, ("batch",))):
        for value in values:
            for size, name in zip(value.type.tensor_type.shape.dim, axes, strict=False):
                if size.dim_param:
                    size.dim_param = name
    onnx.helper.set_model_props(model, {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()})
    model.producer_name, model.producer_version = "ser_ray", facts["ser_ray"]
    onnx.checker.check_model(model)
    onnx.save(model, path)


def open_onnx(path: str, threads: int = 0) -> Runner:
    """Open an ONNX file by onnxruntime, on CPUs.

    Args:
        path: The file.
        threads: How many it may use; 0 for all cores.
    """
    _import_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(waveform_BT: np.ndarray, lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return tuple(session.run(OUTPUTS, {"waveform": waveform_BT, "lengths": lengths_B}))

    return run


def write_pt2(program: torch.export.ExportedProgram, path: str, facts: dict[str, Any]) -> None:
    """Write a graph with facts as `torch.export.load` reads it."""
    with open(path, "wb") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, stream, extra_files={FACTS: json.dumps(facts, ensure_ascii=False)})


def open_pt2(path: str) -> Runner:
    """Open a `.pt2` file.

    Guards stay off: they hold what the traced length had, such as less than 30 s, or a stride that is another one where
    there are few frames. The graph is right without, which its proof shows.
    """
    with open(path, "rb") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = torch.export.load(stream).module(check_guards=False)

    def run(waveform_BT: np.ndarray, lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            return tuple(each.numpy() for each in network(torch.from_numpy(waveform_BT), torch.from_numpy(lengths_B)))

    return run


def _import_onnx() -> Any:
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError:
        raise UserError(MISSING) from None
    assert onnxruntime and onnxscript
    return onnx


FORMATS: dict[str, Callable[[str], Runner]] = {".onnx": open_onnx, ".pt2": open_pt2}
