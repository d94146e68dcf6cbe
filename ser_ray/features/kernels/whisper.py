"""Whisper's encoder in plain torch, on a clip's own frames.

As published the encoder hears 30 s, of which a short clip fills a part; here its positions end with the clip, so that a
clip costs what it is long, and what it yields depends on nothing else (Radford et al., Robust speech recognition via
large-scale weak supervision, 2022).

Shapes: B clips, T samples, M mel bands, F frequency bins, N frames, W width, H heads.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ser_ray.features.banks import mel_bank
from ser_ray.features.encoder_files import HOP, SAMPLE_RATE
from ser_ray.features.kernels.padding import own_mask

N_FFT, HOP_LENGTH = 400, 160  # samples
_FLOOR = 8.0  # below the clip's maximum, in powers of ten
_MIN_POWER = 1e-10


class WhisperEncoder(nn.Module):
    """The encoder; its parts are named as in published checkpoints.

    Args:
        settings: `config.json`.

    Attributes:
        takes_lengths: It keeps padding out of what it yields.
    """

    takes_lengths = True

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        width, num_mels = settings["d_model"], settings["num_mel_bins"]
        self.conv1 = nn.Conv1d(num_mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(settings["max_source_positions"], width)
        heads, hidden = settings["encoder_attention_heads"], settings["encoder_ffn_dim"]
        self.layers = nn.ModuleList(_Layer(width, heads, hidden) for _ in range(settings["encoder_layers"]))
        self.layer_norm = nn.LayerNorm(width)
        bank = mel_bank(SimpleNamespace(n_mels=num_mels, n_fft=N_FFT, sample_rate=SAMPLE_RATE))
        self.register_buffer("mel_FM", torch.tensor(bank), persistent=False)
        self.register_buffer("window_K", torch.hann_window(N_FFT), persistent=False)

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor | None = None) -> list[Tensor]:
        """Return what each layer yields, and the last one once more after the final normalization, each `[B, N, W]`.

        Args:
            waveform_BT: Clips at 16 kHz, 320 samples at least, and at most as many as it has positions for.
            lengths_B: Samples of each without padding, whole frames; None where none is padded.
        """
        mel_BMN = self.log_mel(waveform_BT) if lengths_B is None else self._log_mel_of_own(waveform_BT, lengths_B)
        x_BWN = functional.gelu(self.conv1(mel_BMN))
        x_BNW = functional.gelu(self.conv2(x_BWN)).mT
        x_BNW = x_BNW + self.embed_positions.weight[: x_BNW.shape[1]]
        own_B11N = None if lengths_B is None else own_mask(lengths_B // HOP, x_BNW.shape[1])[:, None, None]
        states = []
        for layer in self.layers:
            x_BNW = layer(x_BNW, own_B11N)
            states.append(x_BNW)
        return [*states, self.layer_norm(x_BNW)]

    def log_mel(self, waveform_BT: Tensor) -> Tensor:
        """Return log-mel frames `[B, M, frames]` as Whisper takes them, 10 ms apart."""
        log_BMN = self._log_bands(waveform_BT, center=True)
        return (log_BMN.maximum(log_BMN.amax((1, 2), keepdim=True) - _FLOOR) + 4) / 4

    def _log_mel_of_own(self, waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return log-mel frames of padded clips, each as it is alone, and zeros after it, as convolutions pad."""
        around = N_FFT // 2  # samples that are mirrored at both ends of a clip
        place_T = torch.arange(-around, waveform_BT.shape[1] + around, device=waveform_BT.device).abs()
        last_B1 = lengths_B[:, None] - 1
        mirrored_BT = waveform_BT.gather(1, (last_B1 - (last_B1 - place_T).abs()).clamp(min=0))
        log_BMN = self._log_bands(mirrored_BT, center=False)
        own_B1N = own_mask(lengths_B // HOP_LENGTH, log_BMN.shape[2])[:, None]
        loudest_B11 = log_BMN.masked_fill(~own_B1N, -torch.inf).amax((1, 2), keepdim=True)
        return ((log_BMN.maximum(loudest_B11 - _FLOOR) + 4) / 4).masked_fill(~own_B1N, 0.0)

    def _log_bands(self, waveform_BT: Tensor, center: bool) -> Tensor:
        spectrum_BFN = torch.stft(
            waveform_BT, N_FFT, HOP_LENGTH, window=self.window_K, center=center, return_complex=True
        )
        with torch.autocast(waveform_BT.device.type, enabled=False):  # bands far below the loudest count
            mel_BMN = self.mel_FM.T @ spectrum_BFN[..., :-1].abs().square()
        return mel_BMN.clamp(min=_MIN_POWER).log10()


class _Layer(nn.Module):
    """One layer: attention, then two linear maps, each after a normalization and beside a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = _Attention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x_BNW: Tensor, own_B11N: Tensor | None) -> Tensor:
        x_BNW = x_BNW + self.self_attn(self.self_attn_layer_norm(x_BNW), own_B11N)
        return x_BNW + self.fc2(functional.gelu(self.fc1(self.final_layer_norm(x_BNW))))


class _Attention(nn.Module):
    """Attention of all frames to all of a clip's own frames."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(3))
        self.k_proj = nn.Linear(width, width, bias=False)

    def forward(self, x_BNW: Tensor, own_B11N: Tensor | None) -> Tensor:
        q_BHNW, k_BHNW, v_BHNW = (
            project(x_BNW).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        heard_BHNW = functional.scaled_dot_product_attention(q_BHNW, k_BHNW, v_BHNW, own_B11N)
        return self.out_proj(heard_BHNW.transpose(1, 2).flatten(2))
