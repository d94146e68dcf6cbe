"""What each part of `log_mel_resnet` is worth: taken away in turn, on one fold, scored on validation speakers.

    python benchmarks/accuracy/ablation.py --data CORPORA --corpus ravdess --protocol emobox --output runs/ablation

Every row is a training of its own under `--output`, kept and resumed like any other; the tested speakers of the fold
are never read. Where several corpora train together, the mean of the corpora's UARs counts besides. A row of 240 clips
by four speakers moves by some three points from seed to seed: small differences are noise.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from ser_ray.base import storage
from ser_ray.base.console import say, show_table
from ser_ray.base.errors import UserError
from ser_ray.base.settings import pick_config, run_job
from ser_ray.experiment.experiment import choose_rows
from ser_ray.experiment.flags import open_store, parse_experiment
from ser_ray.experiment.splits import split
from ser_ray.model.examples import Examples, accuracy_and_uar, predict_logits
from ser_ray.model.speakers import Speakers, listen
from ser_ray.scores.run_folder import RunFolder
from ser_ray.scores.screen import show_epoch
from ser_ray.search.space import put_in
from ser_ray.speech.emotions import parse_labels
from ser_ray.store.rows import open_rows
from ser_ray.training.fit import train
from ser_ray.training.task import Method, Place, Task
from ser_ray.training.worker_rows import usual_speech

sys.path.append(str(Path(__file__).parents[1]))  # where benchmarks have what they share

from shared import write_figures

AWAY = {
    "all of it": {},
    "no stretch": {"stretch": 0.0},
    "no pitch shift": {"pitch": 0.0},
    "no noise": {"noise": 0.0},
    "no gain": {"gain": 0.0},
    "with masks": {"mask_s": 0.3, "mask_bands": 8},
    "no mixup": {"mixup": 0.0},
    "no augmentation": dict.fromkeys(("stretch", "pitch", "noise", "gain", "mixup"), 0.0),
    "no label smoothing": {"label_smoothing": 0.0},
    "no class weights": {"balance": 0.0},
    "class weights over all corpora": {"balance_by": "all"},
    "no normalization by clip": {"clip_mean": "kept"},
    "normalization by clip alone": {"clip_mean": "removed"},
    "normalization by speaker": {"speaker_norm": True},
    "no averaged weights": {"ema": 0.0},
    "no weight decay": {"weight_decay": 0.0},
    "no dropout": {"dropout": 0.0},
    "mean pooling": {"pooling": "mean"},
    "half the width": {"width": 16},
    "twice the depth": {"depth": 2},
}

OF_CORPORA = "class weights over all corpora"  # the row that needs several


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        data: Folders, URIs or tables that hold corpora.
        store: The feature store's folder or URI; by default `stores/` and a name drawn from settings and data.
        output: Folder or URI of the trainings.
        rows: Names of the rows to do, such as "no mixup"; all when empty.
        verbose: Show Ray's own log lines.
        json: File for the figures; none is written when empty.
    """

    data: tuple[str, ...] = ()
    store: str | None = None
    output: str = "runs/ablation"
    verbose: bool = False
    rows: tuple[str, ...] = ()
    json: str = ""


def main(argv: list[str]) -> None:
    wish = parse_experiment(argv, __doc__, Flags, without=("members", "start_from"))
    flags, experiment = pick_config(Flags, wish.values), wish.experiment
    if not flags.data and not flags.store:
        raise UserError("--data is missing: name the folders that hold your corpora")
    if unknown := set(flags.rows) - set(AWAY):
        raise UserError(f"--rows {min(unknown)}: choose from {', '.join(AWAY)}")
    load, command = os.getloadavg()[0], shlex.join(["python", *sys.argv])
    rows = choose_rows(open_rows(open_store(wish)), experiment)
    parts = split(rows, parse_labels(experiment.labels), experiment.split)
    say(parts.description)
    trained, corpora = (sorted(part.values("corpus")) for part in (parts.train, parts.validation))
    table = []
    for name in flags.rows or AWAY:
        if name == OF_CORPORA and len(trained) == 1 and not flags.rows:
            continue
        say(name)
        changed = put_in(experiment, AWAY[name])
        folder = RunFolder(storage.join(storage.normalize(flags.output), name.replace(" ", "-")), command)
        folder.claim(changed.identity(rows))
        method = Method(changed.network, rows.recipe.features, parts.labels, changed.train, changed.changes)
        task = Task(method, parts.train, parts.validation, folder.root)
        if changed.speaker_norm:
            usual_2F = usual_speech(task.train)
            task = replace(task, speakers=Speakers.of(task.rows.recipe.features, usual_2F, listen(task.rows)))
        fitted = train(task, Place(wish.compute), partial(show_epoch, epochs=changed.train.epochs))
        best = max(fitted.history, key=lambda epoch: epoch["validation_uar"])
        last = fitted.history[-1]["validation_uar"]
        row = {"taken away": name, "best UAR": best["validation_uar"], "last UAR": last, "epoch": best["epoch"]}
        if len(corpora) > 1:
            row |= score_corpora(fitted.network, task)
        table.append(row)
        show_table(f"{experiment.split.protocol}, fold {experiment.split.fold}, validation speakers", table)
    facts = {"protocol": experiment.split.protocol, "fold": experiment.split.fold, "corpora": trained}
    facts |= {"epochs": experiment.train.epochs, "description": parts.description, "load_before": load}
    write_figures(flags.json, {**facts, "command": command, "rows": table})


def score_corpora(network: nn.Module, task: Task) -> dict[str, float]:
    """Return the UAR of the best epoch's network on the validation rows of each corpus, and their mean."""
    examples = Examples.from_rows(task.validation, task.method.labels, task.speakers)
    logits_NC = predict_logits(network, examples)
    uars = {}
    for corpus in sorted(task.validation.values("corpus")):
        own = examples.groups == task.validation.corpora.index(corpus)
        uars[corpus] = accuracy_and_uar(logits_NC[own], examples.targets[own])[1].item()
    return {**uars, "mean of corpora": sum(uars.values()) / len(uars)}


if __name__ == "__main__":
    run_job(main)
