"""The whole of an answer as one torch module: from waveforms to calibrated probabilities.

Shapes: B waveforms, T samples, F features or bands, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ser_ray.base.errors import UserError
from ser_ray.export.hearing import Ears
from ser_ray.features.encoder import Encoder
from ser_ray.features.spec import Features
from ser_ray.model.model import Model
from ser_ray.model.speakers import Known
from ser_ray.model.views import Views

INPUTS, OUTPUTS = ("waveform", "lengths"), ("probabilities", "logits")
_TRACED_S = 1.0  # Length of the waveforms that a graph is traced with; it holds at any other.


class Answering(nn.Module):
    """Answers by some models together, in one graph.

    Args:
        models: Models of the same labels; those of the same features hear with the same ears.
        weights: How much each counts, 1 in all.
        input_rate: Sample rate of the waveforms, Hz.
        known: What is known of the one speaker who is to be heard, by kind of features, for models that normalize.

    Raises:
        UserError: A model cannot be exported; the message says why.
    """

    def __init__(
        self, models: Sequence[Model], weights: Sequence[float], input_rate: int, known: dict[Features, Known]
    ) -> None:
        super().__init__()
        kinds = list(dict.fromkeys(model.features for model in models))
        self.hears_one = any(isinstance(kind, Encoder) for kind in kinds)
        self.ears = nn.ModuleList(Ears(kind, input_rate, kinds[0]) for kind in kinds)
        self.heard_by = [kinds.index(model.features) for model in models]
        self.voices, self.weights = (
            nn.ModuleList(_Voice(model, known.get(model.features)) for model in models),
            tuple(weights),
        )

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and calibrated logits, both `[B, C]` float32.

        Args:
            waveform: float32 samples `[B, T]`, full scale 1, padded to one length.
            lengths: Samples of each without padding, `[B]` int64.
        """
        heard = [ears(waveform, lengths) for ears in self.ears]
        logits_BC = [voice(*heard[kind]) for voice, kind in zip(self.voices, self.heard_by, strict=True)]
        together_BC = logits_BC[0]
        if len(logits_BC) > 1:  # the mean of their log-probabilities, as `model.calibration.pool_answers` does
            pairs = zip(self.weights, logits_BC, strict=True)
            together_BC = torch.stack([weight * each_BC.log_softmax(1) for weight, each_BC in pairs]).sum(0)
        return together_BC.softmax(1), together_BC


class _Voice(nn.Module):
    """One model's calibrated logits of features: its members, views, temperature, and normalization by speaker."""

    def __init__(self, model: Model, known: Known | None) -> None:
        super().__init__()
        self.temperature = model.temperature
        views, features = model.views, model.features
        self.members = nn.ModuleList(Views(one, features, views) if views else one for one in model.members)
        self.speaker_norm = model.speaker_norm
        if model.speaker_norm:
            if known is None:
                raise UserError(
                    "a model that normalizes by speaker is exported for one speaker: give --speaker-moments FILE, a "
                    "recording of theirs or its moments; or train without --speaker-norm"
                )
            change_2F = model.normalizer({"": known}).scale_and_shift("")
            self.register_buffer("change_2F", torch.from_numpy(change_2F))

    def forward(self, features: Tensor, counts_B: Tensor) -> Tensor:
        if self.speaker_norm:
            features = features * self.change_2F[0] + self.change_2F[1]
        return torch.stack([member(features, counts_B) for member in self.members]).mean(0) / self.temperature


def trace(answering: Answering, input_rate: int) -> torch.export.ExportedProgram:
    """Make the graph, which holds at any batch and any length; with an encoder, at a batch of one.

    Args:
        answering: What answers.
        input_rate: Sample rate of the waveforms, Hz.
    """
    batch, size = (1, torch.export.Dim.STATIC) if answering.hears_one else (2, torch.export.Dim.DYNAMIC)
    waveform_BT = 0.1 * torch.randn(batch, int(_TRACED_S * input_rate), generator=torch.Generator().manual_seed(0))
    lengths_B = torch.full((batch,), waveform_BT.shape[1])
    shapes = ({0: size, 1: torch.export.Dim.DYNAMIC}, {0: size})
    answering.eval().requires_grad_(False)
    return torch.export.export(answering, (waveform_BT, lengths_B), dynamic_shapes=shapes)
