"""`Model`: what training returns, and the one thing that answers, for evaluation, prediction and export alike.

Shape suffixes: N clips, C classes, K members, T samples, F features or bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.features.spec import Features
from ser_ray.model.answers import answer_windows, tell_windows
from ser_ray.model.calibration import pool_answers
from ser_ray.model.card import CORPORA
from ser_ray.model.domain import Domain
from ser_ray.model.examples import Examples, predict_logits
from ser_ray.model.speakers import Known, Speakers
from ser_ray.model.views import Views
from ser_ray.model.windows import Hearing, WindowConfig, as_file
from ser_ray.networks.spec import NetworkSpec
from ser_ray.speech.audio import AudioError
from ser_ray.speech.emotions import LabelSet
from ser_ray.store.rows import Rows, digest_of

PREDICTED = ["utterance_id", "corpus", "speaker_id", "gender", "intensity"]  # metadata that predictions carry along


@dataclass
class Model:
    """Trained networks and what is needed to use them.

    Attributes:
        members: Trained networks that answer together, in evaluation mode.
        network: What they are, with their settings.
        features: How their features are made from sound.
        labels: What their outputs mean.
        speaker_norm: Whether features are normalized by speaker.
        views: Speed, and pitch in semitones, of the copies of a log-mel clip that the answer is averaged over; none to
            answer clips as they are.
        temperature: Divides the logits, so that probabilities are honest; fitted on validation speakers.
        trained_on: Speakers in its training and validation; no honest test has them.
        trained_clips: Digests of the files in its training and validation (`Rows.digests`), sorted; None for a model of
            an older version, of whose files nothing is known.
        facts: Where it comes from: protocol, scores, notes, versions.
        domain: In what condition the clips were that it was trained on; None where that is not known.
        device: Where it answers: `cpu`, or `auto` for the GPU that is there, if one is; it is not saved.
    """

    members: list[nn.Module]
    network: NetworkSpec
    features: Features
    labels: LabelSet
    speaker_norm: bool = False
    views: tuple[tuple[float, float], ...] = ()
    temperature: float = 1.0
    trained_on: tuple[str, ...] = ()
    trained_clips: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    domain: Domain | None = None
    device: str = "cpu"

    @property
    def place(self) -> torch.device:
        """The device on which it answers in this process."""
        return torch.device("cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu")

    @property
    def made_speech(self) -> bool:
        """Whether it is known to have been trained or tested on made speech; of older models nothing is known."""
        return bool(self.facts.get("made_speech"))

    @property
    def trained_corpora(self) -> tuple[str, ...]:
        """The corpora of its training, by name; of older models those that its speakers' names tell."""
        told = self.facts.get("trained_corpora")
        if told is None:
            told = {name for name in CORPORA if any(speaker.startswith(f"{name}_") for speaker in self.trained_on)}
        return tuple(sorted(told))

    def was_trained_on(self, rows: Rows) -> np.ndarray:
        """Return a mask of rows whose files, by their content, were in training or validation."""
        if self.trained_clips is None:
            return np.zeros(len(rows), bool)
        known = set(self.trained_clips.tolist())
        contents = rows["sha256"].to_pylist()  # before clips are read it is no digest yet
        return np.array([len(content) == 64 and digest_of(content) in known for content in contents], bool)

    def normalizer(self, known: dict[str, Known]) -> Speakers | None:
        """Return by what to normalize clips of speakers of whom something is known; None where it does without."""
        standardize = self.members[0].standardize  # by the frames of training as they were
        usual_2F = torch.stack([standardize.mean_F, standardize.std_F]).cpu().numpy()
        return Speakers.of(self.features, usual_2F, known) if self.speaker_norm else None

    @cached_property
    def answering(self) -> list[nn.Module]:
        """The members as they answer: each by the mean over the views of a clip, where there are views."""
        if not self.views:
            return self.members
        return [Views(member, self.features, self.views).to(place_of(member)) for member in self.members]

    def logits(self, examples: Examples) -> torch.Tensor:
        """Return the mean logits `[N, C]` of all members over the views of each clip, on the CPU."""
        examples, answers, usual = examples.to(self.place), [], torch.backends.cudnn.conv.fp32_precision
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # so that a GPU answers as the CPU does
        try:
            for network in self.answering:
                kept_on = place_of(network)
                moves = kept_on.type != self.place.type  # to look through all modules takes as long as a short clip
                answers.append(predict_logits(network.to(self.place) if moves else network, examples).cpu())
                if moves:
                    network.to(kept_on)
        finally:
            torch.backends.cudnn.conv.fp32_precision = usual
        return torch.stack(answers).mean(0)

    def answer(self, examples: Examples) -> np.ndarray:
        """Return calibrated probabilities `[N, C]`, float64.

        Members answer by the mean of their log-probabilities, which, as they share a temperature, is that of their
        logits.
        """
        return torch.softmax(self.logits(examples).double() / self.temperature, dim=1).numpy()

    def predict_rows(self, rows: Rows, known: dict[str, Known] | None = None) -> pa.Table:
        """Predict rows of a store of this model's features, whose emotions are all among its labels.

        Args:
            rows: The clips.
            known: What is known of their speakers, for a model that normalizes by speaker.

        Returns:
            The table of `predictions.parquet` with a column `path` besides.
        """
        examples = Examples.from_rows(rows, self.labels, self.normalizer(known or {}))
        return tell_rows(rows, self.answer(examples), self.labels)

    def predict(self, sound: str | np.ndarray, *, sample_rate: int | None = None) -> Any:
        """Answer for one recording of any length: a file's path or URI, or its samples.

        It is cut into windows as `WindowConfig` does by default. A model that normalizes by speaker takes the recording
        for all that is known of its speaker.

        Args:
            sound: Path, URI, or mono samples `[T]` with full scale 1.
            sample_rate: Of the samples, Hz; of a file it is known.

        Returns:
            A pandas DataFrame of one row for each window: `file channel start end emotion probability probabilities
            entropy`, times in seconds, probabilities in the order of `labels.names`, entropy in nats. Channel 0 is the
            mean of all. A silent window has no answer.

        Raises:
            UserError: Samples come without their rate, or a file cannot be read or is no sound.
        """
        if isinstance(sound, np.ndarray) and sample_rate is None:
            raise UserError("samples come without their rate: give sample_rate, which is not guessed")
        name = "samples" if isinstance(sound, np.ndarray) else storage.normalize(str(sound))
        try:
            with as_file(sound, sample_rate) if isinstance(sound, np.ndarray) else storage.open_read(name) as file:
                hearing = Hearing(file, WindowConfig(), self.features)
                answers_WC = answer_windows([self], hearing)
        except (AudioError, OSError) as error:
            raise UserError(f"{name}: {' '.join(str(error).split())}") from None
        return tell_windows(name, hearing, answers_WC, self.labels.names).to_pandas()


