r"""Write a trained run as one file that runs without ser_ray.

    ser-ray export --run runs/first --output model.onnx
    ser-ray export --run runs/first --output model.pt2
    ser-ray export --run runs/first runs/second --output model.onnx \
        --input-rate 48000
    ser-ray export --run runs/probe --output small.onnx --int8 --data ~/corpora

The file is proved against the model's own answers before it is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ser_ray.base.errors import UserError
from ser_ray.base.settings import parse_flags, pick_config
from ser_ray.export.export import ExportConfig, export_runs

GROUPS = {
    "most used": ("run", "output", "input_rate"),
    "models": (ExportConfig,),
    "where to run": ("config",),
}


@dataclass(frozen=True)
class _Flags:
    """Flags of this job alone.

    Attributes:
        run: A finished run, a cross-validated one too, or the folder of a model, here or at a URI; several answer
            together, by the mean of their log-probabilities.
        output: File to write: `.onnx`, or `.pt2` for torch.
        config: YAML or JSON file of flags and values; flags beat it.
    """

    run: tuple[str, ...] = ()
    output: str | None = None
    config: str | None = None


def export_job(argv: Sequence[str]) -> None:
    """Parse flags and export, which says where the file is."""
    values = parse_flags(argv, __doc__, _Flags, ExportConfig, groups=GROUPS)
    flags, config = pick_config(_Flags, values), pick_config(ExportConfig, values)
    for name, value in (("run", flags.run), ("output", flags.output)):
        if not value:
            raise UserError(f"--{name} is missing: give --run RUN --output FILE")
    export_runs(flags.run, flags.output, config)
