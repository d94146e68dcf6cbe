"""From trained runs to one file that runs anywhere, proved before it is there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ser_ray.base import storage
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.base.settings import between, check_settings
from ser_ray.export.formats import FORMATS, note_onnx, write_onnx, write_pt2
from ser_ray.export.graph import Answering, trace
from ser_ray.export.moments import read_moments
from ser_ray.export.proof import prove
from ser_ray.export.quantize import describe_int8, find_judges, quantize
from ser_ray.export.record import describe_models, describe_proof
from ser_ray.model.together import open_models


@dataclass(frozen=True)
class ExportConfig:
    """How to export.

    Attributes:
        input_rate: Sample rate of the sound that the file takes, Hz; by default the model's own. Another one is
            resampled in the file.
        speaker_moments: For a model that normalizes by speaker: a recording of the one speaker whom the file is to
            hear, or a JSON file with `frames`, `mean` and `std` of its features (docs/export.md).
        int8: Make the encoder's linear maps int8, and keep the file if validation speakers are answered as well
            (docs/export.md); for encoders only, as ONNX.
        data: For `--int8`: folders, URIs or tables (CSV, Parquet) that hold the clips that validated the run, and
            those that it tested.
        encoder: Where the models' encoders are now, if not where they were in training; told by their content.
    """

    input_rate: int | None = between(None, 1_000, 384_000, optional=True)
    speaker_moments: str | None = None
    int8: bool = False
    data: tuple[str, ...] = ()
    encoder: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_settings(self)
        if self.data and not self.int8:
            raise UserError("--data is for --int8, which is judged by its clips; leave it out")


def export_runs(runs: Sequence[str], output: str, config: ExportConfig | None = None) -> dict[str, Any]:
    """Write one file that answers as the models of some runs do together.

    Args:
        runs: Finished runs, cross-validated ones too, or folders of models.
        output: The file, `.onnx` or `.pt2`, which must not be there.
        config: How.

    Returns:
        What the file's metadata hold.

    Raises:
        UserError: A run has no model that can be exported, the file is there already, or it failed its proof.
    """
    config, output = config or ExportConfig(), storage.normalize(output)
    suffix = _check_output(output, config.int8)
    together = open_models(runs).locate(config.encoder)
    models, rate = together.models, config.input_rate or together.features[0].sample_rate
    normed = {model.features for model in models if model.speaker_norm}
    if config.speaker_moments and not normed:
        raise UserError("--speaker-moments is for models that normalize by speaker, and this one does without")
    known = {kind: read_moments(config.speaker_moments, kind) for kind in normed} if config.speaker_moments else {}
    judges = find_judges(together, config.data, rate) if config.int8 else None
    facts = describe_models(together) | {"sample_rate": rate}
    program = trace(Answering(models, together.weights, rate, known), rate)
    say(f"{len(models)} {'model' if len(models) == 1 else 'models'}, traced; written as {suffix} next, and proved")
    with tempfile.TemporaryDirectory() as folder:
        draft = os.path.join(folder, f"model{suffix}")
        if suffix == ".onnx":
            write_onnx(program, draft)
        else:
            write_pt2(program, draft, facts)
        proof = prove(together, FORMATS[suffix](draft), rate, known)
        if wrong := proof.failure():
            raise UserError(f"{output} is not written: {wrong}")
        facts |= {"proof": describe_proof(proof)}
        if judges:
            whole, draft = draft, os.path.join(folder, "int8.onnx")
            facts |= {"int8": quantize(whole, draft, judges)}
        if suffix == ".onnx":
            note_onnx(draft, facts)
        else:
            write_pt2(program, draft, facts)
        with open(draft, "rb") as stream:
            data = stream.read()
    storage.write(output, lambda stream: stream.write(data))
    for note in (*facts["notes"], *(describe_int8(facts["int8"]) if judges else ())):
        say(note)
    say(
        f"Proved on {proof.clips} clips of made speech, {proof.seconds[0]:g} to {proof.seconds[1]:g} s: probabilities "
        f"differ by at most {proof.probabilities:.1e} from those of Model.predict, logits by {proof.logits:.1e}"
    )
    say(f"File: {output} ({len(data) / 1e6:.1f} MB, takes sound at {rate} Hz)")
    return facts


def _check_output(output: str, int8: bool) -> str:
    """Return the suffix of a file that can be written."""
    suffix = os.path.splitext(output)[1].lower()
    if suffix not in FORMATS:
        raise UserError(f"--output {output}: choose a file that ends in {' or '.join(FORMATS)}")
    if int8 and suffix != ".onnx":
        raise UserError(f"--output {output}: --int8 writes ONNX; choose a file that ends in .onnx")
    if storage.exists(output):
        raise UserError(f"--output {output} is there already; choose another name, or remove it")
    return suffix
