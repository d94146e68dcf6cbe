"""A trained model on disk: weights as safetensors, everything else as JSON, and a model card for people.

    MODEL/model.safetensors   weights and the statistics that standardize the input
    MODEL/config.json         network, features, labels, temperature, where it comes from
    MODEL/README.md           the model card

Nothing in it is executed when it is loaded.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import nn

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.features.settings import FeatureConfig
from ser_ray.model.examples import Examples, predict_logits
from ser_ray.model.speakers import Heard, Speakers
from ser_ray.networks.models import Ensemble, ModelConfig, build
from ser_ray.speech.emotions import LabelSet
from ser_ray.training.frames import Views

FORMAT = 2


@dataclass
class Bundle:
    """A network and what is needed to use it.

    Attributes:
        network: The trained network, or an `Ensemble` of several, in evaluation mode, on the CPU.
        model: Its configuration.
        features: How its features are made from sound.
        labels: What its outputs mean.
        views: Speed, and pitch in semitones, of the copies of a log-mel clip that the answer is averaged over; none to
            hear clips as they are.
        temperature: Divides the logits, so that probabilities are honest; fitted on validation speakers.
        heard_speakers: Speakers in its training and validation; no honest test has them.
        facts: Where it comes from: protocol, scores, versions.
    """

    network: nn.Module
    model: ModelConfig
    features: FeatureConfig
    labels: LabelSet
    views: tuple[tuple[float, float], ...] = ()
    temperature: float = 1.0
    heard_speakers: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def networks(self) -> list[nn.Module]:
        """The members of an ensemble, or the one network."""
        return list(self.network.members) if isinstance(self.network, Ensemble) else [self.network]

    def normalizer(self, heard: dict[str, Heard]) -> Speakers | None:
        """Return by what to normalize clips of speakers of whom `heard` is known; None where the model does without."""
        standardize = self.networks[0].standardize  # by the frames of training as they were
        usual_2F = torch.stack([standardize.mean_F, standardize.std_F]).numpy()
        return Speakers(usual_2F, heard) if self.model.speaker_norm else None

    def save(self, folder: str) -> None:
        """Write the bundle into a folder or URI."""
        config = {
            "format": FORMAT,
            "model": asdict(self.model),
            "members": len(self.networks),
            "features": asdict(self.features),
            "labels": asdict(self.labels),
            "views": self.views,
            "temperature": self.temperature,
            "heard_speakers": self.heard_speakers,
            "facts": self.facts,
        }
        weights = safetensors.torch.save({name: t.contiguous() for name, t in self.network.state_dict().items()})
        storage.write(storage.join(folder, "model.safetensors"), lambda stream: stream.write(weights))
        storage.write_text(storage.join(folder, "README.md"), _model_card(config))
        storage.write_json(storage.join(folder, "config.json"), config)  # last: its presence says the rest is there


def load(folder: str) -> Bundle:
    """Read a bundle.

    Args:
        folder: A `model` folder or the run that holds it.

    Raises:
        UserError: There is no bundle that this version reads.
    """
    inner = storage.join(folder, "model")
    folder = inner if storage.exists(storage.join(inner, "config.json")) else folder
    if not storage.exists(storage.join(folder, "config.json")):
        raise UserError(f"{folder} holds no trained model (config.json is missing); name a finished run")
    try:
        config = storage.read_json(storage.join(folder, "config.json"))
        if config["format"] != FORMAT:
            raise ValueError(f"format {config['format']}")
        model, features = ModelConfig(**config["model"]), FeatureConfig(**config["features"])
        merged = tuple((a, b) for a, b in config["labels"]["merged"])
        labels = LabelSet(tuple(config["labels"]["names"]), merged)
        with storage.open_read(storage.join(folder, "model.safetensors")) as stream:
            weights = safetensors.torch.load(stream.read())
        members = [build(model, features.num_features, len(labels.names)) for _ in range(config["members"])]
        network = members[0] if len(members) == 1 else Ensemble(members)
        network.load_state_dict(weights)
        heard = tuple(map(str, config["heard_speakers"]))
        views = tuple((float(speed), float(semitones)) for speed, semitones in config.get("views", ()))
        temperature, facts = float(config["temperature"]), dict(config["facts"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder} is not a model that this version reads: {str(error).splitlines()[0]}") from None
    return Bundle(network.eval(), model, features, labels, views, temperature, heard, facts)


def answer(bundle: Bundle, examples: Examples, member: nn.Module | None = None) -> torch.Tensor:
    """Return the logits `[N, C]` of a model, or of one of its members alone, averaged over its views of each clip."""
    network = member or bundle.network
    return predict_logits(Views(network, bundle.features, bundle.views) if bundle.views else network, examples)


def probabilities(bundle: Bundle, logits_NC: torch.Tensor) -> torch.Tensor:
    """Return calibrated probabilities `[N, C]` in float64."""
    return torch.softmax(logits_NC.double() / bundle.temperature, dim=1)


def _model_card(config: dict[str, Any]) -> str:
    facts, normed = config["facts"], config["model"]["speaker_norm"]
    lines = [
        f"# {config['model']['model']}: emotions in speech",
        "",
        f"Tells apart: {', '.join(config['labels']['names'])}.",
        f"Features: {config['features']['kind']}, {config['features']['sample_rate']} Hz.",
        *([f"{config['members']} networks answer together, by their mean."] if config["members"] > 1 else []),
        *(["It normalizes by speaker: best where many clips of each are known, of mixed emotions."] if normed else []),
        "",
        *(f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items()),
        "",
        "It hears acted emotions as its training corpora hold them. Scores on other voices, languages and rooms are",
        "lower; it must not be used to judge people.",
        "Its training corpora carry their own licences, most of them for research only.",
    ]
    return "\n".join(lines) + "\n"
