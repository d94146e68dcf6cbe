"""The voice of made speech: a source-filter model (Fant 1960) with eight manners of speaking.

Glottal pulses, whose pitch, loudness and regularity vary, and breath noise pass four moving formants. Which way anger,
fear, happiness and sadness move pitch, loudness, rate and voice quality follows the review by Juslin & Laukka (2003,
Psychological Bulletin 129, 770-814); the rest is made up. The numbers are chosen so that a model learns the manners,
though not perfectly. A clip depends on the seed and its own name alone.

Shapes: F frames of 10 ms, S samples, N syllables, 4 formants.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import NamedTuple

import numpy as np
import scipy.fft
import soxr

from ser_ray.speech.utterance import Utterance

VERSION = 1  # of the voice: raise it when the same seed and name no longer give the same samples
RATE = 16_000  # Hz, at which the voice is made before it is resampled to its corpus's rate
HOP = 160  # samples: frames of 10 ms, each windowed over two hops


class Cues(NamedTuple):
    """One manner of speaking, as offsets from a plain voice that add up over emotion, speaker and clip."""

    pitch: float  # semitones
    span: float  # log2 of the size of pitch movements
    level: float  # dB
    rate: float  # log2 of syllables per second
    tilt: float  # exponent: the k-th harmonic has amplitude k ** -(1 + tilt)
    breath: float  # dB of breath noise
    rough: float  # log2 of jitter and shimmer
    formant: float  # log2 of the formant frequencies
    slope: float  # semitones from first to last syllable


EMOTION_CUES = {
    "neutral": Cues(0, 0, 0, 0, 0, 0, 0, 0, -1),
    "calm": Cues(-1.5, -0.6, -3, -0.2, 0.15, 4, -1.0, 0.03, -1),
    "happy": Cues(4, 0.7, 4, 0.15, -0.25, -2, -0.3, 0.06, 1),
    "sad": Cues(-1, -0.9, -6, -0.35, 0.45, 5, 0.4, -0.05, -4),
    "angry": Cues(3, 0.5, 8, 0.2, -0.45, -3, 1.6, 0.03, -1),
    "fearful": Cues(6, -0.3, 0, 0.4, 0.15, 6, 1.0, 0.02, 0),
    "disgust": Cues(-3, 0.3, 1, -0.3, -0.1, 0, 1.3, -0.09, -3),
    "surprised": Cues(8, 1.2, 4, 0, 0.2, 3, -0.4, 0.09, 6),
}
SPEAKER_SPREAD = Cues(1.2, 0.15, 1.5, 0.07, 0.07, 1.3, 0.25, 0.02, 0.3)  # standard deviations between speakers
CLIP_SPREAD = Cues(0.8, 0.2, 1.3, 0.07, 0.08, 1.3, 0.35, 0.015, 1.0)  # and between clips of one speaker


class Setting(NamedTuple):
    """How a corpus was recorded, before a speaker's own pace and level."""

    sample_rate: int  # Hz
    silence_s: float  # before the speech, and after it
    syllables: int
    speech_s: float
    level_db: float  # RMS of plain speech, dB of full scale
    noise_db: float  # RMS of the room, dB of full scale


SETTINGS = {
    "ravdess": Setting(48_000, 1.0, 7, 1.9, -36, -80),
    "crema_d": Setting(16_000, 0.15, 7, 2.0, -32, -58),
    "tess": Setting(24_414, 0.05, 5, 1.85, -33, -62),
    "savee": Setting(44_100, 0.15, 12, 3.2, -31, -65),
    "synthetic": Setting(16_000, 0.15, 7, 2.1, -32, -60),
}
PITCH_HZ = {"male": 115.0, "female": 205.0}
FORMANT_SCALE = {"male": 1.0, "female": 1.16}  # women's vocal tracts are about 15 % shorter
# fmt: off
VOWELS = np.array([  # F1-F3 in Hz of ten vowels, means of men (Peterson & Barney 1952); F4 is assumed
    (270, 2290, 3010, 3500), (390, 1990, 2550, 3500), (530, 1840, 2480, 3500), (660, 1720, 2410, 3500),
    (730, 1090, 2440, 3500), (570, 840, 2410, 3500), (440, 1020, 2240, 3500), (300, 870, 2240, 3500),
    (640, 1190, 2390, 3500), (490, 1350, 1690, 3500),
])
# fmt: on
FRICATION = np.array([2200, 3800, 5200, 6800])  # resonances of /s/-like noise, Hz
BANDWIDTHS = np.array([70, 100, 160, 250])  # Hz


