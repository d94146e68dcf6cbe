"""Search for better settings of training, network and augmentation, judged on validation speakers.

    python jobs/tune.py --data ~/corpora --output runs/tune1 --num-samples 30
    python jobs/tune.py --data ~/corpora --output runs/tune1 --num-samples 30 --resume     # goes on after a crash
    python jobs/train.py --data ~/corpora --config runs/tune1/best.json
    ray job submit --working-dir . -- python jobs/tune.py --data s3://bucket/corpora --output s3://bucket/runs/tune1

Trials run side by side as CPUs or GPUs allow. The tested speakers are left alone until the end; then the best settings
are trained once more and tested once.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ser_ray import cli, storage
from ser_ray.cluster import connect
from ser_ray.console import say
from ser_ray.corpora import synthetic
from ser_ray.errors import UserError
from ser_ray.experiment import Experiment
from ser_ray.features import FeatureConfig
from ser_ray.featurize import FeaturizeConfig, featurize, find_and_connect
from ser_ray.frame_augment import FrameAugmentConfig
from ser_ray.learner import TrainConfig
from ser_ray.models import FEATURES_OF, ModelConfig
from ser_ray.results import fresh_root, show_scores
from ser_ray.search_space import read_space
from ser_ray.splits import SplitConfig
from ser_ray.store import Store
from ser_ray.tuning import TuneConfig, tune


@dataclass(frozen=True)
class Flags:
    """Flags of this job alone.

    Attributes:
        data: Folders, URIs or tables (CSV, Parquet) that hold corpora; made speech without data and store.
        store: The feature store's folder or URI; by default `stores/` and a name drawn from settings and data.
        output: The search's folder or URI; by default a fresh name under `runs/`.
        space: YAML file of what to search; by default a space for each model.
        resume: Go on with the search in `output`; the trials that had ended count.
        clips: How many clips of made speech to write when there is no data.
        verbose: Show Ray's own log lines.
        config: YAML or JSON file of flags and values; flags beat it.
    """

    data: tuple[str, ...] = ()
    store: str | None = None
    output: str | None = None
    space: str | None = None
    resume: bool = False
    clips: int = 240
    verbose: bool = False
    config: str | None = None


def main(argv: Sequence[str]) -> None:
    """Parse flags, featurize what is new, search, say where the results are."""
    model = ModelConfig(cli.peek(argv, "model") or ModelConfig.model)
    kind = FEATURES_OF[model.model]
    changes = (FrameAugmentConfig,) if kind == "log_mel" else ()
    usual = {**vars(FeatureConfig.for_kind(kind)), **vars(TrainConfig.for_model(model.model))}
    configs = (
        Flags,
        TuneConfig,
        Experiment,
        SplitConfig,
        ModelConfig,
        TrainConfig,
        *changes,
        FeaturizeConfig,
        FeatureConfig,
    )
    values = cli.parse(argv, __doc__, *configs, defaults=usual, without=("kind", "num_workers"))
    todo = cli.pick(
        Experiment,
        values,
        split=cli.pick(SplitConfig, values),
        model=cli.pick(ModelConfig, values),
        train=cli.pick(TrainConfig, values),
        frame_augment=cli.pick(FrameAugmentConfig, values),
    )
    space = read_space(values["space"], todo)
    output = storage.normalize(values["output"] or fresh_root("tune"))
    begun = storage.exists(storage.join(output, "run.json"))
    if begun and not values["resume"]:
        raise UserError(f"{output} holds a search; go on with it by --resume, or choose another --output")
    if values["resume"] and not begun:
        raise UserError(f"--resume: there is no search in {output}")
    data = values["data"]
    if not data and not values["store"]:
        say("No --data: a search on made speech.")
        data = synthetic.write(f"data/made-{values['clips']}", values["clips"])
    if data:
        manifest = find_and_connect(data, values["verbose"])
        config = cli.pick(FeaturizeConfig, values, features=cli.pick(FeatureConfig, values, kind=kind))
        store = featurize(manifest, config, values["store"])
    else:
        connect(values["verbose"])
        store = Store(storage.normalize(values["store"]))
    command = shlex.join(["python", *sys.argv])
    show_scores(tune(store, todo, cli.pick(TuneConfig, values), space, output, command))
    say(f"Search: {output} (report.html, best.json, trials.parquet, best/)")


if __name__ == "__main__":
    cli.run(main)
