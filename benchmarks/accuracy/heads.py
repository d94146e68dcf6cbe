"""Heads on the states of a pretrained encoder, scored on validation speakers: how `probe` was chosen.

    python benchmarks/accuracy/heads.py --store STORE --protocol emobox --draws 2
    python benchmarks/accuracy/heads.py --store STORE --speaker-norm --epochs 15

Every head is trained on each fold of the protocol, as often as validation speakers are drawn. What is shown is the mean
UAR of the speakers who validate, after the last epoch, and what it costs to keep an epoch that some of them chose, as
training does: one half of them chooses, the other half tells how far that epoch is from the last. Speakers who are
tested are never read. The store is one that `featurize.py --features encoder` made.

Shapes: N clips, S states, F features of a state, D those of all, A axes, H hidden units, C classes.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ser_ray.base.console import say, show_table
from ser_ray.base.errors import UserError
from ser_ray.base.settings import between, check_settings, parse_flags, pick_config, run_job
from ser_ray.experiment.experiment import choose_corpora
from ser_ray.experiment.protocols import SplitConfig
from ser_ray.experiment.splits import Split, num_folds, split
from ser_ray.features.arrays import shape_of
from ser_ray.model.examples import Examples, accuracy_and_uar, predict_logits
from ser_ray.model.speakers import Speakers, listen
from ser_ray.networks.modules.layers import Standardize
from ser_ray.networks.probe import ProbeSpec
from ser_ray.speech.emotions import parse_labels
from ser_ray.store.rows import Rows, open_rows
from ser_ray.store.store import Store
from ser_ray.training.batches import deal_batches
from ser_ray.training.learner import Learner
from ser_ray.training.settings import TrainConfig
from ser_ray.training.worker_rows import usual_speech

sys.path.append(str(Path(__file__).parents[1]))  # where benchmarks have what they share

from shared import machine, write_figures


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        store: A store of an encoder's states.
        corpus: Corpora to use; empty for all in the store.
        labels: The classes, as for training.
        protocol: As for training.
        draws: How often validation speakers are drawn in each fold.
        speakers: Part of the training speakers that train, to see what more of them are worth.
        epochs: Of networks.
        speaker_norm: Whether features are normalized by speaker.
        heads: Which heads to try; all when empty.
        json: File for the figures; none is written when empty.
    """

    store: str = ""
    corpus: tuple[str, ...] = ()
    labels: tuple[str, ...] = ("all",)
    protocol: str = "speaker-independent"
    draws: int = 1
    speakers: float = between(1.0, 0, 1, above=True)
    epochs: int = 30
    speaker_norm: bool = False
    heads: tuple[str, ...] = ()
    json: str = ""

    def __post_init__(self) -> None:
        check_settings(self)


