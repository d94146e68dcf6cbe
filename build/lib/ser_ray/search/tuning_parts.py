"""What Ray Tune is given for a search: what draws settings, what stops trials early, what a trial does, who records it.

Trials end by themselves: where one of several workers is killed, Ray Train's helpers outlive it.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
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
from ser_ray.experiment.splits import Split
from ser_ray.networks.space import Range
from ser_ray.search.space import TuneConfig, put_in, usual_values
from ser_ray.search.trials import Recorder, ranked
from ser_ray.training.fit import train_many
from ser_ray.training.task import Method, Place, Task
from ser_ray.training.worker_rows import Shared

INNER_FOLD = "inner_fold"  # names the trainings of a trial
OBJECTIVE = "objective"  # mean over inner folds of the best validation UAR so far
STEP = "epochs_due"  # epochs of all inner folds so far, those that patience spared among them: what ASHA compares at
FOLDS = "folds"  # inner folds behind the objective
PLACE = "placement_group"  # of a trial's workers
REDUCTION = 3  # ASHA keeps a third at each rung
FIRST_RUNG = 8  # as a part of all epochs


def searcher(search: Any, ended: list[dict[str, Any]], concurrent: int, deadline: float) -> Any:
    """Return what draws settings, at least once, until the deadline.

    Tune's own limit of time would kill the trials that run, and what their workers hold would stay held.

    Args:
        search: The `search.Search`.
        ended: Trials that have ended already.
        concurrent: Trials at a time.
        deadline: Time after which no trial begins, seconds since 1970.
    """
    config, seed = search.config, search.experiment.train.seed + len(ended)
    as_is = usual_values(search.experiment, search.space)
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


@dataclass(frozen=True)
class Trainable:
    """What each trial does, whatever its settings.

    Attributes:
        experiment: What to train; the trial changes its settings.
        splits: What trains and validates, one for each inner fold.
        shared: The rows of all of them.
        place: Where.
        brake: Where a trial learns that it shall end.
    """

    experiment: Experiment
    splits: list[Split]
    shared: Shared
    place: Place
    brake: ray.actor.ActorHandle


def run_trial(values: dict[str, Any], common: Trainable, root: str) -> None:
    """Train one setting, fold after fold; every epoch is reported to Tune."""
    quiet()
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "600"  # for a trial to end before the next one has its process
    todo, trial = put_in(common.experiment, values), ray.tune.get_context().get_trial_id()
    shared = common.shared
    is_pulled = partial(_is_pulled, common.brake, trial)
    tasks = [
        Task(
            Method(todo.network, shared.rows.recipe.features, parts.labels, todo.train, todo.changes),
            parts.train,
            parts.validation,
            storage.join(root, trial, str(fold)),
            shared.speakers,
            names={INNER_FOLD: fold},
            should_stop=is_pulled,
        )
        for fold, parts in enumerate(common.splits)
    ]
    tell = _ToTune(todo.train.epochs)
    for _, fitted in train_many(tasks, common.place, tell, shared):
        if is_pulled():
            return
        tell.done.append(max(epoch["validation_uar"] for epoch in fitted.history))


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

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.done: list[float] = []
        self.best = (0, 0.0)  # of which inner fold, and its best score

    def __call__(self, epoch: dict[str, Any]) -> None:
        fold, best = epoch[INNER_FOLD], epoch["validation_uar"]
        self.best = (fold, max(best, self.best[1]) if self.best[0] == fold else best)
        score = float(np.mean([*self.done, self.best[1]]))
        note = {OBJECTIVE: score, STEP: fold * self.epochs + epoch["epoch"], FOLDS: fold + 1}
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
