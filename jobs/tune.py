r"""Search for better settings of training, network and augmentation, judged on validation speakers.

    python jobs/tune.py --data ~/corpora --output runs/tune1 --num-samples 30
    python jobs/tune.py --data ~/corpora --output runs/tune1 --num-samples 30 --resume     # goes on after a crash
    python jobs/train.py --data ~/corpora --config runs/tune1/best.json
    ray job submit --working-dir . -- python jobs/tune.py --data s3://bucket/corpora --store s3://bucket/store \
        --output s3://bucket/runs/tune1

Trials run side by side as CPUs or GPUs allow. The tested speakers are left alone until the end; then the best settings
are trained once more and tested once.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ser_ray.base import storage
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.base.settings import pick_config, run_job
from ser_ray.experiment.flags import open_store, parse_experiment
from ser_ray.scores.run_folder import RunFolder, fresh_root
from ser_ray.scores.screen import show_scores
from ser_ray.search.search import Search, tune
from ser_ray.search.space import TuneConfig, read_space


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
    wish = parse_experiment(argv, __doc__, Flags, TuneConfig, without=("num_workers", "start_from"))
    flags, config = pick_config(Flags, wish.values), pick_config(TuneConfig, wish.values)
    space = read_space(flags.space, wish.experiment)
    output = storage.normalize(flags.output or fresh_root("tune"))
    begun = storage.exists(storage.join(output, "run.json"))
    if begun and not flags.resume:
        raise UserError(f"{output} holds a search; go on with it by --resume, or choose another --output")
    if flags.resume and not begun:
        raise UserError(f"--resume: there is no search in {output}")
    if not flags.output:
        say(f"Search: {output}")
    folder = RunFolder(output, shlex.join(["python", *sys.argv]))
    show_scores(tune(open_store(wish), Search(wish.experiment, config, space, wish.compute), folder))
    say(f"Search: {output} (report.html, best.json, trials.parquet, best/)")


if __name__ == "__main__":
    run_job(main)
