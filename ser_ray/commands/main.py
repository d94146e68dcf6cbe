"""The command `ser-ray`: its help, its jobs by name, and what shells complete."""

from __future__ import annotations

import sys
from typing import Any

import tyro

import ser_ray
from ser_ray.base.settings import Job, offered_flags, run_job

JOBS = {
    "train": "train a network on corpora, or on made speech, and test it",
    "featurize": "turn corpora into a feature store, without training",
    "tune": "search for better settings, on validation speakers",
    "evaluate": "score a trained model on other corpora; compare two runs",
    "predict": "answer any recordings, window by window",
    "export": "write a trained model as one file that runs anywhere",
}
COMPLETION = "--tyro-print-completion"
HELP = """\
usage: ser-ray JOB [FLAGS]

Speech emotion recognition as distributed batch processing on Ray.

jobs:
{jobs}

{first}  # the whole way on made speech, in minutes
  ser-ray train --data ~/corpora --output runs/first
  ser-ray predict --run runs/first --input call.wav --output answers/call

  ser-ray JOB --help     explains a job's flags, those that matter most first
  ser-ray --version      says the version
  ser-ray {completion} bash|zsh|tcsh
                         prints what lets a shell complete jobs and flags
"""


def main() -> None:
    """Run the job that the command line names."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        jobs = "\n".join(f"  {job:11}{story}" for job, story in JOBS.items())
        print(HELP.format(jobs=jobs, first="  ser-ray train", completion=COMPLETION), end="")
    elif name == "--version":
        print(ser_ray.__version__)
    elif name == COMPLETION and words:
        flags: dict[str, Any] = {job: offered_flags(find_job(job)) for job in JOBS}
        flat = (tyro.conf.OmitArgPrefixes,)
        tyro.extras.subcommand_cli_from_dict(flags, prog="ser-ray", args=[name, *words], config=flat)
    elif name in JOBS:
        run_job(find_job(name), words)
    else:
        print(f"ser-ray {name}: no such job; choose {', '.join(JOBS)}, or see ser-ray --help", file=sys.stderr)
        sys.exit(2)


def find_job(name: str) -> Job:
    """Return a job by its name; only what it needs is imported."""
    if name == "train":
        from ser_ray.commands.train import train_job as job
    elif name == "featurize":
        from ser_ray.commands.featurize import featurize_job as job
    elif name == "tune":
        from ser_ray.commands.tune import tune_job as job
    elif name == "evaluate":
        from ser_ray.commands.evaluate import evaluate_job as job
    elif name == "predict":
        from ser_ray.commands.predict import predict_job as job
    elif name == "export":
        from ser_ray.commands.export import export_job as job
    else:
        raise ValueError(name)
    return job
