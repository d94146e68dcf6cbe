"""Cross-validation: all folds of a protocol, side by side as resources allow, resumable, pooled.

Each fold is a run of its own in `RUN/fold-K`; those that are finished already are taken as they are. All trainings of
all folds share the rows of the store.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa

from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.base.workers import count_resources, plan_workers
from ser_ray.experiment.experiment import Experiment, choose_rows
from ser_ray.experiment.run import finish_run, plan_run
from ser_ray.experiment.splits import num_folds
from ser_ray.model.speakers import listen
from ser_ray.scores import metrics
from ser_ray.scores.run_folder import RunFolder, read_run
from ser_ray.scores.scores import Scores, join_leaks
from ser_ray.scores.screen import headline, show_epoch
from ser_ray.store.rows import Rows, open_rows
from ser_ray.store.store import Store, differences
from ser_ray.training.fit import train_many
from ser_ray.training.settings import Compute
from ser_ray.training.task import Fitted, Place


def cross_validate(
    store: Store, experiment: Experiment, folder: RunFolder, compute: Compute | None = None
) -> dict[str, Any]:
    """Run all folds that are not finished yet, then pool them.

    Args:
        store: Finished feature store.
        experiment: What to do; the fold of its split is ignored.
        folder: Where the whole is to be; an unfinished one goes on.
        compute: Where and how to train; None for what is there.

    Returns:
        The content of `metrics.json`: pooled scores, those of each fold, their mean and standard deviation.

    Raises:
        UserError: The store, the cluster or a fold does not allow it.
    """
    folder.refuse_finished()
    compute = compute or Compute()
    rows = choose_rows(open_rows(store), experiment)
    folders = [folder.inner(f"fold-{fold}") for fold in range(num_folds(rows, experiment.split))]
    identity = experiment.identity(rows)
    identity["split"]["fold"] = "all"
    folder.claim(identity)
    todo = [fold for fold, one in enumerate(folders) if not one.is_finished]
    for one in (one for fold, one in enumerate(folders) if fold not in todo):
        if changed := differences(read_run(one.root)[0]["config"], identity, without=("fold",)):
            raise UserError(f"{one.root} was run with other settings ({changed}); choose another --output")
    share = max(1, min(len(todo), _side_by_side(compute)))
    say(f"{len(folders)} folds, {len(todo)} to do, {share} at a time")
    if todo:
        _run_folds(rows, experiment, {fold: folders[fold] for fold in todo}, Place(compute, share))
    return _pool(rows, identity, folder, folders)


def _run_folds(rows: Rows, experiment: Experiment, folders: dict[int, RunFolder], place: Place) -> None:
    """Train and test some folds; each is finished as soon as the last of its members is trained."""
    known = listen(rows) if experiment.speaker_norm else None
    plans = []
    for fold, folder in folders.items():
        one = replace(experiment, split=replace(experiment.split, fold=fold))
        plans.append(plan_run(rows, one, folder, known, {"fold": fold}))
    owners = [(plan, k) for plan in plans for k in range(len(plan.tasks))]
    fitted: list[dict[int, Fitted]] = [{} for _ in plans]
    tasks = [plan.tasks[k] for plan, k in owners]

    def tell(epoch: dict[str, Any]) -> None:
        show_epoch(epoch, experiment.train.epochs)

    for i, one in train_many(tasks, place, tell, at_once=place.share):
        plan, k = owners[i]
        members = fitted[plans.index(plan)]
        members[k] = one
        if len(members) == len(plan.tasks):
            scores = finish_run(plan, [members[k] for k in sorted(members)])
            say(f"fold {plan.experiment.split.fold}: {headline(scores)}")
            members.clear()


def _side_by_side(compute: Compute) -> int:
    """Return how many folds the cluster can train at once."""
    cpus, gpus = count_resources()
    workers = plan_workers(compute.num_workers, compute.device)
    if compute.num_workers == "auto":
        return gpus if workers.gpu else cpus
    each = workers.count if isinstance(workers.count, int) else workers.count[0]
    return max(1, (gpus if workers.gpu else cpus) // each)


def _pool(rows: Rows, identity: dict[str, Any], folder: RunFolder, folders: list[RunFolder]) -> dict[str, Any]:
    """Score all folds together and write the folder of the whole."""
    folds = [read_run(one.root) for one in folders]
    first, _ = folds[0]
    predictions = pa.concat_tables([table for _, table in folds])
    scores = Scores(
        measured=metrics.pool([table for _, table in folds], first["labels"], seed=identity["train"]["seed"]),
        protocol=first["protocol"],
        fold="all",
        description=f"All {len(folds)} folds together, each tested once. First fold: {first['description']}",
        leaks=join_leaks([scores["leaks"] for scores, _ in folds]),
        config=identity,
        command=folder.command,
        timing={"train_s": sum(scores["timing"]["train_s"] for scores, _ in folds)},
        made_speech=rows.made_speech,
        notes=tuple(dict.fromkeys(note for scores, _ in folds for note in scores["notes"])),
    )
    paths = dict(zip(*(rows[name].to_pylist() for name in ("utterance_id", "path")), strict=True))
    names = predictions.column("utterance_id").to_pylist()
    predictions = predictions.append_column("path", pa.array([paths[name] for name in names]))
    return folder.finish(scores, predictions, rows.source.store)
