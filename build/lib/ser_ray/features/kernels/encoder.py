"""Pretrained encoders at work: weights from a folder, a waveform in, mean and deviation of every state out.

Every clip goes through the encoder alone, so that its rows do not depend on what else is there: some encoders normalize
over time before any mask could keep padding out.

Shapes: T samples, N frames, W width of a state, S states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from ser_ray.base.errors import UserError
from ser_ray.features.encoder import SAMPLE_RATE, Encoder, Pretrained, find_folder, look_into
from ser_ray.features.kernels import copies
from ser_ray.features.kernels.whisper import WhisperEncoder
from ser_ray.features.recipe import parse_augmentation
from ser_ray.speech.audio import AudioError

LEAST_SAMPLES = 400  # what one frame of these encoders hears: 25 ms
CLASSES = {  # of the library transformers, by the family
    "wav2vec2": "Wav2Vec2Model",
    "hubert": "HubertModel",
    "wavlm": "WavLMModel",
    "data2vec-audio": "Data2VecAudioModel",
}
_UNUSED = "masked_spec_embed"  # which stands for what training hides
_NAMED = 3  # of missing weights in a message


@lru_cache(maxsize=1)
def load_kernel(config: Encoder) -> EncoderKernel:
    """Return the kernel of an encoder, which is loaded once."""
    return EncoderKernel(config)


class EncoderKernel:
    """Computes `encoder` (`features.spec.Kernel`).

    Args:
        config: What to compute.

    Raises:
        UserError: The folder is not there, holds another encoder, or its weights do not fit.
    """

    def __init__(self, config: Encoder) -> None:
        folder = find_folder(config.encoder)
        found = look_into(folder)
        if found.digest != config.digest:
            raise UserError(f"{folder} holds another encoder than these features were made by; bring that one there")
        self.normalizes = found.normalizes
        build = _build_whisper if found.settings["model_type"] == "whisper" else _build_by_library
        self.network = build(found, folder).float().eval().requires_grad_(False)
        self.device = "cpu"

    def to(self, device: str) -> EncoderKernel:
        """Move to `cpu` or `cuda`."""
        self.network.to(device)
        self.device = device
        return self

    @torch.inference_mode()
    def rows(
        self, waveform_T: np.ndarray, utterance_id: str, augmentations: Sequence[str], seed: int
    ) -> list[np.ndarray]:
        """Compute the rows of one clip, one per augmentation, each `[S, 2W]` float32.

        Raises:
            AudioError: The clip is too short or too long for the encoder.
        """
        clip_1T = torch.from_numpy(waveform_T)[None]
        rows = []
        for name in augmentations:
            waveform_1T = clip_1T
            if steps := parse_augmentation(name):
                waveform_1T = copies.augment(clip_1T, steps, copies.make_generator(seed, utterance_id, name))
            rows.append(self._hear(waveform_1T.to(self.device)).cpu().numpy())
        return rows

    def _hear(self, waveform_1T: Tensor) -> Tensor:
        count, most = waveform_1T.shape[1], getattr(self.network, "most_samples", None)
        if count < LEAST_SAMPLES:
            raise AudioError(
                f"too short for the encoder: {count / SAMPLE_RATE:.3f} s, and one frame of it takes 0.025 s"
            )
        if most is not None and count > most:
            raise AudioError(
                f"too long for the encoder: {count / SAMPLE_RATE:.1f} s, and it takes {most / SAMPLE_RATE:g} s"
            )
        if self.normalizes:
            variance, mean = torch.var_mean(waveform_1T, correction=0)
            waveform_1T = (waveform_1T - mean) / (variance + 1e-7).sqrt()
        states = [
            torch.cat([state_NW.mean(0), state_NW.std(0, correction=0)]) for state_NW in self.network(waveform_1T)
        ]
        pooled_SD = torch.stack(states)
        if not pooled_SD.isfinite().all():
            raise AudioError("the encoder's answer is no number")
        return pooled_SD.contiguous()


class _ByLibrary(nn.Module):
    """An encoder of the library, which returns its states as `WhisperEncoder` does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, waveform_1T: Tensor) -> list[Tensor]:
        return [state_1NW[0] for state_1NW in self.network(waveform_1T, output_hidden_states=True).hidden_states]


def _build_whisper(found: Pretrained, folder: str) -> nn.Module:
    if found.settings.get("activation_function", "gelu") != "gelu":
        raise UserError(f"--encoder {folder}: activation {found.settings['activation_function']} is not Whisper's gelu")
    try:
        network = WhisperEncoder(found.settings)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"--encoder {folder}: config.json does not describe a Whisper ({error})") from None
    own = network.state_dict()

    def inner(name: str) -> str:  # within the encoder, which may stand alone, or in one of two larger models
        return name.removeprefix("model.").removeprefix("encoder.")

    weights = {inner(name): tensor for name, tensor in _read_weights(found, folder, lambda n: inner(n) in own).items()}
    _refuse_unfit(folder, [name for name in own if name not in weights or weights[name].shape != own[name].shape])
    network.load_state_dict(weights)
    return network


def _build_by_library(found: Pretrained, folder: str) -> nn.Module:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    kind = getattr(transformers, CLASSES[found.settings["model_type"]])
    weights = _read_weights(found, folder)
    try:
        network, told = kind.from_pretrained(
            None,
            config=kind.config_class.from_dict(found.settings),
            state_dict=weights,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are named, and refused below
            dtype=torch.float32,
        )
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"--encoder {folder}: {str(error).splitlines()[0]}") from None
    unfit = {str(name) for name in told["missing_keys"] if not str(name).endswith(_UNUSED)}
    _refuse_unfit(folder, sorted(unfit | {str(entry[0]) for entry in told["mismatched_keys"]}))
    return _ByLibrary(network)


def _refuse_unfit(folder: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise UserError(
            f"--encoder {folder}: the weights lack {', '.join(names[:_NAMED])}{more}, or have another shape than "
            "config.json says; bring both of the same model"
        )


def _read_weights(
    found: Pretrained, folder: str, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Tensor]:
    """Read weights, those alone that are wanted where the file allows; nothing in it is executed.

    Raises:
        UserError: A file cannot be read.
    """
    weights: dict[str, Any] = {}
    for path in found.weights:
        try:
            if path.endswith(".safetensors"):
                with safetensors.safe_open(path, "pt") as file:
                    weights |= {name: file.get_tensor(name).float() for name in file.keys() if wanted(name)}  # noqa: SIM118
            else:
                loaded = torch.load(path, map_location="cpu", weights_only=True)
                weights |= {name: t.float() for name, t in loaded.items() if isinstance(t, Tensor) and wanted(name)}
        except Exception as error:  # whatever a damaged file, or one that holds more than weights, makes of its reader
            raise UserError(
                f"--encoder {folder}: {path} is damaged, or holds more than weights ({type(error).__name__}); "
                "bring it there again"
            ) from None
    return weights
