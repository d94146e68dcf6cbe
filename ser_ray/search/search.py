"""Hyperparameter search on Ray Tune: trials that train by `train_many` on rows that all of them share.

Trials are judged by UAR on validation speakers. The tested speakers' rows are not even read before the search is over;
then the best settings are trained once more and tested once.

    RUN/trials/*.json     each trial that ended: settings, learning curve, how it ended; `resume` reads these
    RUN/ray/              Ray Tune's own files, TensorBoard's among them
    RUN/trials.parquet    all trials
    RUN/best.json         the best settings, as `ser-ray train --config` takes them
    RUN/best/             the run that trained and tested them
    RUN/report.html       the search in pictures
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.tune

from ser_ray.base import storage
from ser_ray.base.cluster import Brake, carry_registered
from ser_ray.base.console import say, watch
from ser_ray.base.errors import UserError
from ser_ray.base.workers import count_resources, plan_workers
from ser_ray.experiment.experiment import Experiment, choose_rows, inner_splits
from ser_ray.experiment.run import run
from ser_ray.experiment.splits import Split
from ser_ray.model.speakers import Speakers, listen
from ser_ray.networks.space import Space
from ser_ray.scores.run_folder import RunFolder
from ser_ray.search.space import TuneConfig, flags_of, put_in
from ser_ray.search.trials import Recorder, ranked, read_trials, said
from ser_ray.search.tuning_parts import (
    OBJECTIVE,
    ToRecorder,
    Trainable,
    run_trial,
    scheduler,
    searcher,
    tune_domain,
)
from ser_ray.store.rows import Rows, open_rows
from ser_ray.store.store import Store, differences
from ser_ray.training.settings import Compute
from ser_ray.training.task import Place
from ser_ray.training.worker_rows import share_rows, usual_speech

MAX_FAILURES = 1  # how often a trial is begun anew: its process, or its node, may have been taken away
WAITING = {"CPU": 0, "memory": 1 << 20}  # what a trial takes that waits for its workers; Tune wants it to be something


@dataclass(frozen=True)
class Search:
    """A search for better settings.

    Attributes:
        experiment: What to train and whom to test; the search changes its settings.
        config: How to search.
        space: What to change.
        compute: Where and how to train.
    """

    experiment: Experiment
    config: TuneConfig
    space: Space
    compute: Compute = field(default_factory=Compute)


def tune(store: Store, search: Search, folder: RunFolder) -> dict[str, Any]:
    """Search, then train the best settings once more and test them.

    The first trial has the settings as they are, where the space allows them, so that the search cannot end below.
    A search of the same folder that was cut short goes on; the trials that had ended count.

    Args:
        store: Finished feature store.
        search: What to search, and how.
        folder: Where the search is to be.

    Returns:
        The content of the best run's `metrics.json`.

    Raises:
        UserError: The search is not possible here, or no trial succeeded.
    """
    from ser_ray.scores import report  # with matplotlib

    inner = folder.inner("best")
    inner.refuse_finished()
    rows = choose_rows(open_rows(store), search.experiment)
    trials = try_settings(rows, search, folder)
    good = ranked(trials)
    if not good:
        errors = {trial["error"] for trial in trials}
        raise UserError(f"no trial succeeded: {'; '.join(sorted(errors)) or 'none was begun in time'}")
    best = good[0]
    settled = put_in(search.experiment, best["values"])
    storage.write_json(storage.join(folder.root, "best.json"), flags_of(settled) | best["values"])
    table = pa.Table.from_pylist([{**trial, **trial["values"]} for trial in trials]).drop_columns("values")
    storage.write(storage.join(folder.root, "trials.parquet"), lambda stream: pq.write_table(table, stream))
    title = folder.root.rsplit("/", 1)[-1]
    page = report.search_page(title=title, trials=trials, space=search.space, best=best, command=folder.command)
    storage.write_text(storage.join(folder.root, "report.html"), page)
    say(f"Best: validation UAR {best['curve'][-1]:.1%} with {said(best['values'])}")
    begun = storage.join(inner.root, "run.json")
    if storage.exists(begun) and differences(storage.read_json(begun)["identity"], settled.identity(rows)):
        storage.remove_folder(inner.root)  # of a search that was killed there, and found something better since
    # With as many workers as its trial had: the batch size is that of a worker.
    return run(store, settled, inner, replace(search.compute, num_workers=str(search.config.workers_per_trial)))


def try_settings(rows: Rows, search: Search, folder: RunFolder) -> list[dict[str, Any]]:
    """Try settings on validation speakers.

    Args:
        rows: Those of the chosen corpora.
        search: What to search, and how.
        folder: Where the search is to be.

    Returns:
        The trials that ended, those of an earlier part of the search included, as `RUN/trials/*.json` have them.
    """
    config = search.config
    loggers = _mlflow_loggers(config.mlflow, folder.root)  # a wrong address shall leave no trace
    splits = inner_splits(rows, search.experiment, config.inner_folds)
    searched = {"space": {k: str(v) for k, v in search.space.items()}, "inner_folds": config.inner_folds}
    folder.claim({**search.experiment.identity(rows), **searched})
    trials = read_trials(folder.root)
    left = config.num_samples - len(trials)
    if trials:
        say(f"{len(trials)} of {config.num_samples} trials have ended already")
    if left > 0:
        wish = replace(search, config=replace(config, num_samples=left))
        _run_trials(_share_rows(rows, splits, wish), wish, folder, trials, loggers)
    storage.remove_folder(storage.join(folder.root, "checkpoints"))  # a trial that was cut short begins anew
    return read_trials(folder.root)


def _share_rows(rows: Rows, splits: list[Split], search: Search) -> Trainable:
    """Read the rows that all trials share, and say what each of them does on which."""
    config, compute = search.config, replace(search.compute, num_workers=str(search.config.workers_per_trial))
    workers = plan_workers(compute.num_workers, compute.device)
    cpus, gpus = count_resources()
    room = max(1, (gpus if workers.gpu else cpus) // config.workers_per_trial)
    concurrent = min(config.max_concurrent or room, room, config.num_samples)
    # A trial of one worker is that worker; one of several waits for them.
    alone = config.workers_per_trial == 1
    here = plan_workers(compute.num_workers, compute.device, concurrent) if alone else None
    chosen = splits[0].train.union(splits[0].validation)
    for parts in splits[1:]:
        chosen = chosen.union(parts.train).union(parts.validation)
    speakers = None
    if search.experiment.speaker_norm:  # brought to frames of validation speakers too
        speakers = Speakers.of(chosen.recipe.features, usual_speech(chosen), listen(chosen))
    shared = share_rows(chosen, splits[0].labels, speakers)
    return Trainable(search.experiment, splits, shared, Place(compute, concurrent, here), Brake.remote())


def _run_trials(
    trainable: Trainable,
    search: Search,
    folder: RunFolder,
    ended: list[dict[str, Any]],
    loggers: list[ray.tune.Callback],
) -> None:
    """Run trials; each leaves a file."""
    config, place = search.config, trainable.place
    epochs = search.experiment.train.epochs * len(trainable.splits)
    say(f"{config.num_samples} trials of up to {epochs} epochs, {place.share} at a time")
    stopper = scheduler(config, epochs, trainable.brake)
    what = ray.tune.with_parameters(run_trial, common=trainable, root=storage.join(folder.root, "checkpoints"))
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's own would take what was tried so far for all of it
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one speaks whatever the verbosity
    deadline = time.time() + (config.time_budget_s or math.inf)
    carry_registered()
    with watch() as screen:
        recorder = Recorder(folder.root, screen, config.num_samples + len(ended), ended)
        callback = ToRecorder(recorder, stopper, trainable.brake, deadline)
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(what, place.here.resources if place.here else WAITING),
            param_space={name: tune_domain(domain) for name, domain in search.space.items()},
            tune_config=ray.tune.TuneConfig(
                metric=OBJECTIVE,
                mode="max",
                num_samples=config.num_samples,
                scheduler=stopper,
                search_alg=searcher(search, ended, place.share, deadline),
                max_concurrent_trials=place.share,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=ray.tune.RunConfig(
                storage_path=folder.root,
                name="ray",
                verbose=0,
                callbacks=[callback, *loggers],
                failure_config=ray.tune.FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        tuner.fit()


def _mlflow_loggers(address: str, run_root: str) -> list[ray.tune.Callback]:
    """Return what tells an MLflow server of every trial, if there is to be one; its experiment is the run's folder."""
    if not address:
        return []
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # by default a wrong address takes minutes
    try:
        import mlflow
        from ray.air.integrations.mlflow import MLflowLoggerCallback
    except ImportError:
        raise UserError("--mlflow needs MLflow's client: pip install -e '.[mlflow]'") from None
    try:
        mlflow.MlflowClient(address).search_experiments(max_results=1)
    except mlflow.MlflowException as error:
        raise UserError(f"--mlflow {address}: {str(error).splitlines()[0]}") from None
    return [MLflowLoggerCallback(address, experiment_name=run_root)]
