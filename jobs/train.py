r"""Train an emotion classifier and test it on speakers it has never heard.

    python jobs/train.py                                   # made speech: the whole way, in minutes, on any machine
    python jobs/train.py --data ~/corpora --output runs/first
    python jobs/train.py --data ~/corpora --protocol emobox --corpus ravdess --fold all
    ray job submit --working-dir . -- python jobs/train.py --data s3://bucket/corpora --store s3://bucket/store \
        --output s3://bucket/runs/first

Corpora are featurized first, or read from the store of an earlier run. An unfinished run of the same --output goes on.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ser_ray.base import storage
from ser_ray.base.console import say
from ser_ray.base.settings import run_job
from ser_ray.experiment.crossval import cross_validate
from ser_ray.experiment.flags import open_store, parse_experiment
from ser_ray.experiment.run import run
from ser_ray.scores.run_folder import fresh_root, refuse_finished, show_scores


@dataclass(frozen=True)
class Flags:
    """Flags of this job alone.

    Attributes:
        data: Folders, URIs or tables (CSV, Parquet) that hold corpora; made speech without data and store.
        store: The feature store's folder or URI; by default `stores/` and a name drawn from settings and data.
        output: The run's folder or URI; an unfinished run there goes on. By default a fresh name under `runs/`.
        fold: Which fold is tested, counted from 0, or `all` for a cross-validation.
        embed_audio: Put the sounds of the worst mistakes into the report. Most corpora may not be passed on.
        clips: How many clips of made speech to write when there is no data.
        verbose: Show Ray's own log lines.
        config: YAML or JSON file of flags and values; flags beat it.
    """

    data: tuple[str, ...] = ()
    store: str | None = None
    output: str | None = None
    fold: str = "0"
    embed_audio: bool = False
    clips: int = 240
    verbose: bool = False
    config: str | None = None


def main(argv: Sequence[str]) -> None:
    """Parse flags, featurize what is new, run the experiment, say where the results are."""
    experiment, values = parse_experiment(argv, __doc__, Flags)
    output = storage.normalize(values["output"] or fresh_root(experiment.model.model))
    refuse_finished(output)
    if not values["output"]:
        say(f"Run: {output}")
    store, made = open_store(values, experiment)
    command = shlex.join(["python", *sys.argv])
    whole = values["fold"] == "all"
    scores = (cross_validate if whole else run)(store, experiment, output, command, made, values["embed_audio"])
    show_scores(scores)
    say(f"Run: {output} (report.html, metrics.json, predictions.parquet, {'fold-*/' if whole else 'model/'})")


if __name__ == "__main__":
    run_job(main)
