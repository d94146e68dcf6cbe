"""`Together`: the models of several runs, or of all folds of one, that answer as one, and how much each counts.

Runs count by weights that are fitted, as a temperature is, to what they said of the speakers who validated them
(`validation.parquet`, the answers of each run's first network, which has not heard these speakers). Where runs
validated on different speakers, or one does not keep its answers, they count alike. The folds of one run always do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ser_ray.base import storage
from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.features.spec import Features
from ser_ray.model.calibration import fit_weights
from ser_ray.model.encoders import locate_encoders
from ser_ray.model.files import digest_model, fold_roots, load_model
from ser_ray.model.model import Model, probabilities_of
from ser_ray.speech.emotions import LabelSet

VALIDATION = "validation.parquet"  # in a run's folder


class Weighing(NamedTuple):
    """How much each of several runs counts, and why.

    Attributes:
        weights: Of the runs, in their order; 1 in all.
        clips: How many validation clips the weights were fitted to; 0 where the runs count alike.
        speakers: How many speakers these are of.
        why: All of it in words.
    """

    weights: tuple[float, ...]
    clips: int
    speakers: int
    why: str


@dataclass(frozen=True)
class Together:
    """Models that answer together.

    Attributes:
        roots: Their runs.
        runs: The models of each run: one, or of a cross-validated run one for each fold.
        weighing: How much each run counts, and why.
        digests: Of the models' files.
    """

    roots: tuple[str, ...]
    runs: tuple[tuple[Model, ...], ...]
    weighing: Weighing
    digests: tuple[str, ...] = ()

    @classmethod
    def of(cls, models: Sequence[Model]) -> Together:
        """Return models that are in no run's folder, and so count alike."""
        names = tuple(f"model {k + 1}" for k in range(len(models)))
        weighing = weigh_runs([[None]] * len(models), models[0].labels.names)
        return cls(names, tuple((model,) for model in models), weighing)

    def locate(self, places: Sequence[str]) -> Together:
        """Return the same with the encoders of their features where these are now (`encoders.locate_encoders`).

        Raises:
            UserError: An encoder is nowhere, or a place is given and no model has an encoder.
        """
        located = iter(locate_encoders(self.models, places))
        return replace(self, runs=tuple(tuple(next(located) for _ in models) for models in self.runs))

    def on(self, device: str) -> Together:
        """Return the same answering on `cpu`, `cuda`, or, by `auto`, on a GPU where encoders are at work and one is.

        Without an encoder the cores beside a GPU answer sooner than it does (docs/performance.md).
        """
        if device == "auto" and not self.have_encoder:
            device = "cpu"
        runs = (tuple(replace(model, device=device) for model in models) for models in self.runs)
        return replace(self, runs=tuple(runs))

    @property
    def have_encoder(self) -> bool:
        """Whether any of them hears by an encoder, which `auto` puts on a GPU."""
        return any(getattr(features, "wants_gpu", False) for features in self.features)

    @property
    def can_answer_here(self) -> bool:
        """Whether this process has what they are to answer on."""
        return all(model.device != "cuda" or model.place.type == "cuda" for model in self.models)

    def settle(self) -> None:
        """Bring all networks to where they answer, for a process that does nothing else with them."""
        for model in self.models:
            for network in model.answering:
                network.to(model.place)

    @property
    def models(self) -> list[Model]:
        """The models of all runs."""
        return [model for models in self.runs for model in models]

    @property
    def weights(self) -> list[float]:
        """How much each model counts, 1 in all: a run's weight is shared alike by its folds."""
        pairs = zip(self.weighing.weights, self.runs, strict=True)
        return [weight / len(models) for weight, models in pairs for _ in models]

    @property
    def labels(self) -> LabelSet:
        """What all of them tell apart."""
        return self.runs[0][0].labels

    @property
    def features(self) -> list[Features]:
        """The kinds of features that they take, that of the first run first."""
        return list(dict.fromkeys(model.features for model in self.models))

    @property
    def digest(self) -> str:
        """What stands for them and their weights."""
        weights = [f"*{weight:.6f}" for weight in self.weighing.weights] if len(self.runs) > 1 else []
        return "+".join([*self.digests, *weights])

    @property
    def made_speech(self) -> bool:
        """Whether any of them is known to be trained on made speech."""
        return any(model.made_speech for model in self.models)


