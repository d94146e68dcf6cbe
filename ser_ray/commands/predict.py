r"""Answer which emotions are heard in any recordings, window by window.

    ser-ray predict --run runs/first --input call.wav --output answers/call
    ser-ray predict --run runs/first --input ~/calls 'more/*.mp3' parts.csv \
        --output answers/calls --channels separate --report calls.html
    ser-ray predict --run runs/first runs/second --input s3://bucket/calls \
        --output s3://bucket/answers

Killed and started again with the same flags, it goes on where it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ser_ray.base import storage
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.base.settings import choice, command_line, parse_flags, pick_config
from ser_ray.model.together import open_models
from ser_ray.predict.output import Output
from ser_ray.predict.predict import Besides, predict_recordings
from ser_ray.predict.task import PredictConfig

GROUPS = {
    "most used": ("run", "input", "output", "channels", "window_s"),
    "windows and answers": (PredictConfig, Besides),
    "where to run": ("device", "encoder", "config"),
}


@dataclass(frozen=True)
class _Flags:
    """Flags of this job alone.

    Attributes:
        run: A finished run, or the folder of a model, here or at a URI; several answer together, by the mean of their
            log-probabilities, with weights fitted on the speakers who validated them all. A cross-validated run answers
            by the models of all its folds.
        input: Recordings, folders of them, patterns such as `calls/*.mp3`, or tables (CSV, Parquet) with a column
            `path`, or with the sounds in them (`audio`), and, if need be, `start` and `end` of a part in seconds and
            `speaker`; here or at URIs.
        output: Folder or URI for the answers; unfinished ones of the same model, flags and recordings go on. Without it
            a fresh one is made under `answers/`.
        device: `cpu`; `cuda` for GPUs, each shared by processes that decode for it; or `auto`: GPUs for encoders, if
            there are any.
        encoder: Where the models' encoders are now, if not where they were in training; told by their content.
        config: YAML or JSON file of flags and values; flags beat it.
    """

    run: tuple[str, ...] = ()
    input: tuple[str, ...] = ()
    output: str | None = None
    device: str = choice("auto", "cpu", "cuda")
    encoder: tuple[str, ...] = ()
    config: str | None = None


def predict_job(argv: Sequence[str]) -> None:
    """Parse flags, answer, say where the answers are."""
    values = parse_flags(argv, __doc__, _Flags, PredictConfig, Besides, groups=GROUPS)
    flags, config = pick_config(_Flags, values), pick_config(PredictConfig, values)
    besides = pick_config(Besides, values)
    for name, value in (("run", flags.run), ("input", flags.input)):
        if not value:
            raise UserError(f"--{name} is missing: give --run RUN --input RECORDINGS")
    output = Output(storage.normalize(flags.output or f"answers/{datetime.now():%Y%m%d-%H%M%S}"))
    output.refuse_finished()
    together = open_models(flags.run).locate(flags.encoder).on(flags.device)
    predict_recordings(together, flags.input, config, output, command_line(), besides)
    say(f"Answers: {output.root} (windows/, recordings.parquet, predict.json)")
    if besides.report:
        say(f"Report: {storage.normalize(besides.report)}")
