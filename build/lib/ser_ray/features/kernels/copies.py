"""Changed copies of a clip: noise, time stretch, pitch shift, shift in time, and chains of them.

All functions take and give batches of waveforms of equal length on any device; random numbers come from a generator on
the CPU, so that they do not depend on the device.

Shapes: B waveforms, T samples, N frames, F frequency bins, M output frames.
"""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from functools import lru_cache
from itertools import groupby

import numpy as np
import torch
from torch.nn import functional

NOISE_LEVEL = 0.035  # largest standard deviation, as a part of the clip's peak
STRETCH_RATE = 0.8  # speed; below 1 is slower
PITCH_RATE = 2 ** (-0.7 / 12)  # speed that 0.7 semitones upwards make up for
SHIFT_SAMPLES = 5000
N_FFT, HOP_LENGTH = 2048, 512  # of the phase vocoder
_WINDOW_K = torch.hann_window(N_FFT, dtype=torch.float64).float()  # drawn in float32, its edges are per cents off
_TINY = 1e-18  # below every magnitude that matters; its square is still a normal float32
_MAX_PERIOD = 4096  # samples; 0.7 semitones are 412 / 429 to 2e-8
_CUTOFF = (0.913 + 1) / 2  # of the lower Nyquist frequency: the middle of soxr's transition band
_ZERO_CROSSINGS, _KAISER_BETA = 64, 6.0