def _random(*key: object) -> np.random.Generator:
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest))


def _cues(clip: Utterance, seed: int, rng: np.random.Generator) -> Cues:
    """Add up what the emotion, the speaker and chance do to the voice."""
    speaker = _random(seed, clip.speaker_id)
    expressive = np.exp(speaker.normal(0, 0.2)) * (1.3 if clip.intensity == "strong" else 1)
    total = (
        expressive * np.array(EMOTION_CUES[clip.emotion])
        + speaker.normal(size=len(SPEAKER_SPREAD)) * SPEAKER_SPREAD
        + rng.normal(size=len(CLIP_SPREAD)) * CLIP_SPREAD
    )
    return Cues(*total)


def _source(pitch_F: np.ndarray, cues: Cues, rng: np.random.Generator) -> np.ndarray:
    """Make glottal pulses, band-limited and of RMS 1, from the pitch in Hz of each frame.

    A period is read from a table of as many harmonics as fit below 7.5 kHz. Each period has its own loudness
    (shimmer), and the pitch wavers from frame to frame (jitter).

    Returns:
        float32 samples, one hop more than there are frames.
    """
    irregular = 0.02 * 2.0**cues.rough
    pitch_F = pitch_F * np.exp(rng.normal(0, irregular / 2, len(pitch_F)))
    pitch_S = np.interp(np.arange((len(pitch_F) + 1) * HOP) / HOP, np.arange(len(pitch_F)), pitch_F)
    phase_S = np.cumsum(pitch_S) / RATE
    harmonics = np.arange(1, int(7500 / pitch_F.mean()) + 1)
    spectrum = np.concatenate([[0], harmonics ** -(1 + cues.tilt)])
    table = np.fft.irfft(spectrum, 2048)
    table /= np.sqrt(np.mean(table**2))
    shimmer = 1 + rng.normal(0, 3 * irregular, int(phase_S[-1]) + 1)
    period_S = phase_S.astype(np.int32)
    pulses_S = table[((phase_S - period_S) * 2048).astype(np.int32)] * shimmer[period_S]
    return pulses_S.astype(np.float32)


def _filter(frames: np.ndarray, formants_F4: np.ndarray) -> np.ndarray:
    """Pass windowed frames, hop by hop, through four resonances each and add them up.

    Args:
        frames: F frames of two hops.
        formants_F4: Resonance frequencies in Hz.

    Returns:
        Two hops more samples than there are frames: the last ones ring out.
    """
    radius_4 = np.exp(-np.pi * BANDWIDTHS / RATE)
    poles_F9 = np.zeros((len(frames), 9), np.float32)
    poles_F9[:, 0] = 1
    for b_F, c in zip((-2 * radius_4 * np.cos(2 * np.pi * formants_F4 / RATE)).T, radius_4**2, strict=True):
        shorter = poles_F9.copy()
        poles_F9[:, 1:] += b_F[:, None] * shorter[:, :-1]
        poles_F9[:, 2:] += c * shorter[:, :-2]
    gain_F1 = poles_F9.sum(1, keepdims=True)  # each resonance passes 0 Hz unchanged (Klatt 1980)
    spectra = scipy.fft.rfft(frames, 3 * HOP) * gain_F1 / scipy.fft.rfft(poles_F9, 3 * HOP)
    pieces = scipy.fft.irfft(spectra, 3 * HOP).reshape(len(frames), 3, HOP)
    out = np.zeros((len(frames) + 2, HOP), np.float32)
    for hop in range(3):
        out[hop : hop + len(frames)] += pieces[:, hop]
    return out.ravel()