def place_of(network: nn.Module) -> torch.device:
    """Return the device in whose memory a network is."""
    return next(network.parameters()).device


def tell_rows(rows: Rows, answers_NC: np.ndarray, labels: LabelSet) -> pa.Table:
    """Return the table of `predictions.parquet`, or of `validation.parquet`, with a column `path` besides.

    Args:
        rows: The clips, whose emotions are all among the labels.
        answers_NC: Their probabilities.
        labels: The classes.
    """
    table = rows.table([*PREDICTED, "emotion", "path"])
    truth = [labels.names[labels.index(emotion)] for emotion in table["emotion"].to_pylist()]
    predictions = table.select(PREDICTED).append_column("emotion", pa.array(truth, pa.string()))
    for name, column in _columns(answers_NC, labels.names).items():
        predictions = predictions.append_column(name, column)
    return predictions.append_column("path", table["path"])


def pool_predictions(
    predictions: Sequence[pa.Table], labels: Sequence[str], weights: Sequence[float] | None = None
) -> pa.Table:
    """Return the answers of several models to the same clips as one, by `calibration.pool_answers`.

    Args:
        predictions: Tables of `tell_rows` for the same clips in the same order.
        labels: The class names of all.
        weights: How much each counts; None for alike.
    """
    first = predictions[0]
    if len(predictions) == 1:
        return first
    pooled_NC = pool_answers([probabilities_of(table) for table in predictions], weights)
    for name, column in _columns(pooled_NC, labels).items():
        first = first.set_column(first.column_names.index(name), name, column)
    return first


def probabilities_of(predictions: pa.Table) -> np.ndarray:
    """Return the probabilities `[N, C]` of a table of `tell_rows`, float64."""
    return np.stack(predictions["probabilities"].to_pylist())


def _columns(probabilities_NC: np.ndarray, labels: Sequence[str]) -> dict[str, pa.Array]:
    predicted = np.array(labels)[probabilities_NC.argmax(axis=1)]
    return {
        "predicted": pa.array(predicted),
        "probabilities": pa.array(list(probabilities_NC), pa.list_(pa.float64())),
    }
