"""Train an emotion classifier and test it on speakers it has never heard.

    python jobs/train.py                                   # made speech: the whole way, in minutes, on any machine
    python jobs/train.py --data ~/corpora --output runs/first
    python jobs/train.py --data ~/corpora --protocol emobox --corpus ravdess --fold all
    ray job submit --working-dir . -- python jobs/train.py --data s3://bucket/corpora --output s3://bucket/runs/first

Corpora are featurized first, or read from the store of an earlier run. An unfinished run of the same --output goes on.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ser_ray import cli, storage
from ser_ray.cluster import connect, plan_workers
from ser_ray.console import say
from ser_ray.corpora import synthetic
from ser_ray.crossval import cross_validate
from ser_ray.errors import UserError
from ser_ray.experiment import Experiment, run
from ser_ray.features import FeatureConfig
from ser_ray.featurize import FeaturizeConfig, featurize, find_and_connect
from ser_ray.frame_augment import FrameAugmentConfig
from ser_ray.learner import TrainConfig
from ser_ray.models import FEATURES_OF, ModelConfig
from ser_ray.results import fresh_root, refuse_finished, show_scores
from ser_ray.splits import SplitConfig
from ser_ray.store import Store


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
    model = ModelConfig(cli.peek(argv, "model") or ModelConfig.model)
    kind = FEATURES_OF[model.model]
    changes = (FrameAugmentConfig,) if kind == "log_mel" else ()
    usual = {**vars(FeatureConfig.for_kind(kind)), **vars(TrainConfig.for_model(model.model))}
    configs = (Flags, Experiment, SplitConfig, ModelConfig, TrainConfig, *changes, FeaturizeConfig, FeatureConfig)
    values = cli.parse(argv, __doc__, *configs, defaults=usual, without=("kind",))
    todo = cli.pick(
        Experiment,
        values,
        split=cli.pick(SplitConfig, values, fold=0 if values["fold"] == "all" else _number(values["fold"])),
        model=cli.pick(ModelConfig, values),
        train=cli.pick(TrainConfig, values),
        frame_augment=cli.pick(FrameAugmentConfig, values),
    )
    output = storage.normalize(values["output"] or fresh_root(todo.model.model))
    refuse_finished(output)
    data = values["data"]
    made = not data and not values["store"]
    if made:
        say("No --data: the main job on made speech.")
        data = synthetic.write(f"data/made-{values['clips']}", values["clips"])
    if data:
        manifest = find_and_connect(data, values["verbose"])
        plan_workers(todo.train.num_workers, todo.train.device)  # to refuse now what would be refused after featurizing
        config = cli.pick(FeaturizeConfig, values, features=cli.pick(FeatureConfig, values, kind=kind))
        store = featurize(manifest, config, values["store"])
    else:
        connect(values["verbose"])
        store = Store(storage.normalize(values["store"]))
    command = shlex.join(["python", *sys.argv])
    whole = values["fold"] == "all"
    scores = (cross_validate if whole else run)(store, todo, output, command, made, values["embed_audio"])
    show_scores(scores)
    say(f"Run: {output} (report.html, metrics.json, predictions.parquet, {'fold-*/' if whole else 'model/'})")


def _number(fold: str) -> int:
    if not fold.isdecimal():
        raise UserError(f"--fold {fold}: give a number from 0, or all")
    return int(fold)


if __name__ == "__main__":
    cli.run(main)