def make_generator(seed: int, utterance_id: str, name: str) -> torch.Generator:
    """Return the random numbers of one row: the same whoever computes it, and when."""
    digest = hashlib.sha256(f"{seed}/{utterance_id}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def augment(
    waveform_BT: torch.Tensor,
    steps: tuple[str, ...],
    generator: torch.Generator,
    spectrum_BNF: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply the steps of an augmentation one after the other.

    Neighbouring stretches and pitch shifts are done together: one phase vocoder at the product of their rates.

    Args:
        waveform_BT: Waveforms.
        steps: From `features.augmentation.parse_augmentation`.
        generator: Source of random numbers, on the CPU.
        spectrum_BNF: The waveforms' `stft` if it is there already.

    Returns:
        Waveforms; a stretch makes them longer, by 1 / 0.8.
    """
    for vocoded, group in groupby(steps, key=lambda step: step in ("stretch", "pitch")):
        if vocoded:
            names = list(group)
            stretch, pitch = STRETCH_RATE ** names.count("stretch"), PITCH_RATE ** names.count("pitch")
            n_out = round(waveform_BT.shape[-1] / stretch)
            if spectrum_BNF is None:
                spectrum_BNF = stft(waveform_BT)
            n_vocoded = round(waveform_BT.shape[-1] / (stretch * pitch))
            waveform_BT = istft(phase_vocoder(spectrum_BNF, stretch * pitch), n_vocoded)
            if pitch != 1:
                waveform_BT = resample(waveform_BT, pitch, n_out)
        else:
            for step in group:
                waveform_BT = (add_noise if step == "noise" else shift)(waveform_BT, generator)
        spectrum_BNF = None
    return waveform_BT


def add_noise(waveform_BT: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Add white Gaussian noise of standard deviation 0.035 · U(0, 1) · peak."""
    level_B1 = NOISE_LEVEL * torch.rand(len(waveform_BT), 1, generator=generator)
    noise_BT = torch.randn(waveform_BT.shape, generator=generator).mul_(level_B1).to(waveform_BT.device)
    return noise_BT.mul_(waveform_BT.abs().amax(-1, keepdim=True)).add_(waveform_BT)


def shift(waveform_BT: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move the samples by up to ±5000 places; what leaves at one end comes back at the other."""
    places = torch.randint(-SHIFT_SAMPLES, SHIFT_SAMPLES + 1, (len(waveform_BT),), generator=generator).tolist()
    return torch.stack([row_T.roll(n) for row_T, n in zip(waveform_BT, places, strict=True)])


def stft(waveform_BT: torch.Tensor) -> torch.Tensor:
    """Return the STFT [B, N, F]: frames centred at multiples of `HOP_LENGTH`, with zeros beyond both ends."""
    padded_BT = functional.pad(waveform_BT, (N_FFT // 2, N_FFT // 2))
    return torch.fft.rfft(padded_BT.unfold(-1, N_FFT, HOP_LENGTH) * _WINDOW_K.to(waveform_BT.device))


def magnitude(spectrum_BNF: torch.Tensor) -> torch.Tensor:
    """Return the magnitude of a complex spectrum.

    On the CPU NumPy computes it, ten times as fast as torch's `abs`.
    """
    if spectrum_BNF.is_cpu and not spectrum_BNF.requires_grad and not torch.compiler.is_compiling():
        magnitude_BNF = torch.empty_like(spectrum_BNF.real)
        np.abs(spectrum_BNF.numpy(), out=magnitude_BNF.numpy())
        return magnitude_BNF
    return spectrum_BNF.abs()


def phase_vocoder(spectrum_BNF: torch.Tensor, rate: float) -> torch.Tensor:
    """Slow a spectrum down, as `librosa.phase_vocoder` does (Ellis, A phase vocoder in Matlab, 2002).

    An output frame at the fractional input frame i + α has the magnitude between those of frames i and i + 1, and a
    phase that advances by the difference of these two frames' phases. While i grows by one a step, these differences
    add up to the phase of frame i itself; only where a frame is used again a rotation remains. So unit phasors are
    multiplied, and no angle is computed.

    Args:
        spectrum_BNF: Complex STFT.
        rate: Speed, at most 1.

    Returns:
        Complex STFT of ceil(N / rate) frames.
    """
    index_M, alpha_M1, reused_R, turns_M = _vocoder_plan(spectrum_BNF.shape[1], rate, spectrum_BNF.device)
    # Zeros, such as the frame beyond the end, have the phase 0: the tiny number gives them that, and changes no other.
    batch, n_frames, n_bins = spectrum_BNF.shape
    given_BNF, spectrum_BNF = spectrum_BNF, spectrum_BNF.new_empty(batch, n_frames + 1, n_bins)
    torch.add(given_BNF, _TINY, out=spectrum_BNF[:, :n_frames])
    spectrum_BNF[:, n_frames] = _TINY
    magnitude_BNF = magnitude(spectrum_BNF)

    turn_BRF = spectrum_BNF.index_select(1, reused_R + 1) * spectrum_BNF.index_select(1, reused_R).conj()
    turn_BRF *= (magnitude_BNF.index_select(1, reused_R + 1) * magnitude_BNF.index_select(1, reused_R)).reciprocal_()
    rotation_BRF = torch.cat([turn_BRF.new_ones(batch, 1, n_bins), turn_BRF.cumprod(1)], 1)

    growth_BNF = (magnitude_BNF[:, 1:] / magnitude_BNF[:, :-1]).sub_(1)
    scale_BMF = growth_BNF.index_select(1, index_M).mul_(alpha_M1).add_(1)
    slowed_BMF = spectrum_BNF.index_select(1, index_M).mul_(rotation_BRF.index_select(1, turns_M))
    return slowed_BMF.mul_(scale_BMF)


@lru_cache(maxsize=1024)
@torch.inference_mode(False)  # what is kept must serve under autograd too
def _vocoder_plan(n_frames: int, rate: float, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return each output frame's i and α, the frames that are used again, and how many of them came before each."""
    step_M = torch.arange(0, n_frames, rate, dtype=torch.float64)
    index_M = step_M.long()
    again_M = functional.pad(index_M[1:] == index_M[:-1], (1, 0))
    plan = index_M, (step_M - index_M).float()[:, None], index_M[again_M], again_M.cumsum(0)
    return tuple(part.to(device) for part in plan)


def istft(spectrum_BMF: torch.Tensor, n_samples: int) -> torch.Tensor:
    """Return the waveform of an STFT at `N_FFT` and `HOP_LENGTH`, cut or padded to `n_samples`."""
    spectrum_BMF = spectrum_BMF[:, : -(-(n_samples + N_FFT) // HOP_LENGTH)]
    batch, n_frames, _ = spectrum_BMF.shape
    parts = N_FFT // HOP_LENGTH
    window_PH, scale_LH = _overlap(min(n_frames, 2 * parts), spectrum_BMF.device)
    frame_BMPH = torch.fft.irfft(spectrum_BMF, n=N_FFT, norm="forward").unflatten(-1, window_PH.shape)
    sum_BLH = window_PH.new_zeros(batch, n_frames + parts - 1, HOP_LENGTH)
    for part, window_H in enumerate(window_PH):
        sum_BLH[:, part : part + n_frames].addcmul_(frame_BMPH[:, :, part], window_H)
    if n_frames < 2 * parts:
        sum_BLH *= scale_LH
    else:  # away from both ends all hops are covered alike
        sum_BLH[:, :parts] *= scale_LH[:parts]
        sum_BLH[:, parts:-parts] *= scale_LH[parts]
        sum_BLH[:, -parts:] *= scale_LH[-parts:]
    return _fit(sum_BLH.flatten(1)[:, N_FFT // 2 :], n_samples)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _overlap(n_frames: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the window cut into hops, and what each sample of overlapping windowed frames is multiplied by.

    That is one by the sum of the squared windows that cover the sample, and by the transform's length.
    """
    window_PH = _WINDOW_K.view(-1, HOP_LENGTH)
    beyond = len(window_PH) - 1
    covered_LP = functional.pad(window_PH.new_ones(n_frames), (beyond, beyond)).unfold(0, beyond + 1, 1)
    weight_LH = covered_LP @ window_PH.square().flip(0)
    scale_LH = 1 / (weight_LH.clamp_(min=torch.finfo().tiny) * N_FFT)
    return window_PH.to(device), scale_LH.to(device)


def resample(waveform_BT: torch.Tensor, ratio: float, n_samples: int) -> torch.Tensor:
    """Resample by a windowed sinc whose pass band is that of soxr's high quality.

    Args:
        waveform_BT: Waveforms.
        ratio: Rate of the result over that of the waveforms.
        n_samples: The result is cut or padded to this length.
    """
    period_out, period_in, first, step, weight_GWS = _sinc(ratio, waveform_BT.device)
    n_groups, width, _ = weight_GWS.shape
    n_periods = -(-n_samples // period_out)
    needed = (n_periods - 1) * period_in + (n_groups - 1) * step + width
    padded_BT = functional.pad(waveform_BT, (-first, max(0, needed + first - waveform_BT.shape[1])))
    rows = []
    for padded_T in padded_BT:
        input_GPW = padded_T.as_strided((n_groups, n_periods, width), (step, period_in, 1), padded_T.storage_offset())
        rows.append(torch.bmm(input_GPW, weight_GWS).transpose(0, 1).flatten(1)[:, :period_out].flatten())
    return _fit(torch.stack(rows), n_samples)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _sinc(ratio: float, device: torch.device) -> tuple[int, int, int, int, torch.Tensor]:
    """Plan a resampling.

    The ratio is taken as a fraction: the filter repeats itself after a period of so many samples out and in. The
    outputs of a period fall into groups whose inputs start at equal distances, so that a group is a matrix product.

    Returns:
        The period's samples out and in, the first group's first input sample, the distance from group to group in
        input samples, and the weights [groups, inputs, outputs].
    """
    fraction = Fraction(ratio).limit_denominator(_MAX_PERIOD)
    period_out, period_in = fraction.numerator, fraction.denominator
    advance = period_in / period_out  # input samples per output sample
    sizes = range(min(period_out, 32), min(period_out, 64) + 1)
    size = min(sizes, key=lambda s: abs(s * advance - round(s * advance)))
    step, n_groups = round(size * advance), -(-period_out // size)
    position_GS = np.arange(n_groups * size).reshape(n_groups, size) * advance - step * np.arange(n_groups)[:, None]
    cutoff = _CUTOFF / max(1.0, advance)
    half = _ZERO_CROSSINGS * max(1.0, advance)
    first, last = math.floor(position_GS.min() - half), math.ceil(position_GS.max() + half)
    distance_GWS = position_GS[:, None, :] - np.arange(first, last + 1)[:, None]
    window_GWS = np.i0(_KAISER_BETA * np.sqrt(np.clip(1 - (distance_GWS / half) ** 2, 0, None))) / np.i0(_KAISER_BETA)
    weight_GWS = np.where(abs(distance_GWS) < half, cutoff * np.sinc(cutoff * distance_GWS) * window_GWS, 0)
    return period_out, period_in, first, step, torch.from_numpy(weight_GWS.astype(np.float32)).to(device)


def _fit(waveform_BT: torch.Tensor, n_samples: int) -> torch.Tensor:
    return functional.pad(waveform_BT[:, :n_samples], (0, max(0, n_samples - waveform_BT.shape[1])))