def open_models(runs: Sequence[str]) -> Together:
    """Read the models of some runs, and weigh them.

    Args:
        runs: Finished runs, cross-validated ones among them, or folders of models.

    Raises:
        UserError: One cannot be read, is named twice, or has other labels than the first.
    """
    roots = tuple(map(storage.normalize, runs))
    refuse_twice(roots)
    folds = [fold_roots(root) for root in roots]
    models = tuple(tuple(map(load_model, each)) for each in folds)
    labels = models[0][0].labels
    for root, each, own in zip(roots, folds, models, strict=True):
        if any(model.labels != labels for model in own):
            raise UserError(f"{root} has other labels than {roots[0]}, so they cannot answer together")
        if len(each) > 1 and not storage.exists(storage.join(root, "metrics.json")):
            say(f"{root} is not finished: the models of its {len(each)} finished folds answer")
    weighing = weigh_runs([[read_validation(fold) for fold in each] for each in folds], labels.names)
    return Together(roots, models, weighing, tuple(digest_model(fold) for each in folds for fold in each))


def refuse_twice(roots: Sequence[str]) -> None:
    """Refuse a run that is named twice.

    Raises:
        UserError: There is one.
    """
    for root in roots:
        if list(roots).count(root) > 1:
            raise UserError(f"--run names {root} twice: name it once")


def read_validation(root: str) -> pa.Table | None:
    """Return what a run's first network said of its validation clips; None for a run of an earlier version."""
    path = storage.join(root, VALIDATION)
    if not storage.exists(path):
        return None
    files, inner = storage.filesystem(path)
    return pq.read_table(inner, filesystem=files)


def weigh_runs(validations: Sequence[Sequence[pa.Table | None]], labels: Sequence[str]) -> Weighing:
    """Find how much each of several runs counts.

    Args:
        validations: Of each run what `read_validation` gives, for each of its folds.
        labels: The class names of all.

    Returns:
        Weights that are fitted to the clips that all of them validated on, fold by fold; or alike, where the folds, or
        the speakers of one, are not the same in all runs.
    """
    alike = (1 / len(validations),) * len(validations)
    if len(validations) == 1:
        return Weighing(alike, 0, 0, "one run")
    if any(table is None for folds in validations for table in folds):
        return Weighing(alike, 0, 0, _alike("not all of them keep what they said of validation speakers"))
    if len({len(folds) for folds in validations}) > 1:
        return Weighing(alike, 0, 0, _alike("they have different folds"))
    same_folds = [list(tables) for tables in zip(*validations, strict=True)]
    if any(_speakers(table) != _speakers(tables[0]) for tables in same_folds for table in tables):
        return Weighing(alike, 0, 0, _alike("they validated on different speakers"))
    same_clips = [pa.concat_tables(tables) for tables in zip(*map(share_clips, same_folds), strict=True)]
    emotions = same_clips[0]["emotion"].to_pylist()
    if not emotions or any(table["emotion"].to_pylist() != emotions for table in same_clips):
        return Weighing(alike, 0, 0, _alike("they validated on different clips"))
    weights = fit_weights(list(map(probabilities_of, same_clips)), np.array([*map(list(labels).index, emotions)]))
    speakers = len(_speakers(same_clips[0]))
    why = f"weights fitted to {len(emotions)} clips of {speakers} validation speaker{'s' if speakers > 1 else ''}"
    return Weighing(tuple(weights.tolist()), len(emotions), speakers, why)


def share_clips(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Return the rows of the clips that stand in all of some tables of answers, sorted by the clips' ids."""
    common = set.intersection(*(set(table["utterance_id"].to_pylist()) for table in tables))
    ids = pa.array(sorted(common), pa.string())
    return [table.filter(pc.is_in(table["utterance_id"], value_set=ids)).sort_by("utterance_id") for table in tables]


def _speakers(table: pa.Table) -> set[str]:
    return set(table["speaker_id"].to_pylist())


def _alike(reason: str) -> str:
    return f"the runs count alike, since {reason}"
