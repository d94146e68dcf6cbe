r"""Search for better settings of training, network and augmentation.

    ser-ray tune --data ~/corpora --output runs/tune1 --num-samples 30
    ser-ray tune --data ~/corpora --output runs/tune1 --resume  # after a crash
    ser-ray train --data ~/corpora --config runs/tune1/best.json
    ray job submit --working-dir . -- python jobs/tune.py \
        --data s3://bucket/corpora --store s3://bucket/store \
        --output s3://bucket/runs/tune1

Settings are judged on validation speakers, side by side as CPUs or GPUs allow.

At the end the best ones are trained once more and tested once, on others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ser_ray.base import storage
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.base.settings import command_line, pick_config
from ser_ray.experiment.flags import open_store, parse_experiment
from ser_ray.scores.run_folder import RunFolder, fresh_root
from ser_ray.scores.screen import show_scores
from ser_ray.search.search import Search, tune
from ser_ray.search.space import TuneConfig, read_space


@dataclass(frozen=True)
class _Flags:
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


def tune_job(argv: Sequence[str]) -> None:
    """Parse flags, featurize what is new, search, say where the results are."""
    wish = parse_experiment(argv, __doc__, _Flags, TuneConfig, without=("num_workers", "start_from"))
    flags, config = pick_config(_Flags, wish.values), pick_config(TuneConfig, wish.values)
    space = read_space(flags.space, wish.experiment)
    output = storage.normalize(flags.output or fresh_root("tune"))
    begun = storage.exists(storage.join(output, "run.json"))
    if begun and not flags.resume:
        raise UserError(f"{output} holds a search; go on with it by --resume, or choose another --output")
    if flags.resume and not begun:
        raise UserError(f"--resume: there is no search in {output}")
    if not flags.output:
        say(f"Search: {output}")
    folder = RunFolder(output, command_line())
    show_scores(tune(open_store(wish), Search(wish.experiment, config, space, wish.compute), folder))
    say(f"Search: {output} (report.html, best.json, trials.parquet, best/)")
