"""Pretrained encoders as networks: built by what their files tell, weights read, all of which must fit.

Whisper is ser_ray's own (`kernels.whisper`); the others are built by transformers or torchaudio. No file is executed,
and no encoder's own code is run.

Shapes: B clips, T samples, N frames, W width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from ser_ray.base.errors import UserError
from ser_ray.features.encoder_files import Pretrained
from ser_ray.features.kernels.padding import OwnGroupNorm, own_mask
from ser_ray.features.kernels.whisper import WhisperEncoder
from ser_ray.features.known_encoders import FAMILIES

_UNUSED = "masked_spec_embed"  # which stands for what training hides
_NAMED = 3  # of missing weights in a message
_MASKED = ("wav2vec2", "hubert", "wavlm")  # by whose library padding meets one convolution only, as zeros


def build_encoder(found: Pretrained, path: str) -> nn.Module:
    """Return the network of an encoder, whose `forward` takes clips `[B, T]` and returns its states, each `[B, N, W]`.

    Where its `takes_lengths` is true, it takes padded clips, too, with the samples of each, `[B]`, and yields of a
    clip's own frames what it yields of the clip alone.

    Args:
        found: What its files tell.
        path: Where they are, for messages.

    Raises:
        UserError: Weights cannot be read, or do not all fit.
    """
    if found.family == "torchaudio":
        network = _build_by_torchaudio(found, path)
    elif FAMILIES[found.family].network:
        network = _build_by_transformers(found, path)
    else:
        network = _build_whisper(found, path)
    return network.float().eval().requires_grad_(False)


class _ByTransformers(nn.Module):
    """An encoder of transformers."""

    def __init__(self, network: nn.Module, filter_banks: Any = None) -> None:
        super().__init__()
        self.network, self.filter_banks = network, filter_banks
        config = network.config
        self.takes_lengths = config.model_type in _MASKED and not getattr(config, "conv_pos_batch_norm", False)
        self.first = _count_own_frames(network) if self.takes_lengths else None

    def forward(self, heard: Tensor, lengths_B: Tensor | None = None) -> Sequence[Tensor]:
        if self.filter_banks is not None:  # clip by clip: it normalizes each by itself
            clips = [
                self.filter_banks(clip_T, sampling_rate=16_000)["input_features"] for clip_T in heard.cpu().numpy()
            ]
            heard = torch.from_numpy(np.concatenate(clips)).float().to(heard.device)
        own_BT = None if lengths_B is None else own_mask(lengths_B, heard.shape[1]).long()
        with _counting(self.first, lengths_B):
            return self.network(heard, attention_mask=own_BT, output_hidden_states=True).hidden_states


class _ByTorchaudio(nn.Module):
    """An encoder of torchaudio."""

    takes_lengths = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        from torchaudio.models.wav2vec2.wavlm_attention import WavLMSelfAttention

        self.network = network
        self.first = _count_own_frames(network)
        for layer in network.encoder.transformer.layers:
            if isinstance(layer.attention, WavLMSelfAttention):
                layer.attention.register_forward_pre_hook(_mask_keys, with_kwargs=True)

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor | None = None) -> Sequence[Tensor]:
        with _counting(self.first, lengths_B):
            return self.network.extract_features(waveform_BT, lengths_B)[0]


def _mask_keys(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give WavLM the mask of padding by the only name under which torchaudio's takes it."""
    mask_B1NN = named.pop("attention_mask")
    return args, named | {"key_padding_mask": None if mask_B1NN is None else mask_B1NN[:, 0, 0]}


def _count_own_frames(network: nn.Module) -> nn.Module | None:
    """Have a network normalize over a clip's own time, and return the convolution before it; None if it never does."""
    first = network.feature_extractor.conv_layers[0]
    if not isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
        return None
    first.layer_norm = OwnGroupNorm.like(first.layer_norm)
    return first


