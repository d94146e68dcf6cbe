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
import re
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator
from ray.util.placement_group import PlacementGroup, remove_placement_group

from ser_ray import report, storage
from ser_ray.cluster import Brake, count_resources, plan_workers, quiet
from ser_ray.console import say, watch
from ser_ray.emotions import LabelSet
from ser_ray.errors import UserError
from ser_ray.experiment import Experiment, inner_splits, run
from ser_ray.results import claim, refuse_finished
from ser_ray.search_space import Range, Space, TuneConfig, flags_of, settle, usual
from ser_ray.splits import Split
from ser_ray.store import Store, differences
from ser_ray.training import fit
from ser_ray.training_data import Shared, share_rows
from ser_ray.trials import Recorder, ranked, read_trials, said

OBJECTIVE = "objective"  # mean over inner folds of the best validation UAR so far
STEP = "epochs_due"  # epochs of all inner folds so far, those that patience spared among them: what ASHA compares at
FOLDS = "folds"  # inner folds behind the objective
PLACE = "placement_group"  # of a trial's workers
REDUCTION = 3  # ASHA keeps a third at each rung
FIRST_RUNG = 8  # as a part of all epochs
DRIVER = {"CPU": 0, "memory": 1 << 20}  # a trial's own process waits for its workers; Tune wants it to take something


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
    shared = share_rows(store, np.concatenate([np.union1d(s.train, s.validation) for s in splits]), labels)
    epochs = experiment.train.epochs * len(splits)
    say(f"{config.num_samples} trials of up to {epochs} epochs, {concurrent} at a time")
    brake = Brake.remote()
    scheduler: TrialScheduler = FIFOScheduler()
    if config.early_stopping:
        rungs = {"grace_period": max(1, epochs // FIRST_RUNG), "reduction_factor": REDUCTION}
        scheduler = _Asha(brake, time_attr=STEP, max_t=epochs + 1, **rungs)  # trials that come so far end by themselves
    arguments = {"store": store, "experiment": experiment, "splits": splits, "shared": shared, "share": concurrent}
    arguments["brake"] = brake
    trainable = ray.tune.with_parameters(_trial, arguments=arguments, root=storage.join(run_root, "checkpoints"))
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's own would take what was tried so far for all of it
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one speaks whatever the verbosity
    deadline = time.time() + (config.time_budget_s or math.inf)
    with watch() as screen:
        recorder = Recorder(run_root, screen, config.num_samples + len(ended), ended)
        callback = _ToRecorder(recorder, scheduler, brake, deadline)
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(trainable, DRIVER),
            param_space={name: _tune_domain(domain) for name, domain in space.items()},
            tune_config=ray.tune.TuneConfig(
                metric=OBJECTIVE,
                mode="max",
                num_samples=config.num_samples,
                scheduler=scheduler,
                search_alg=_searcher(config, experiment, space, ended, concurrent, deadline),
                max_concurrent_trials=concurrent,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=ray.tune.RunConfig(storage_path=run_root, name="ray", verbose=0, callbacks=[callback, *loggers]),
        )
        tuner.fit()


def _searcher(
    config: TuneConfig,
    experiment: Experiment,
    space: Space,
    ended: list[dict[str, Any]],
    concurrent: int,
    deadline: float,
) -> Any:
    """Return what draws settings, at least once, until the deadline.

    Tune's own limit of time would kill the trials that run, and what their workers hold would stay held.
    """
    seed = experiment.train.seed + len(ended)
    as_is = usual(experiment, space)
    first = [as_is] if as_is and as_is not in [trial["values"] for trial in ended] else None
    if config.search == "random":
        # Tune holds all other searchers, but not this one, to its own limit of trials at a time.
        return _Random(deadline, first, max_concurrent=concurrent, random_state=seed)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    class Tpe(OptunaSearch):
        begun = False

        def suggest(self, trial_id: str) -> Any:
            if self.begun and time.time() > deadline:
                return self.FINISHED
            self.begun = True
            return super().suggest(trial_id)

    known = ranked(ended)
    return Tpe(
        sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        points_to_evaluate=[trial["values"] for trial in known] or first,
        evaluated_rewards=[trial["curve"][-1] for trial in known] or None,
    )


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


def _tune_domain(domain: Range | tuple[Any, ...]) -> Any:
    if isinstance(domain, tuple):
        return ray.tune.choice(list(domain))
    if isinstance(domain.low, int) and isinstance(domain.high, int):
        return (ray.tune.lograndint if domain.log else ray.tune.randint)(domain.low, domain.high + 1)
    return (ray.tune.loguniform if domain.log else ray.tune.uniform)(domain.low, domain.high)


def _trial(values: dict[str, Any], arguments: dict[str, Any], root: str) -> None:
    """Train one setting, fold after fold; every epoch is reported to Tune."""
    quiet()
    todo = settle(arguments["experiment"], values)
    shared: Shared = arguments["shared"]
    done: list[float] = []
    trial = ray.tune.get_context().get_trial_id()
    folder = storage.join(root, trial)
    for fold, parts in enumerate(arguments["splits"]):
        what = arguments["store"], parts, parts.labels, todo.model, todo.train, todo.frame_augment
        where = storage.join(folder, str(fold))
        stop = partial(_is_pulled, arguments["brake"], trial)
        tell = _ToTune(done, fold * todo.train.epochs)
        fitted = fit(*what, where, lambda epoch: None, arguments["share"], shared, [tell], stop)
        if _is_pulled(arguments["brake"], trial):
            return
        done.append(max(epoch["validation_uar"] for epoch in fitted.history))


def _is_pulled(brake: ray.actor.ActorHandle, trial: str) -> bool:
    return ray.get(brake.is_pulled.remote(trial))


class _Random(BasicVariantGenerator):
    """Random search that ends at a deadline."""

    def __init__(self, deadline: float, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.deadline, self.begun = deadline, False

    def next_trial(self) -> Any:
        """Return the next trial, or none."""
        if self.begun and time.time() > self.deadline:
            self.set_finished()
        self.begun = True
        return super().next_trial()


class _ToTune(TuneReportCallback):
    """Runs in Ray Train's controller; hands each epoch to Tune."""

    def __init__(self, done: list[float], epochs_before: int) -> None:
        super().__init__()
        self.done, self.epochs_before, self.best = list(done), epochs_before, 0.0

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Report the mean over inner folds of the best validation UAR so far."""
        if "validation_uar" in metrics[0]:
            self.best = max(self.best, metrics[0]["validation_uar"])
            score = float(np.mean([*self.done, self.best]))
            note = {OBJECTIVE: score, STEP: self.epochs_before + metrics[0]["epoch"], FOLDS: len(self.done) + 1}
            self._training_actor_item_queue.put({**note, PLACE: metrics[0][PLACE]})


class _Asha(ASHAScheduler):
    """ASHA (Li et al., Massively parallel hyperparameter tuning, 2020) that lets trials end by themselves.

    Tune kills a trial that it stops; Ray Train's helpers then outlive it.
    """

    def __init__(self, brake: ray.actor.ActorHandle, **options: Any) -> None:
        super().__init__(**options)
        self.brake, self.stopped = brake, set()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide as ASHA does; a trial that is to stop is asked to."""
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP and trial.trial_id not in self.stopped:
            self.stopped.add(trial.trial_id)
            self.brake.pull.remote(trial.trial_id)
        return TrialScheduler.CONTINUE


class _ToRecorder(ray.tune.Callback):
    """Runs in the driver; tells the recorder what Tune tells it."""

    def __init__(
        self, recorder: Recorder, scheduler: TrialScheduler, brake: ray.actor.ActorHandle, deadline: float
    ) -> None:
        self.recorder, self.scheduler, self.brake, self.deadline = recorder, scheduler, brake, deadline
        self.late: set[str] = set()
        self.places: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its callbacks with its own state, which is never read again."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass it on."""
        self.recorder.begin(trial.trial_id, trial.config)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Pass an epoch on."""
        if OBJECTIVE in result:
            self.places[trial.trial_id] = result[PLACE]
            self.recorder.epoch(trial.trial_id, result["training_iteration"], result[OBJECTIVE], result[FOLDS])
            if time.time() > self.deadline and trial.trial_id not in self.late:
                self.late.add(trial.trial_id)
                self.brake.pull.remote(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on a trial that ended by itself or was stopped."""
        stopped = trial.trial_id in self.late or trial.trial_id in getattr(self.scheduler, "stopped", ())
        self._end(trial, "stopped" if stopped else "finished", "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on a trial that failed."""
        with open(trial.error_file) as stream:
            lines = [line.strip() for line in stream if line.strip()]
        named = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        self._end(trial, "failed", (named or lines)[-1].removeprefix("ser_ray.errors.UserError: "))

    def _end(self, trial: Any, status: str, error: str) -> None:
        if place := self.places.pop(trial.trial_id, ""):
            # Where a trial's process died, nobody else gives back what its workers held.
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(place))))
        self.recorder.end(trial.trial_id, status, error)
