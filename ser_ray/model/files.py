"""A model on disk: weights as safetensors, everything else as JSON, and a model card for people.

    MODEL/model.safetensors   weights and the statistics that standardize the input
    MODEL/config.json         network, features, labels, temperature, where it comes from
    MODEL/README.md           the model card

Nothing in it is executed when it is loaded, and nothing that it names is imported.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import safetensors.torch
import torch
from pyarrow.fs import FileType
from torch import Tensor

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.features.arrays import shape_of
from ser_ray.features.spec import read_features, write_features
from ser_ray.model.model import Model
from ser_ray.networks.spec import read_network, write_network
from ser_ray.speech.emotions import LabelSet

FORMAT = 3
TRAINED_CLIPS = "trained_on.clips"  # name of the digests among the weights: there may be a million
_OLDER = 2  # held `speaker_norm` among the network's settings, and speakers alone of what it was trained on


def save_model(model: Model, folder: str) -> None:
    """Write a model into a folder or URI."""
    config = {
        "format": FORMAT,
        "network": write_network(model.network),
        "members": len(model.members),
        "features": write_features(model.features),
        "labels": asdict(model.labels),
        "speaker_norm": model.speaker_norm,
        "views": model.views,
        "temperature": model.temperature,
        "trained_on": {"speakers": model.trained_on},
        "facts": model.facts,
    }
    weights: dict[str, Tensor] = {}
    for k, member in enumerate(model.members):
        prefix = f"members.{k}." if len(model.members) > 1 else ""
        weights |= {f"{prefix}{name}": tensor.contiguous() for name, tensor in member.state_dict().items()}
    if model.trained_clips is not None:
        weights[TRAINED_CLIPS] = torch.from_numpy(model.trained_clips)
    data = safetensors.torch.save(weights)
    storage.write(storage.join(folder, "model.safetensors"), lambda stream: stream.write(data))
    storage.write_text(storage.join(folder, "README.md"), _model_card(config, model))
    storage.write_json(storage.join(folder, "config.json"), config)  # last: its presence says the rest is there


def load_model(folder: str) -> Model:
    """Read a model.

    Args:
        folder: A `model` folder or the run that holds it.

    Raises:
        UserError: There is no model that this version reads, or it names features or a network that nobody registered.
    """
    folder = _inner(folder)
    if not storage.exists(storage.join(folder, "config.json")):
        if (folds := fold_roots(folder)) != [folder]:
            raise UserError(f"{folder} has a model for each of its folds; name one of these, such as {folds[0]}")
        raise UserError(f"{folder} holds no trained model (config.json is missing); name a finished run")
    try:
        config = _read_config(folder)
        network, features = read_network(config["network"]), read_features(config["features"])
        labels = LabelSet(
            tuple(config["labels"]["names"]), tuple((one, other) for one, other in config["labels"]["merged"])
        )
        with storage.open_read(storage.join(folder, "model.safetensors")) as stream:
            weights = safetensors.torch.load(stream.read())
        clips = weights.pop(TRAINED_CLIPS, None)
        members = []
        for k in range(config["members"]):
            prefix = f"members.{k}." if config["members"] > 1 else ""
            own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
            members.append(network.build(shape_of(features.arrow_type()), len(labels.names)))
            members[-1].load_state_dict(own)
            members[-1].eval()
        return Model(
            members,
            network,
            features,
            labels,
            bool(config["speaker_norm"]),
            tuple((float(speed), float(semitones)) for speed, semitones in config.get("views", ())),
            float(config["temperature"]),
            tuple(map(str, config["trained_on"]["speakers"])),
            None if clips is None else clips.numpy(),
            dict(config["facts"]),
        )
    except UserError as error:
        raise UserError(f"{folder} is not a model that this version reads: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder} is not a model that this version reads: {str(error).splitlines()[0]}") from None


def fold_roots(root: str) -> list[str]:
    """Return the roots of a cross-validated run's finished folds, by number; of any other run its own."""
    files, inner = storage.filesystem(root)
    if files.get_file_info(inner).type == FileType.File:
        return [root]
    names = [name for name in storage.list_names(root, FileType.Directory) if name.startswith("fold-")]
    folds = [storage.join(root, name) for name in sorted(names, key=lambda name: (len(name), name))]
    return [fold for fold in folds if storage.exists(storage.join(fold, "metrics.json"))] or [root]


def digest_model(folder: str) -> str:
    """Return 12 hex digits that stand for a model's weights and configuration.

    Args:
        folder: As `load_model` takes it.
    """
    digest, folder = hashlib.sha256(), _inner(folder)
    for name in ("config.json", "model.safetensors"):
        with storage.open_read(storage.join(folder, name)) as stream:
            digest.update(stream.read())
    return digest.hexdigest()[:12]


def _inner(folder: str) -> str:
    """Return the model's own folder, given that or the run that holds it."""
    inner = storage.join(folder, "model")
    return inner if storage.exists(storage.join(inner, "config.json")) else folder


def _read_config(folder: str) -> dict[str, Any]:
    """Read `config.json`, of this format or of the one before."""
    config = storage.read_json(storage.join(folder, "config.json"))
    if config["format"] == FORMAT:
        return config
    if config["format"] != _OLDER:
        raise ValueError(f"format {config['format']}")
    settings = dict(config["model"])
    speaker_norm = settings.pop("speaker_norm", False)
    if settings["model"] == "cnn1d":  # whose settings were those of the other network, unused
        settings = {"model": "cnn1d"}
    trained_on = {"speakers": config["heard_speakers"]}
    members = config.get("members", 1)
    return {**config, "network": settings, "speaker_norm": speaker_norm, "trained_on": trained_on, "members": members}


def _model_card(config: dict[str, Any], model: Model) -> str:
    lines = [
        f"# {config['network']['model']}: emotions in speech",
        "",
        f"Tells apart: {', '.join(config['labels']['names'])}.",
        f"Features: {config['features']['kind']}, {config['features']['sample_rate']} Hz.",
        *([f"Encoder: {model.features.origin()}."] if hasattr(model.features, "origin") else []),
        *([f"{config['members']} networks answer together, by their mean."] if config["members"] > 1 else []),
    ]
    if config["speaker_norm"]:
        lines.append("It normalizes by speaker: best where many clips of each are known, of mixed emotions.")
    lines += [
        "",
        *(f"- {name.replace('_', ' ')}: {value}" for name, value in config["facts"].items() if name != "notes"),
        *(f"\n**{note}**" for note in config["facts"].get("notes", ())),
        "",
        "It hears acted emotions as its training corpora hold them. Scores on other voices, languages and rooms are",
        "lower; it must not be used to judge people.",
        "Its training corpora carry their own licences, most of them for research only.",
    ]
    return "\n".join(lines) + "\n"
