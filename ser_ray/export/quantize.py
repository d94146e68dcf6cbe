"""A file whose encoder computes in int8, and whether it answers well enough to be kept.

The linear maps of the encoder become int8 by onnxruntime's dynamic quantization; what makes spectra, convolutions,
attention, standardization and the probe stay float32. Speakers who validated the run decide, those that it tested are
told of.

Shapes: T samples, B waveforms, N clips, C classes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from ser_ray.base.errors import UserError
from ser_ray.export.formats import open_onnx
from ser_ray.export.proof import Runner, make_sounds
from ser_ray.features.encoder import Encoder
from ser_ray.model.files import fold_roots
from ser_ray.model.together import VALIDATION, Together, read_validation, share_clips
from ser_ray.scores.metrics import score
from ser_ray.scores.run_folder import read_run
from ser_ray.speech.audio import AudioError, decode
from ser_ray.speech.corpora.discover import discover
from ser_ray.speech.packed import open_sound

MOST_UAR_LOST, MOST_ECE_GAINED = 0.005, 0.01  # Half a point and one point; more costs the file.
TIMED_S, ROUNDS = 3.0, 9  # Length of the clip that is timed, on one core, and how often each file answers it.
_SCOPES, _CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"  # which torch notes at each node


@dataclass(frozen=True)
class Judges:
    """The clips by which a file is judged, each with the path of its sound.

    Attributes:
        rate: Sample rate that the file takes, Hz.
        longest_s: So much of a clip is heard, seconds; None for all.
        labels: The class names.
        validation: Rows of `validation.parquet`.
        tested: Rows of `predictions.parquet`; there may be none.
        asked: How many rows each of these had before the clips that `--data` lacks were left out.
    """

    rate: int
    longest_s: float | None
    labels: tuple[str, ...]
    validation: pa.Table
    tested: pa.Table
    asked: tuple[int, int]


def find_judges(together: Together, data: Sequence[str], rate: int) -> Judges:
    """Find the clips that decide over an int8 file.

    Args:
        together: The models.
        data: Folders, URIs or tables that hold the clips.
        rate: Sample rate that the file takes, Hz.

    Raises:
        UserError: Such a model gains nothing by int8, its runs tell of no such clips, or `data` lacks them.
    """
    kinds = together.features
    if not all(isinstance(kind, Encoder) for kind in kinds):
        raise UserError(
            f"--int8 is for encoders: networks on {', '.join(kind.name for kind in kinds)} answer no faster in int8 "
            "(docs/export.md); leave it out"
        )
    if any(model.speaker_norm for model in together.models):
        raise UserError("--int8 is judged by many speakers, and a model that normalizes by speaker is exported for one")
    folds = [fold_roots(root) for root in together.roots]
    if any(len(each) > 1 for each in folds):
        raise UserError("--int8 needs speakers that no fold was trained on, and a cross-validated run has none")
    validations = [read_validation(fold) for (fold,) in folds]
    if any(table is None for table in validations):
        raise UserError(f"--int8 is judged by the clips of {VALIDATION}, and a run has none; train it again")
    if not data:
        raise UserError("--int8 is judged by validation speakers: give --data and the folders that hold their clips")
    paths = {clip.utterance_id: clip.path for clip in discover(data).utterances}
    named = [share_clips(tables)[0] for tables in (validations, [read_run(fold)[1] for (fold,) in folds])]
    validation, tested = (_keep_found(table, paths) for table in named)
    if not validation.num_rows:
        asked = named[0].num_rows
        raise UserError(f"--data holds none of the {asked} clips that validated the run; name their corpora")
    first = kinds[0]
    longest_s = first.duration_s and first.offset_s + first.duration_s
    return Judges(rate, longest_s, together.labels.names, validation, tested, tuple(table.num_rows for table in named))


def quantize(path: str, output: str, judges: Judges) -> dict[str, Any]:
    """Write an ONNX file with its encoder in int8, and judge it.

    Args:
        path: The file in float32.
        output: The file in int8.
        judges: Clips that decide.

    Returns:
        `maps` (how many became int8), and each before and after: `bytes`, `ms` (one clip of 3 s on one core), and of
        `validation` and `tested` clips `uar` and `ece`, with `clips`, `asked`, `speakers`, and `probabilities`, the
        largest difference of one.

    Raises:
        UserError: The file answers worse than is allowed, or a clip cannot be read.
    """
    maps = write_int8(path, output)
    runs = open_onnx(path, threads=1), open_onnx(output, threads=1)
    told = {
        "maps": maps,
        "bytes": tuple(os.path.getsize(each) for each in (path, output)),
        "ms": time_both(*runs, judges.rate),
        "validation": _judge(runs, judges.validation, judges) | {"asked": judges.asked[0]},
    }
    if worse := find_worse(told["validation"]):
        raise UserError(f"{worse}; export it without --int8")
    if judges.tested.num_rows:
        told["tested"] = _judge(runs, judges.tested, judges) | {"asked": judges.asked[1]}
    return told


def write_int8(path: str, output: str, part: str = "ears.", kind: str = "aten.linear") -> int:
    """Make weights of a graph int8, channel by channel, and what they are multiplied with as it comes.

    Weights take 7 bits, since processors without VNNI would overflow in 16 bits at 8 (onnxruntime's `reduce_range`).

    Args:
        path: The graph.
        output: The new one.
        part: Where in `graph.Answering` the nodes are.
        kind: What torch calls their operation.

    Returns:
        How many nodes became int8.
    """
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    names = []
    for node in onnx.load(path).graph.node:
        notes = {prop.key: prop.value for prop in node.metadata_props}
        if node.op_type in ("MatMul", "Gemm", "Conv") and f"'{part}" in notes.get(_SCOPES, ""):
            names += [node.name] if kind in notes.get(_CLASSES, "") else []
    if not names:
        raise UserError("--int8 finds nothing in this model that it could make int8; leave it out")
    quiet = logging.getLogger()
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        quantize_dynamic(path, output, nodes_to_quantize=names, per_channel=True, reduce_range=True)
    finally:
        quiet.setLevel(level)
    return len(names)


def time_both(before: Runner, after: Runner, rate: int) -> tuple[float, float]:
    """Return the median milliseconds that each of two files takes for one clip; they take turns."""
    sound_1T = np.resize(make_sounds(rate)[7], round(TIMED_S * rate))[None]
    lengths_B, taken = np.array([sound_1T.shape[1]]), ([], [])
    for k in range(ROUNDS + 1):
        for run, times in zip((before, after), taken, strict=True):
            started = time.perf_counter()
            run(sound_1T, lengths_B)
            if k:  # the first call of each is its warm-up
                times.append(1e3 * (time.perf_counter() - started))
    return median(taken[0]), median(taken[1])


def find_worse(judged: dict[str, Any]) -> str:
    """Say what validation clips have against int8; empty where they have nothing."""
    for name, allowed, sign in (("uar", MOST_UAR_LOST, -1), ("ece", MOST_ECE_GAINED, 1)):
        before, after = judged[name]
        if not sign * (after - before) <= allowed:
            change = f"{name.upper()} on {judged['clips']} validation clips goes from {before:.1%} to {after:.1%}"
            return f"in int8 its {change} (at most {100 * allowed:g} points are allowed)"
    return ""


def describe_int8(told: dict[str, Any]) -> list[str]:
    """Say what `quantize` returns, a line for each part."""
    (size, smaller), (ms, faster) = told["bytes"], told["ms"]
    lines = [
        f"int8: {told['maps']} linear maps; {size / 1e6:.1f} MB become {smaller / 1e6:.1f}; a clip of {TIMED_S:g} s on "
        f"one core takes {faster:.1f} ms, before {ms:.1f}" + ("" if faster < ms else ": no faster on this machine")
    ]
    for name in ("validation", "tested"):
        if judged := told.get(name):
            uar, ece = ([f"{value:.1%}" for value in judged[each]] for each in ("uar", "ece"))
            found = f"{judged['clips']} of {judged['asked']} {name} clips of {judged['speakers']} speakers"
            lines.append(f"{found}: UAR {uar[0]} becomes {uar[1]}, calibration error {ece[0]} becomes {ece[1]}")
    return lines


def _keep_found(table: pa.Table, paths: dict[str, str]) -> pa.Table:
    """Return the rows whose clips are there, with a column `path`."""
    found = [paths.get(name) for name in table["utterance_id"].to_pylist()]
    table = table.drop_columns(["path"]) if "path" in table.column_names else table
    return table.append_column("path", pa.array(found, pa.string())).filter(pa.array([bool(path) for path in found]))


def _judge(runs: Sequence[Runner], table: pa.Table, judges: Judges) -> dict[str, Any]:
    """Return what each of two files makes of some clips."""
    answers: tuple[list[np.ndarray], ...] = tuple([] for _ in runs)
    for path in table["path"].to_pylist():
        try:
            with open_sound(path) as file:
                sound_T = decode(file, sample_rate=judges.rate, duration_s=judges.longest_s).waveform_T
        except (AudioError, OSError) as error:
            raise UserError(f"--data: {path}: {' '.join(str(error).split())}") from None
        for run, each in zip(runs, answers, strict=True):
            each.append(run(sound_T[None], np.array([len(sound_T)]))[0][0])
    before_NC, after_NC = (np.stack(each) for each in answers)
    scores = [_score(answer_NC, table, judges.labels) for answer_NC in (before_NC, after_NC)]
    return {
        "uar": tuple(each["uar"] for each in scores),
        "ece": tuple(each["calibration"]["ece"] for each in scores),
        "clips": table.num_rows,
        "speakers": len(set(table["speaker_id"].to_pylist())),
        "probabilities": float(np.abs(after_NC - before_NC).max()),
    }


def _score(answer_NC: np.ndarray, table: pa.Table, labels: Sequence[str]) -> dict[str, Any]:
    said = {
        "predicted": pa.array([labels[place] for place in answer_NC.argmax(axis=1)]),
        "probabilities": pa.array(answer_NC.astype(np.float64).tolist(), pa.list_(pa.float64())),
    }
    for name, column in said.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return score(table, labels)
