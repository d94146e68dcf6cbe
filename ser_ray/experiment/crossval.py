"""Cross-validation: all folds of a protocol, side by side as resources allow, resumable, pooled.

Each fold is a run of its own in `RUN/fold-K`; those that are finished already are taken as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray

from ser_ray.base import storage
from ser_ray.base.cluster import Board, following, quiet
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.base.workers import count_resources, plan_workers
from ser_ray.experiment.experiment import Experiment, choose_rows
from ser_ray.experiment.run import run
from ser_ray.experiment.splits import num_folds
from ser_ray.scores import metrics
from ser_ray.scores.run_folder import (
    claim,
    headline,
    is_finished,
    read_run,
    refuse_finished,
    show_epoch,
    versions,
    write_run,
)
from ser_ray.store.store import Store, differences


def cross_validate(
    store: Store,
    experiment: Experiment,
    run_root: str,
    command: str,
    made_speech: bool = False,
    embed_audio: bool = False,
) -> dict[str, Any]:
    """Run all folds that are not finished yet, then pool them.

    Args:
        store: Complete feature store.
        experiment: What to do; the fold of its split is ignored.
        run_root: The folder or URI of the whole; an unfinished one goes on.
        command: The command line, for the record.
        made_speech: Whether the clips are synthetic.
        embed_audio: Put the sounds of the worst mistakes into the reports.

    Returns:
        The content of `metrics.json`: pooled scores, those of each fold, their mean and standard deviation.

    Raises:
        UserError: The store, the cluster or a fold does not allow it.
    """
    refuse_finished(run_root)
    rows, _ = choose_rows(store, experiment)
    count = num_folds(rows, experiment.split)
    identity = experiment.identity(store)
    identity["split"]["fold"] = "all"
    claim(run_root, identity, command)
    roots = [storage.join(run_root, f"fold-{fold}") for fold in range(count)]
    todo = [fold for fold in range(count) if not is_finished(roots[fold])]
    for root in (roots[fold] for fold in range(count) if fold not in todo):
        if changed := differences(read_run(root)[0]["config"], identity, without=("fold",)):
            raise UserError(f"{root} was run with other settings ({changed}); choose another --output")
    share = min(len(todo), _side_by_side(experiment))
    say(f"{count} folds, {len(todo)} to do, {max(share, 1)} at a time")

    board = Board.remote()
    with following(board, lambda epoch: show_epoch(epoch, experiment.train.epochs)):
        running: dict[Any, int] = {}
        while todo or running:
            while todo and len(running) < share:
                fold = todo.pop(0)
                one = replace(experiment, split=replace(experiment.split, fold=fold))
                options = {"made_speech": made_speech, "embed_audio": embed_audio, "share": share}
                task = _run_fold.remote(board, store, one, roots[fold], command, options)
                running[task] = fold
            (done, *_), _ = ray.wait(list(running))
            fold = running.pop(done)
            try:
                say(f"fold {fold}: {headline(ray.get(done))}")
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
    return _pool(store, identity, run_root, roots, command, embed_audio)


def _side_by_side(experiment: Experiment) -> int:
    """Return how many folds the cluster can train at once."""
    cpus, gpus = count_resources()
    config = experiment.train
    if config.num_workers == "auto":
        return gpus if plan_workers("auto", config.device).gpu else cpus
    workers = plan_workers(config.num_workers, config.device)
    each = workers.count if isinstance(workers.count, int) else workers.count[0]
    return max(1, (gpus if workers.gpu else cpus) // each)


@ray.remote(num_cpus=0, max_retries=0)
def _run_fold(
    board: ray.actor.ActorHandle,
    store: Store,
    experiment: Experiment,
    run_root: str,
    command: str,
    options: dict[str, Any],
) -> dict[str, Any]:
    quiet()

    def pin_up(epoch: dict[str, Any]) -> None:
        board.add.remote({**epoch, "fold": experiment.split.fold})

    return run(store, experiment, run_root, command, on_epoch=pin_up, **options)


def _pool(
    store: Store, identity: dict[str, Any], run_root: str, roots: list[str], command: str, embed_audio: bool
) -> dict[str, Any]:
    """Score all folds together and write the folder of the whole."""
    folds = [read_run(root) for root in roots]
    first, _ = folds[0]
    predictions = pa.concat_tables([table for _, table in folds])
    leaks = {
        pair: {kind: max(scores["leaks"][pair][kind] for scores, _ in folds) for kind in counts}
        for pair, counts in first["leaks"].items()
        if isinstance(counts, dict)
    }
    scores = {
        **metrics.pool([table for _, table in folds], first["labels"], seed=identity["train"]["seed"]),
        "protocol": first["protocol"],
        "fold": "all",
        "description": f"All {len(folds)} folds together, each tested once. First fold: {first['description']}",
        "notes": first["notes"],
        "leaks": {**{k: v for k, v in first["leaks"].items() if not isinstance(v, dict)}, **leaks},
        "config": identity,
        "command": command,
        "versions": versions(),
        "timing": {"train_s": sum(scores["timing"]["train_s"] for scores, _ in folds)},
    }
    paths = dict(zip(*(store.rows().column(name).to_pylist() for name in ("utterance_id", "path")), strict=True))
    names = predictions.column("utterance_id").to_pylist()
    predictions = predictions.append_column("path", pa.array([paths[name] for name in names]))
    write_run(run_root, store, scores, predictions, embed_audio=embed_audio)
    return scores