def _speech(clip: Utterance, cues: Cues, rng: np.random.Generator) -> np.ndarray:
    """Speak a clip's syllables, without silence around them: float32 samples at `RATE`, RMS 1."""
    setting = SETTINGS[clip.corpus]
    text = _random(clip.sentence_id)  # the same syllables whoever says them
    count = setting.syllables + int(text.integers(-1, 2))
    vowels_N4 = VOWELS[text.integers(len(VOWELS), size=count)]
    onset_N = text.integers(3, size=count)  # 0 vowel or sonorant, 1 plosive, 2 fricative
    length_N = text.uniform(0.8, 1.2, count) * np.exp(rng.normal(0, 0.1, count))
    length_N[-1] *= 1.4  # the last syllable of a phrase is drawn out
    length_N *= setting.speech_s / setting.syllables * 2.0**-cues.rate
    end_N = np.cumsum(length_N)
    centre_N = end_N - length_N / 2

    time_F = np.arange(int(end_N[-1] * RATE / HOP)) * HOP / RATE
    syllable_F = np.searchsorted(end_N, time_F, side="right")
    within_F = np.clip(1 - (end_N[syllable_F] - time_F) / length_N[syllable_F], 0, 1)
    vowel_F = np.sin(np.pi * within_F) ** 0.7
    onset_F = np.where(within_F < 0.3, onset_N[syllable_F], 0)
    burst_F = (within_F > 0.18) * 0.04  # a plosive is closed, then bursts
    noise_F = np.select([onset_F == 1, onset_F == 2], [burst_F, 0.03], vowel_F * 10 ** ((cues.breath - 26) / 20))
    voice_F = np.where(onset_F > 0, 0, vowel_F * np.exp(rng.normal(0, 0.15, count))[syllable_F])

    accent_N = rng.normal(0, 1.8 * 2.0**cues.span, count) + cues.slope * np.linspace(-0.5, 0.5, count)
    semitones_F = np.clip(cues.pitch + np.interp(time_F, centre_N, accent_N), -14, 20)
    source_S = _source(PITCH_HZ[clip.gender] * 2 ** (semitones_F / 12), cues, rng)
    noise_S = rng.standard_normal(len(source_S), np.float32)

    scale = FORMANT_SCALE[clip.gender] * 2.0**cues.formant
    formants_F4 = np.stack([np.interp(time_F, centre_N, track_N) for track_N in vowels_N4.T], 1) * scale
    formants_F4 = np.where(onset_F[:, None] > 0, FRICATION, formants_F4).astype(np.float32)
    windows = partial(np.lib.stride_tricks.sliding_window_view, window_shape=2 * HOP)
    hann = np.sin(np.pi * np.arange(2 * HOP) / (2 * HOP)).astype(np.float32) ** 2
    frames = windows(source_S)[::HOP] * voice_F.astype(np.float32)[:, None]
    frames += windows(noise_S)[::HOP] * noise_F.astype(np.float32)[:, None]
    speech_S = _filter(frames * hann, formants_F4)
    return speech_S / np.sqrt(np.mean(speech_S**2))


def waveform(clip: Utterance, seed: int = 0) -> np.ndarray:
    """Make one clip.

    Args:
        clip: What is spoken; its corpus, speaker, sentence, emotion and path shape the sound.
        seed: Other seeds give other voices and other takes.

    Returns:
        Mono 16-bit samples at the sample rate of the clip's corpus.
    """
    setting = SETTINGS[clip.corpus]
    rng = _random(seed, clip.path)
    cues = _cues(clip, seed, rng)
    speech_S = _speech(clip, cues, rng) * 10 ** ((setting.level_db + cues.level) / 20)
    before, after = (RATE * setting.silence_s * rng.uniform(0.7, 1.15, 2)).astype(int)
    samples = rng.standard_normal(before + len(speech_S) + after, np.float32) * 10 ** (setting.noise_db / 20)
    samples[before : before + len(speech_S)] += speech_S
    if setting.sample_rate != RATE:
        samples = soxr.resample(samples, RATE, setting.sample_rate)
    return np.round(np.clip(samples, -1, 1) * 32767).astype("<i2")
