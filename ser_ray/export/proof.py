"""The proof that a file answers as `Model.predict` does: both hear made speech of all emotions, and are compared.

Shapes: T samples, B waveforms, N clips, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ser_ray.features.arrays import encode_features
from ser_ray.features.encoder import Encoder
from ser_ray.features.spec import Features
from ser_ray.model.answers import answer_windows
from ser_ray.model.calibration import pool_answers
from ser_ray.model.examples import Examples
from ser_ray.model.speakers import Known
from ser_ray.model.together import Together
from ser_ray.model.windows import Hearing, WindowConfig, as_file
from ser_ray.speech.audio import to_rate
from ser_ray.speech.emotions import EMOTIONS
from ser_ray.speech.made import clip_at
from ser_ray.speech.voice import SETTINGS, waveform

Runner = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
SECONDS = (0.3, 0.5, 0.8, 1.1, 1.5, 2.0, 2.5, 3.0, 3.3, 4.0, 5.0, 6.0, 7.5, 10.0, 15.0, 30.0)
CLIPS = 24  # Three of each emotion.
BATCH = 4  # So many are also answered together.
TOLERANCE = {"probabilities": 1e-4, "logits": 1e-3}
# An encoder's states are rounded to half precision, which changes a probability by some 1e-3. Where a file's arithmetic
# differs in the last bit, some of them are rounded the other way.
ROUNDED = {"probabilities": 1e-3, "logits": 1e-2}
RESAMPLED = {"probabilities": 0.05, "logits": 0.3}  # Where the graph resamples by another filter than the product.
LEAST_RANGE = 0.01  # A proof in which no probability varies by so much is none.
_TINY = 1e-30


@dataclass(frozen=True)
class Proof:
    """How far a file's answers are from the product's.

    Attributes:
        clips: Number of clips.
        seconds: Length of the shortest and of the longest one.
        batches: Sizes of the batches in which they were answered.
        probabilities: Largest difference of a probability.
        logits: Largest difference of a logit; logits are compared by their distance from their mean.
        varies: Largest range of a probability over the clips.
        tolerance: What is allowed.
    """

    clips: int
    seconds: tuple[float, float]
    batches: tuple[int, ...]
    probabilities: float
    logits: float
    varies: float
    tolerance: dict[str, float]

    def failure(self) -> str:
        """Say what is wrong; empty where nothing is."""
        if not self.varies >= LEAST_RANGE:
            return (
                f"its answers to {self.clips} clips of all emotions hardly differ (by {self.varies:.1e}), which proves "
                "nothing; train it longer"
            )
        for name, allowed in self.tolerance.items():
            if not getattr(self, name) <= allowed:  # NaN is not, either
                found = f"{getattr(self, name):.1e} ({allowed:g} is allowed)"
                return f"its {name} differ from those of Model.predict by {found}"
        return ""


def prove(together: Together, run: Runner, rate: int, known: dict[Features, Known]) -> Proof:
    """Compare what a file and the models say of made speech of all emotions.

    Args:
        together: Whose answers the file shall give.
        run: Gives probabilities and logits `[B, C]` of waveforms `[B, T]` at `rate` and their lengths `[B]`.
        rate: Sample rate that the file takes, Hz.
        known: What is known of the one speaker, by kind of features, for models that normalize by speaker.
    """
    sounds = make_sounds(rate)
    expected_NC = np.stack([answer_first(together, sound_T, rate, known) for sound_T in sounds])
    by_encoder = any(isinstance(kind, Encoder) for kind in together.features)
    batches = (1,) if by_encoder else (1, BATCH)
    probability, logit, given_NC = 0.0, 0.0, expected_NC
    for size in batches:
        parts = [run(*pad_sounds(sounds[i : i + size])) for i in range(0, len(sounds), size)]
        given_NC, logits_NC = (np.concatenate(part) for part in zip(*parts, strict=True))
        probability = np.maximum(probability, np.abs(given_NC - expected_NC).max())
        wanted_NC = np.log(np.maximum(expected_NC, _TINY))
        logit = np.maximum(logit, np.abs(_centered(logits_NC) - _centered(wanted_NC)).max())
    lengths_s = [len(sound_T) / rate for sound_T in sounds]
    same_rate = all(kind.sample_rate == rate for kind in together.features)
    return Proof(
        clips=len(sounds),
        seconds=(round(min(lengths_s), 3), round(max(lengths_s), 3)),
        batches=batches,
        probabilities=float(probability),
        logits=float(logit),
        varies=float(np.ptp(given_NC, axis=0).max()),
        tolerance=RESAMPLED if not same_rate else ROUNDED if by_encoder else TOLERANCE,
    )


def make_sounds(rate: int) -> list[np.ndarray]:
    """Return clips of made speech, each [T] float32: three of each emotion, 0.3 to 30 s, of four corpora's kinds."""
    by_emotion = {emotion: [] for emotion in EMOTIONS}
    k = 0
    while any(len(clips) < CLIPS // len(EMOTIONS) for clips in by_emotion.values()):
        clip = clip_at(k)
        if len(by_emotion[clip.emotion]) < CLIPS // len(EMOTIONS):
            by_emotion[clip.emotion].append(clip)
        k += 1
    sounds = []
    for place, clip in enumerate(clip for clips in zip(*by_emotion.values(), strict=True) for clip in clips):
        sound_T = to_rate(waveform(clip).astype(np.float32) / 32768, SETTINGS[clip.corpus].sample_rate, rate)
        count = round(SECONDS[place % len(SECONDS)] * rate)
        start = len(sound_T) // 3 if count < len(sound_T) // 2 else 0  # where somebody speaks
        sounds.append(np.resize(sound_T[start:], count))
    return sounds


def answer_first(
    together: Together, sound_T: np.ndarray, rate: int, known: dict[Features, Known] | None = None
) -> np.ndarray:
    """Return the product's probabilities `[C]` for the first window of a sound, as long as the features hear."""
    window_s = together.features[0].duration_s or len(sound_T) / rate
    with as_file(sound_T, rate) as file:
        hearing = Hearing(file, WindowConfig(window_s=max(0.1, window_s)), together.features[0])
        if not known:
            return answer_windows(together.models, hearing, together.weights)[0]
        heard = {kind: next(hearing.sounds(kind.sample_rate))[1] for kind in together.features}
    each = []
    for model in together.models:
        row = model.features.kernel().rows(heard[model.features], "", ("none",), 0)[0]
        columns = {name: [""] for name in ("utterance_id", "corpus", "speaker_id", "emotion")}
        table = pa.table({**columns, "features": encode_features([row], model.features.arrow_type())})
        normalizer = model.normalizer({"": known[model.features]}) if model.speaker_norm else None
        each.append(model.answer(Examples.from_table(table, model.labels, [""], normalizer)))
    return (pool_answers(each, together.weights) if len(each) > 1 else each[0])[0]


def pad_sounds(sounds: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return sounds as one array `[B, T]` float32 with noise after their ends, and their lengths `[B]` int64.

    The noise shows whether what lies behind a clip's end is heard.
    """
    lengths_B = np.array([len(sound_T) for sound_T in sounds])
    padded_BT = np.random.default_rng(0).normal(0, 0.1, (len(sounds), lengths_B.max())).astype(np.float32)
    for row_T, sound_T in zip(padded_BT, sounds, strict=True):
        row_T[: len(sound_T)] = sound_T
    return padded_BT, lengths_B


def _centered(logits_NC: np.ndarray) -> np.ndarray:
    return logits_NC - logits_NC.mean(axis=1, keepdims=True)
