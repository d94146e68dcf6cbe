"""What each part of `log_mel_resnet` is worth: taken away in turn, on one fold, scored on validation speakers.

    python benchmarks/ablation.py --data CORPORA --corpus ravdess --protocol emobox --output runs/ablation

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

import numpy as np
from featurize import machine, versions  # the benchmark beside this one
from torch import nn

from ser_ray.base import storage
from ser_ray.base.console import say, show_table
from ser_ray.base.errors import UserError
from ser_ray.base.settings import pick_config, run_job
from ser_ray.experiment.experiment import choose_rows
from ser_ray.experiment.flags import open_store, parse_experiment
from ser_ray.experiment.splits import split
from ser_ray.model.examples import COLUMNS, Examples, accuracy_and_uar, predict_logits
from ser_ray.scores.run_folder import claim  # GONE
from ser_ray.scores.screen import show_epoch
from ser_ray.store.accounts import settle
from ser_ray.speech.emotions import parse_labels
from ser_ray.training.fit import fit  # GONE
from ser_ray.training.worker_rows import speakers_of  # GONE

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
    experiment, values = parse_experiment(argv, __doc__, Flags, without=("members", "start_from"))
    flags = pick_config(Flags, values)
    if not flags.data and not flags.store:
        raise UserError("--data is missing: name the folders that hold your corpora")
    if unknown := set(flags.rows) - set(AWAY):
        raise UserError(f"--rows {min(unknown)}: choose from {', '.join(AWAY)}")
    load = os.getloadavg()[0]
    store, _ = open_store(values, experiment)
    rows, chosen = choose_rows(store, experiment)
    parts = split(rows, parse_labels(experiment.labels), experiment.split)
    say(parts.description)
    parts = replace(parts, train=chosen[parts.train], validation=chosen[parts.validation])
    held_out = store.take(parts.validation, COLUMNS)
    heard = store.take(parts.train, ["utterance_id", "augmentation", "corpus"])
    trained, corpora = (sorted(part["corpus"].unique().to_pylist()) for part in (heard, held_out))
    table = []
    for name in flags.rows or AWAY:
        if name == OF_CORPORA and len(trained) == 1 and not flags.rows:
            continue
        say(name)
        changed = settle(experiment, AWAY[name])
        folder = storage.join(storage.normalize(flags.output), name.replace(" ", "-"))
        claim(folder, changed.identity(store), shlex.join(["python", *sys.argv]))
        show = partial(show_epoch, epochs=changed.train.epochs)
        what = changed.model, changed.train, changed.frame_augment
        speakers = speakers_of(store, changed.model, parts.train, np.union1d(parts.train, parts.validation))
        fitted = fit(store, parts, parts.labels, *what, folder, show, speakers=speakers)
        best = max(fitted.history, key=lambda epoch: epoch["validation_uar"])
        last = fitted.history[-1]["validation_uar"]
        row = {"taken away": name, "best UAR": best["validation_uar"], "last UAR": last, "epoch": best["epoch"]}
        if len(corpora) > 1:
            examples = Examples.from_rows(held_out, parts.labels, corpora, speakers)
            row |= score_corpora(fitted.network, examples, corpora)
        table.append(row)
        show_table(f"{experiment.split.protocol}, fold {experiment.split.fold}, validation speakers", table)
    if flags.json:
        facts = {"protocol": experiment.split.protocol, "fold": experiment.split.fold, "corpora": trained}
        facts |= {"epochs": experiment.train.epochs, "description": parts.description, "load_before": load}
        facts |= {"command": shlex.join(["python", *sys.argv]), "versions": versions(), "machine": machine()}
        storage.write_json(flags.json, {**facts, "rows": table})
        say(f"figures: {flags.json}")


def score_corpora(network: nn.Module, examples: Examples, corpora: list[str]) -> dict[str, float]:
    """Return the UAR of the best epoch's network in each corpus, and their mean."""
    logits_NC = predict_logits(network, examples)
    uars = {}
    for group, corpus in enumerate(corpora):
        own = examples.groups == group
        uars[corpus] = accuracy_and_uar(logits_NC[own], examples.targets[own])[1].item()
    return {**uars, "mean of corpora": sum(uars.values()) / len(uars)}


if __name__ == "__main__":
    run_job(main)
