r"""Train an emotion classifier and test it on speakers it has never heard.

    ser-ray train                           # made speech: the whole way
    ser-ray train --data ~/corpora --output runs/first
    ser-ray train --data ~/corpora --corpus ravdess --protocol emobox --fold all
    ray job submit --working-dir . -- python jobs/train.py \
        --data s3://bucket/corpora --store s3://bucket/store \
        --output s3://bucket/runs/first

Corpora are featurized first, or read from the store of an earlier run.

An unfinished run of the same --output goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ser_ray.base import storage
from ser_ray.base.console import say
from ser_ray.base.settings import command_line, pick_config
from ser_ray.experiment.crossval import cross_validate
from ser_ray.experiment.flags import open_store, parse_experiment
from ser_ray.experiment.run import run
from ser_ray.scores.run_folder import RunFolder, fresh_root
from ser_ray.scores.screen import show_scores


@dataclass(frozen=True)
class _Flags:
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


def train_job(argv: Sequence[str]) -> None:
    """Parse flags, featurize what is new, run the experiment, say where the results are."""
    wish = parse_experiment(argv, __doc__, _Flags)
    flags, experiment = pick_config(_Flags, wish.values), wish.experiment
    command = command_line()
    root = storage.normalize(flags.output or fresh_root(experiment.network.name))
    folder = RunFolder(root, command, flags.embed_audio)
    folder.refuse_finished()
    if not flags.output:
        say(f"Run: {root}")
    store, whole = open_store(wish), flags.fold == "all"
    show_scores((cross_validate if whole else run)(store, experiment, folder, wish.compute))
    say(f"Run: {root} (report.html, metrics.json, predictions.parquet, {'fold-*/' if whole else 'model/'})")
