"""What Ray Tune is given for a search: what draws settings, what stops trials early, what a trial does, who records it.

Trials end by themselves: where one of several workers is killed, Ray Train's helpers outlive it.
"""

from __future__ import annotations

import os
import re
import time
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator
from ray.util.placement_group import PlacementGroup, remove_placement_group

from ser_ray.base import storage
from ser_ray.base.cluster import quiet
from ser_ray.experiment.experiment import Experiment
from ser_ray.search.space import Range, Space, TuneConfig, settle, usual
from ser_ray.search.trials import Recorder, ranked
from ser_ray.training.fit import fit
from ser_ray.training.worker_rows import Shared

OBJECTIVE = "objective"  # mean over inner folds of the best validation UAR so far
STEP = "epochs_due"  # epochs of all inner folds so far, those that patience spared among them: what ASHA compares at
FOLDS = "folds"  # inner folds behind the objective
PLACE = "placement_group"  # of a trial's workers
REDUCTION = 3  # ASHA keeps a third at each rung
FIRST_RUNG = 8  # as a part of all epochs


def searcher(
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


def tune_domain(domain: Range | tuple[Any, ...]) -> Any:
    """Return a domain of a search space as Tune knows it."""
    if isinstance(domain, tuple):
        return ray.tune.choice(list(domain))
    if isinstance(domain.low, int) and isinstance(domain.high, int):
        return (ray.tune.lograndint if domain.log else ray.tune.randint)(domain.low, domain.high + 1)
    return (ray.tune.loguniform if domain.log else ray.tune.uniform)(domain.low, domain.high)


def scheduler(config: TuneConfig, epochs: int, brake: ray.actor.ActorHandle) -> TrialScheduler:
    """Return what decides after each epoch whether a trial goes on; `epochs` are those of all its inner folds."""
    if not config.early_stopping:
        return FIFOScheduler()
    rungs = {"grace_period": max(1, epochs // FIRST_RUNG), "reduction_factor": REDUCTION}
    return Asha(brake, time_attr=STEP, max_t=epochs + 1, **rungs)  # trials that come so far end by themselves


def run_trial(values: dict[str, Any], arguments: dict[str, Any], root: str) -> None:
    """Train one setting, fold after fold; every epoch is reported to Tune."""
    quiet()
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "600"  # for a trial to end before the next one has its process
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
        fitted = fit(*what, where, tell, arguments["share"], shared, stop, here=arguments["here"])
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


class _ToTune:
    """Tells Tune of each epoch: the mean over inner folds of the best validation UAR so far."""

    def __init__(self, done: list[float], epochs_before: int) -> None:
        self.done, self.epochs_before, self.best = list(done), epochs_before, 0.0

    def __call__(self, epoch: dict[str, Any]) -> None:
        self.best = max(self.best, epoch["validation_uar"])
        score = float(np.mean([*self.done, self.best]))
        note = {OBJECTIVE: score, STEP: self.epochs_before + epoch["epoch"], FOLDS: len(self.done) + 1}
        ray.tune.report({**note, PLACE: epoch.get(PLACE, "")})


class Asha(ASHAScheduler):
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


class ToRecorder(ray.tune.Callback):
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
        if any("The actor died unexpectedly" in line for line in lines):
            lines = ["its process died (killed, out of memory, or its node was lost): see Ray's log files"]
        named = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        self._end(trial, "failed", (named or lines)[-1].removeprefix("ser_ray.base.errors.UserError: "))

    def _end(self, trial: Any, status: str, error: str) -> None:
        if place := self.places.pop(trial.trial_id, ""):
            # Where a trial's process died, nobody else gives back what its workers held.
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(place))))
        self.recorder.begin(trial.trial_id, trial.config)  # where its process never came up
        self.recorder.end(trial.trial_id, status, error)