class WeightedMean(nn.Module):
    """One learned weight per state, then one hidden layer (Yang et al., SUPERB, 2021)."""

    def __init__(self, shape: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.standardize = Standardize(*shape)
        self.weigh_S = nn.Parameter(torch.zeros(shape[0]))
        self.dense, self.norm = nn.Linear(shape[1], 256), nn.BatchNorm1d(256)
        self.classify = nn.Linear(256, num_classes)

    def forward(self, features_BSF: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Return `logits_BC`."""
        x_BF = torch.einsum("bsf,s->bf", self.standardize(features_BSF), self.weigh_S.softmax(0))
        x_BH = self.norm(self.dense(functional.dropout(x_BF, 0.3, self.training))).relu()
        return self.classify(functional.dropout(x_BH, 0.5, self.training))


L2 = 0.1  # of logistic regression

Head = Callable[[Examples, Examples, int], list[Tensor]]  # trains; what validation clips get, `logits_NC` of each epoch


def regress(by_state: bool) -> Head:
    """Return logistic regression on all states side by side, or on their mean; classes count alike."""

    def answer(train: Examples, validation: Examples, num_classes: int) -> list[Tensor]:
        mean_SF, std_SF = train.statistics(torch.arange(len(train)))
        x, y = (((each.values - mean_SF) / std_SF.clamp(min=1e-6)).float() for each in (train, validation))
        x_ND, y_ND = (each.flatten(1) if by_state else each.mean(1) for each in (x, y))
        # Weights lie in what the training clips span, so that as many axes as there are clips tell all of them.
        square_N, axes_NN = torch.linalg.eigh((x_ND @ x_ND.T).double())
        length_N, axes_NN = (kept[..., square_N > 1e-7 * square_N.max()] for kept in (square_N.sqrt(), axes_NN))
        x_NA, y_NA = axes_NN * length_N, (y_ND @ x_ND.T).double() @ (axes_NN / length_N)
        counts_C = torch.bincount(train.targets, minlength=num_classes).clamp(min=1)
        weight_C = len(train) / (num_classes * counts_C.double())
        weight_AC = torch.zeros(x_NA.shape[1], num_classes, dtype=torch.float64, requires_grad=True)
        bias_C = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight_AC, bias_C], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            costs_N = functional.cross_entropy(x_NA @ weight_AC + bias_C, train.targets, reduction="none")
            cost = (costs_N * weight_C[train.targets]).mean() + L2 * weight_AC.square().sum() / 2
            cost.backward()
            return cost

        optimizer.step(loss)
        return [(y_NA @ weight_AC + bias_C).detach()]

    return answer


def train_head(make: Callable[[tuple[int, int], int], nn.Module], **changes: Any) -> Head:
    """Return a training of a network by the usual settings of `probe`, with changes."""

    def answer(train: Examples, validation: Examples, num_classes: int) -> list[Tensor]:
        torch.manual_seed(0)
        config = TrainConfig.usual(ProbeSpec(), **changes)
        network = make(tuple(train.values.shape[1:]), num_classes)
        network.standardize.set(*train.statistics(torch.arange(len(train))))
        counts_GC = torch.zeros(int(train.groups.max()) + 1, num_classes, dtype=torch.int64)
        counts_GC.index_put_((train.groups, train.targets), torch.ones(len(train), dtype=torch.int64), accumulate=True)
        learner = Learner(network, config, counts_GC, mixup=ProbeSpec().mixup)
        answers = []
        for epoch in range(1, config.epochs + 1):
            parts = deal_batches(torch.arange(len(train)), config, epoch)
            learner.train_epoch(epoch, ((train, index_B) for index_B in parts), len(parts))
            answers.append(predict_logits(learner.averaged.eval(), validation))
        return answers

    return answer


def score(answers: list[Tensor], targets_N: Tensor, speakers: list[str]) -> tuple[float, float]:
    """Return the UAR after the last epoch, and by how much that of an epoch chosen by half of the speakers is higher.

    Args:
        answers: From a head, of each epoch.
        targets_N: The classes.
        speakers: Of each clip.
    """

    def uar(logits_NC: Tensor, some_N: Tensor) -> float:
        return accuracy_and_uar(logits_NC[some_N], targets_N[some_N])[1].item()

    one_N = torch.tensor(np.isin(speakers, sorted(set(speakers))[::2]))
    gains = []
    for chooses_N, tells_N in ((one_N, ~one_N), (~one_N, one_N)):
        chosen = max(answers, key=lambda logits_NC: uar(logits_NC, chooses_N))
        gains.append(uar(chosen, tells_N) - uar(answers[-1], tells_N))
    return uar(answers[-1], torch.ones_like(one_N)), float(np.mean(gains))


def thin(train: Rows, part: float, *seeds: int) -> Rows:
    """Return the rows of a part of the speakers."""
    names = sorted(train.values("speaker_id"))
    kept = np.random.default_rng(seeds).choice(names, round(part * len(names)), replace=False)
    return train.take(train.among("speaker_id", kept.tolist()))


def read(rows: Rows, parts: Split, by_speaker: bool) -> tuple[Examples, Examples]:
    """Return the examples that train and those that validate."""
    speakers = Speakers.of(rows.recipe.features, usual_speech(parts.train), listen(rows)) if by_speaker else None
    return tuple(Examples.from_rows(part, parts.labels, speakers) for part in (parts.train, parts.validation))


def main(argv: list[str]) -> None:
    flags = pick_config(Flags, parse_flags(argv, __doc__, Flags))
    if not flags.store:
        raise UserError("--store is missing: name a store that featurize.py --features encoder made")
    heads = {
        "weighted mean of states, 256 units": train_head(WeightedMean, epochs=flags.epochs),
        "probe": train_head(ProbeSpec().build, epochs=flags.epochs),
        "probe, 128 units": train_head(ProbeSpec(hidden=128).build, epochs=flags.epochs),
        "probe, no moving average": train_head(ProbeSpec().build, epochs=flags.epochs, ema=0.0),
        "logistic regression": regress(by_state=True),
        "logistic regression on the mean": regress(by_state=False),
    }
    if unknown := set(flags.heads) - set(heads):
        raise UserError(f"--heads {min(unknown)}: choose from {', '.join(heads)}")
    chosen = {name: heads[name] for name in flags.heads or heads}
    rows = choose_corpora(open_rows(Store(flags.store)), flags.corpus, "in the store, which holds")
    labels = parse_labels(flags.labels)
    if len(shape_of(rows.recipe.features.arrow_type())) != 2:
        raise UserError(f"--store {flags.store} holds no states of an encoder")
    config, scores = SplitConfig(protocol=flags.protocol), {name: [] for name in chosen}
    for fold in range(num_folds(rows, config)):
        for seed in range(flags.draws):
            parts = split(rows, labels, SplitConfig(protocol=flags.protocol, fold=fold, seed=seed))
            parts = replace(parts, train=thin(parts.train, flags.speakers, fold, seed))
            train, validation = read(rows, parts, flags.speaker_norm)
            speakers = parts.validation["speaker_id"].to_pylist()
            for name, head in chosen.items():
                answers = head(train, validation, len(parts.labels.names))
                scores[name].append(score(answers, validation.targets, speakers))
        so_far = (f"{name} {100 * np.mean(each, 0)[0]:.1f}" for name, each in scores.items())
        say(f"folds 0 to {fold}: " + ", ".join(so_far))
    table = []
    for name, each in scores.items():
        uar, chosen_more = np.mean(each, 0)
        errors = np.std(each, 0) / len(each) ** 0.5
        figures = {
            "UAR": uar,
            "standard error": errors[0],
            "epoch by UAR": chosen_more,
            "its standard error": errors[1],
        }
        table.append({"head": name, **{key: float(figure) for key, figure in figures.items()}, "trainings": len(each)})
    show_table(f"{flags.protocol}, validation speakers", table)
    command = shlex.join(["python", *sys.argv])
    write_figures(flags.json, {"command": command, "machine": machine(), "scores": scores, "rows": table})


if __name__ == "__main__":
    run_job(main)
