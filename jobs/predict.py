r"""Answer which emotions are heard in any recordings, window by window.

    python jobs/predict.py --run runs/first --input interview.wav --output answers/interview
    python jobs/predict.py --run runs/first --input ~/calls 'more/*.mp3' parts.csv --output answers/calls \
        --channels separate
    python jobs/predict.py --run runs/first runs/second --input s3://bucket/calls --output s3://bucket/answers

Killed and started again with the same flags, it goes on where it was.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ser_ray.base import storage
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.base.settings import parse_flags, pick_config, run_job
from ser_ray.model.together import open_models
from ser_ray.predict.output import Output
from ser_ray.predict.predict import predict_recordings
from ser_ray.predict.task import PredictConfig


@dataclass(frozen=True)
class Flags:
    """Flags of this job alone.

    Attributes:
        run: A finished run, or the folder of a model, here or at a URI; several answer together, by the mean of their
            log-probabilities, with weights fitted on the speakers who validated them all. A cross-validated run answers
            by the models of all its folds.
        input: Recordings, folders of them, patterns such as `calls/*.mp3`, or tables (CSV, Parquet) with a column
            `path` and, for parts of recordings, `start` and `end` in seconds; here or at URIs.
        output: Folder or URI for the answers; unfinished ones of the same model, flags and recordings go on.
        encoder: Where the models' encoders are now, if not where they were in training; told by their content.
        csv: Write `windows.csv` as well.
        config: YAML or JSON file of flags and values; flags beat it.
    """

    run: tuple[str, ...] = ()
    input: tuple[str, ...] = ()
    output: str | None = None
    encoder: tuple[str, ...] = ()
    csv: bool = False
    config: str | None = None


def main(argv: Sequence[str]) -> None:
    """Parse flags, answer, say where the answers are."""
    values = parse_flags(argv, __doc__, Flags, PredictConfig)
    flags, config = pick_config(Flags, values), pick_config(PredictConfig, values)
    for name, value in (("run", flags.run), ("input", flags.input), ("output", flags.output)):
        if not value:
            raise UserError(f"--{name} is missing: give --run RUN --input RECORDINGS --output FOLDER")
    output = Output(storage.normalize(flags.output))
    output.refuse_finished()
    together = open_models(flags.run).locate(flags.encoder)
    predict_recordings(together, flags.input, config, output, shlex.join(["python", *sys.argv]), as_csv=flags.csv)
    say(f"Answers: {output.root} (windows/, recordings.parquet, predict.json)")


if __name__ == "__main__":
    run_job(main)