@contextmanager
def _counting(first: nn.Module | None, lengths_B: Tensor | None) -> Iterator[None]:
    """Tell the normalization after the first convolution how many frames are a clip's own."""
    if first is None or lengths_B is None:
        yield
        return
    (kernel,), (stride,) = first.conv.kernel_size, first.conv.stride
    first.layer_norm.frames_B = (lengths_B - kernel).div(stride, rounding_mode="floor") + 1
    try:
        yield
    finally:
        first.layer_norm.frames_B = None


def _build_whisper(found: Pretrained, path: str) -> nn.Module:
    if found.settings.get("activation_function", "gelu") != "gelu":
        raise UserError(f"--encoder {path}: activation {found.settings['activation_function']} is not Whisper's gelu")
    try:
        network = WhisperEncoder(found.settings)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"--encoder {path}: config.json does not describe a Whisper ({error})") from None
    own = network.state_dict()

    def inner(name: str) -> str:  # within the encoder, which may stand alone, or in one of two larger models
        return name.removeprefix("model.").removeprefix("encoder.")

    weights = {inner(name): tensor for name, tensor in _read_weights(found, path, lambda n: inner(n) in own).items()}
    return _fill(network, weights, path)


def _build_by_torchaudio(found: Pretrained, path: str) -> nn.Module:
    from torchaudio import models

    settings = dict(found.settings)
    with torch.device("meta"):  # drawing weights that are replaced takes longer than reading them
        network = getattr(models, settings.pop("factory"))(**settings)
    return _ByTorchaudio(_fill(network, _read_weights(found, path), path))


def _fill(network: nn.Module, weights: dict[str, Tensor], path: str) -> nn.Module:
    """Give a network its weights, of which there may be more than it has."""
    own = network.state_dict()
    _refuse_unfit(path, [name for name in own if name not in weights or weights[name].shape != own[name].shape])
    network.load_state_dict({name: weights[name] for name in own}, assign=True)
    return network


def _build_by_transformers(found: Pretrained, path: str) -> nn.Module:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")  # between parts of the library
    kind = getattr(transformers, FAMILIES[found.family].network)
    weights = _read_weights(found, path)
    try:
        network, told = kind.from_pretrained(
            None,
            config=kind.config_class.from_dict(found.settings),
            state_dict=weights,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are named, and refused below
            dtype=torch.float32,
        )
        banked = found.family == "wav2vec2-bert"
        filter_banks = transformers.SeamlessM4TFeatureExtractor(**found.preprocessor) if banked else None
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"--encoder {path}: {str(error).splitlines()[0]}") from None
    unfit = {str(name) for name in told["missing_keys"] if not str(name).endswith(_UNUSED)}
    _refuse_unfit(path, sorted(unfit | {str(entry[0]) for entry in told["mismatched_keys"]}))
    return _ByTransformers(network, filter_banks)


def _refuse_unfit(path: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise UserError(
            f"--encoder {path}: the weights lack {', '.join(names[:_NAMED])}{more}, or have another shape than "
            "the encoder's; bring settings and weights of the same model"
        )


def _read_weights(found: Pretrained, path: str, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """Read weights, those alone that are wanted where the file allows; nothing in it is executed.

    Raises:
        UserError: A file cannot be read.
    """
    weights: dict[str, Any] = {}
    for file in found.weights:
        try:
            if file.endswith(".safetensors"):
                with safetensors.safe_open(file, "pt") as content:
                    names = filter(wanted, content.keys())
                    weights |= {name: content.get_tensor(name).float() for name in names}
            else:
                loaded = torch.load(file, map_location="cpu", weights_only=True)
                weights |= {name: t.float() for name, t in loaded.items() if isinstance(t, Tensor) and wanted(name)}
        except Exception as error:  # whatever a damaged file, or one that holds more than weights, makes of its reader
            raise UserError(
                f"--encoder {path}: {file} is damaged, or holds more than weights ({type(error).__name__}); "
                "bring it there again"
            ) from None
    return weights
