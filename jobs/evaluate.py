"""Score a saved model on any corpus, or several together, or compare two runs.

    python jobs/evaluate.py --run runs/first --data ~/other_corpus
    python jobs/evaluate.py --run runs/first --data clips.csv --output runs/elsewhere --embed-audio
    python jobs/evaluate.py --run runs/first runs/second                             # together, on what both tested
    python jobs/evaluate.py --run runs/first runs/second --data ~/other_corpus       # together, on any corpus
    python jobs/evaluate.py --compare runs/first runs/second

Clips of speakers that the model heard in training are left out, and said.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ser_ray.base import storage
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.base.settings import parse_flags, pick_config, run_job
from ser_ray.experiment.evaluate import evaluate
from ser_ray.experiment.together import evaluate_together
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.model.together import open_models
from ser_ray.scores.comparison import compare_runs, show_comparison
from ser_ray.scores.run_folder import RunFolder, fresh_root, read_run
from ser_ray.scores.screen import show_scores
from ser_ray.store.pipeline import featurize, find_and_connect


@dataclass(frozen=True)
class Flags:
    """Flags of this job.

    Attributes:
        run: A finished run, or the folder of a model, here or at a URI; several answer together, by the mean of their
            log-probabilities, with weights fitted on the speakers who validated them all.
        data: Folders, URIs or tables (CSV, Parquet) that hold corpora; without it a run's own scores are shown, and
            several answer together on the clips that all of them tested.
        encoder: Where the models' encoders are now, if not where they were in training; told by their content.
        store: The feature store's folder or URI; by default `stores/` and a name drawn from settings and data.
        output: Folder or URI for the results; by default a fresh name under `runs/`.
        compare: Two finished runs, to be compared on the clips that both tested.
        embed_audio: Put the sounds of the worst mistakes into the report. Most corpora may not be passed on.
        verbose: Show Ray's own log lines.
        config: YAML or JSON file of flags and values; flags beat it.
    """

    run: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    encoder: tuple[str, ...] = ()
    store: str | None = None
    output: str | None = None
    compare: tuple[str, ...] = ()
    embed_audio: bool = False
    verbose: bool = False
    config: str | None = None


def main(argv: Sequence[str]) -> None:
    """Parse flags, score or compare, say where the results are."""
    flags = pick_config(Flags, parse_flags(argv, __doc__, Flags))
    command = shlex.join(["python", *sys.argv])
    if bool(flags.run) == bool(flags.compare):
        raise UserError("name one of --run RUN and --compare RUN RUN")
    if flags.compare:
        if len(flags.compare) != 2:
            raise UserError(f"--compare takes two runs, got {len(flags.compare)}")
        output = storage.normalize(flags.output or fresh_root("compare"))
        page = storage.join(output, "report.html")
        show_comparison(compare_runs(*map(storage.normalize, flags.compare), page, command))
        say(f"Report: {page}")
        return
    runs = [storage.normalize(run) for run in flags.run]
    if not flags.data and len(runs) == 1:
        show_scores(read_run(runs[0])[0])
        return
    folder = RunFolder(storage.normalize(flags.output or fresh_root("evaluate")), command, flags.embed_audio)
    folder.refuse_finished()
    if not flags.data:
        show_scores(evaluate_together(runs, folder))
    else:
        together = open_models(runs)
        if flags.encoder:  # a store that is there needs none
            together = together.locate(flags.encoder)
        if flags.store and len(together.features) > 1:
            raise UserError("--store names one store, but the runs take features of several kinds: leave it out")
        manifest = find_and_connect(flags.data, flags.verbose)
        recipes = [FeaturizeConfig(features, ("none",)) for features in together.features]
        show_scores(evaluate(together, [featurize(manifest, recipe, flags.store) for recipe in recipes], folder))
    say(f"Results: {folder.root} (report.html, metrics.json, predictions.parquet)")


if __name__ == "__main__":
    run_job(main)
