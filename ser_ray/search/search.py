"""Hyperparameter search on Ray Tune: trials that train by `training.fit` on rows that all of them share.

Trials are judged by UAR on validation speakers. The tested speakers' rows are not even read before the search is over;
then the best settings are trained once more and tested once.

    RUN/trials/*.json     each trial that ended: settings, learning curve, how it ended; `resume` reads these
    RUN/ray/              Ray Tune's own files, TensorBoard's among them
    RUN/trials.parquet    all trials
    RUN/best.json         the best settings, as `jobs/train.py --config` takes them
    RUN/best/             the run that trained and tested them
    RUN/report.html       the search in pictures
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.tune

from ser_ray.base import storage
from ser_ray.base.cluster import Brake
from ser_ray.base.console import say, watch
from ser_ray.base.errors import UserError
from ser_ray.base.workers import count_resources, plan_workers
from ser_ray.experiment.experiment import Experiment, inner_splits
from ser_ray.experiment.run import run
from ser_ray.experiment.splits import Split
from ser_ray.scores import report
from ser_ray.scores.run_folder import claim, refuse_finished
from ser_ray.search.space import Space, TuneConfig, flags_of, settle
from ser_ray.search.trials import Recorder, ranked, read_trials, said
from ser_ray.search.tuning_parts import OBJECTIVE, ToRecorder, run_trial, scheduler, searcher, tune_domain
from ser_ray.speech.emotions import LabelSet
from ser_ray.store.store import Store, differences
from ser_ray.training.worker_rows import share_rows, speakers_of

MAX_FAILURES = 1  # how often a trial is begun anew: its process, or its node, may have been taken away
WAITING = {"CPU": 0, "memory": 1 << 20}  # what a trial takes that waits for its workers; Tune wants it to be something


def tune(
    store: Store,
    experiment: Experiment,
    config: TuneConfig,
    space: Space,
    run_root: str,
    command: str,
    made_speech: bool = False,
) -> dict[str, Any]:
    """Search, then train the best settings once more and test them.

    The first trial has the settings as they are, where the space allows them, so that the search cannot end below.
    A search of the same folder that was cut short goes on; the trials that had ended count.

    Args:
        store: Complete feature store.
        experiment: What to train and whom to test; the search changes its settings.
        config: How to search.
        space: What to change.
        run_root: The search's folder or URI.
        command: The command line, for the record.
        made_speech: Whether the clips are synthetic.

    Returns:
        The content of the best run's `metrics.json`.

    Raises:
        UserError: The search is not possible here, or no trial succeeded.
    """
    refuse_finished(storage.join(run_root, "best"))
    trials = search(store, experiment, config, space, run_root, command)
    good = ranked(trials)
    if not good:
        errors = {trial["error"] for trial in trials}
        raise UserError(f"no trial succeeded: {'; '.join(sorted(errors)) or 'none was begun in time'}")
    best = good[0]
    settled = settle(experiment, best["values"])
    storage.write_json(storage.join(run_root, "best.json"), flags_of(settled) | best["values"])
    # With as many workers as its trial had: the batch size is that of a worker.
    settled = replace(settled, train=replace(settled.train, num_workers=str(config.workers_per_trial)))
    table = pa.Table.from_pylist([{**trial, **trial["values"]} for trial in trials]).drop_columns("values")
    storage.write(storage.join(run_root, "trials.parquet"), lambda stream: pq.write_table(table, stream))
    page = report.search_page(title=run_root.rsplit("/", 1)[-1], trials=trials, space=space, best=best, command=command)
    storage.write_text(storage.join(run_root, "report.html"), page)
    say(f"Best: validation UAR {best['curve'][-1]:.1%} with {said(best['values'])}")
    best_root = storage.join(run_root, "best")
    begun = storage.join(best_root, "run.json")
    if storage.exists(begun) and differences(storage.read_json(begun)["identity"], settled.identity(store)):
        storage.remove_folder(best_root)  # of a search that was killed there, and found something better since
    return run(store, settled, best_root, command, made_speech)


def search(
    store: Store, experiment: Experiment, config: TuneConfig, space: Space, run_root: str, command: str
) -> list[dict[str, Any]]:
    """Try settings on validation speakers; arguments are those of `tune`.

    Returns:
        The trials that ended, those of an earlier part of the search included, as `RUN/trials/*.json` have them.
    """
    loggers = _mlflow_loggers(config.mlflow, run_root)  # a wrong address shall leave no trace
    labels, splits = inner_splits(store, experiment, config.inner_folds)
    searched = {"space": {k: str(v) for k, v in space.items()}, "inner_folds": config.inner_folds}
    claim(run_root, {**experiment.identity(store), **searched}, command)
    trials = read_trials(run_root)
    left = config.num_samples - len(trials)
    if trials:
        say(f"{len(trials)} of {config.num_samples} trials have ended already")
    if left > 0:
        wish = replace(config, num_samples=left)
        _run_trials(store, experiment, wish, space, run_root, labels, splits, trials, loggers)
    storage.remove_folder(storage.join(run_root, "checkpoints"))  # a trial that was cut short begins anew
    return read_trials(run_root)


def _run_trials(
    store: Store,
    experiment: Experiment,
    config: TuneConfig,
    space: Space,
    run_root: str,
    labels: LabelSet,
    splits: list[Split],
    ended: list[dict[str, Any]],
    loggers: list[ray.tune.Callback],
) -> None:
    """Run trials; each leaves a file."""
    wish = replace(experiment.train, num_workers=str(config.workers_per_trial))
    experiment = replace(experiment, train=wish)
    workers = plan_workers(wish.num_workers, wish.device)
    cpus, gpus = count_resources()
    room = max(1, (gpus if workers.gpu else cpus) // config.workers_per_trial)
    concurrent = min(config.max_concurrent or room, room, config.num_samples)
    # A trial of one worker is that worker; one of several waits for them.
    here = plan_workers(wish.num_workers, wish.device, concurrent) if config.workers_per_trial == 1 else None
    rows = np.concatenate([np.union1d(s.train, s.validation) for s in splits])
    speakers = speakers_of(store, experiment.model, rows, rows)  # brought to frames of validation speakers too
    shared = share_rows(store, rows, labels, speakers)
    epochs = experiment.train.epochs * len(splits)
    say(f"{config.num_samples} trials of up to {epochs} epochs, {concurrent} at a time")
    brake = Brake.remote()
    stopper = scheduler(config, epochs, brake)
    arguments = {"store": store, "experiment": experiment, "splits": splits, "shared": shared, "share": concurrent}
    arguments |= {"brake": brake, "here": here}
    trainable = ray.tune.with_parameters(run_trial, arguments=arguments, root=storage.join(run_root, "checkpoints"))
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's own would take what was tried so far for all of it
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one speaks whatever the verbosity
    deadline = time.time() + (config.time_budget_s or math.inf)
    with watch() as screen:
        recorder = Recorder(run_root, screen, config.num_samples + len(ended), ended)
        callback = ToRecorder(recorder, stopper, brake, deadline)
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(trainable, here.resources if here else WAITING),
            param_space={name: tune_domain(domain) for name, domain in space.items()},
            tune_config=ray.tune.TuneConfig(
                metric=OBJECTIVE,
                mode="max",
                num_samples=config.num_samples,
                scheduler=stopper,
                search_alg=searcher(config, experiment, space, ended, concurrent, deadline),
                max_concurrent_trials=concurrent,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=ray.tune.RunConfig(
                storage_path=run_root,
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
