"""Sound that libsndfile cannot read, such as M4A, AAC, AMR, WMA, and the sound of videos: decoded by FFmpeg (PyAV).

PyAV is the extra `media`; it is imported when such a file is met, and never before. FFmpeg opens the file that is
handed to it and nothing else: no playlist, no address and no other file that one names. Only the first stream of sound
is decoded, packet by packet, from the beginning. Pauses between its packets, which a few cameras leave, are not filled.

Shapes: T samples, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from ser_ray.speech.containers import AudioError, Layout, Patched, check_facts

INSTALL = "pip install -c constraints.txt -e '.[media]'"
MISSING = "PyAV is missing"
_CONVERT = "convert it to WAV or FLAC"
_BLOCK_S = 4  # seconds that are handed on at once
_MAX_LOST_S = 0.5  # a header that promises so much more than is there is no sign of a loss: codecs pad and trim
_FULL_SCALE = {"u8": 128, "s16": 1 << 15, "s32": 1 << 31, "s64": 1 << 63}  # of FFmpeg's integer samples


class ForeignError(AudioError):
    """A file that libsndfile cannot read, and FFmpeg may; the message is its kind."""


class MediaRecording:
    """An open file of sound or film, used like `recording.Recording`.

    Args:
        file: Seekable binary stream, which stays the caller's.
        kind: What kind of file it is, for people.

    Attributes:
        format: FFmpeg's name of the container.
        rate: Hz.
        n_channels: Channels.
        n_frames: Samples of each channel, by the header; at the end some may be missing or too many.
        is_float: Whether its samples may be at the scale of integers; never.
        is_exact: Whether `n_frames` is no guess.
        from_start: Whether it can be decoded from the beginning alone; always.
        reached: The frame up to which it was last decoded.

    Raises:
        AudioError: PyAV is not installed, or the file is damaged or holds no sound.
        OSError: It cannot be read.
    """

    is_float, from_start = False, True

    def __init__(self, file: BinaryIO, kind: str) -> None:
        self._file, self._kind, self._av = file, kind, _import_av(kind)
        self._open()
        codec, container = self._sound.codec_context, self._container
        self.format = container.format.name.partition(",")[0]
        self.rate, self.n_channels = codec.sample_rate, codec.layout.nb_channels
        self._told_s = None
        if self._sound.start_time is not None:  # where none is told, FFmpeg guesses the length from the bit rate
            if self._sound.duration is not None:
                self._told_s = float(self._sound.duration * self._sound.time_base)
            elif container.duration is not None and not container.streams.video:
                self._told_s = container.duration / self._av.time_base
        self.n_frames = round((self._count_s() if self._told_s is None else self._told_s) * self.rate)
        self.is_exact, self._is_fresh, self.reached = False, True, 0

    def _open(self) -> None:
        self._stream = Patched(self._file, Layout())
        alone = {"protocol_whitelist": "none"}  # whatever a file names besides itself is not opened
        try:
            self._container = self._av.open(self._stream, options=alone, metadata_errors="replace")
            if not self._container.streams.audio:
                raise AudioError(f"{self._kind} without sound")
            self._sound = self._container.streams.audio[0]
            if self._sound.codec_context is None:
                raise AudioError(f"{self._kind}, for which FFmpeg has no decoder: {_CONVERT}")
            self._sound.codec_context.thread_count = 1
        except (self._av.FFmpegError, ValueError) as error:
            self._stream.raise_error()
            raise self._broken(error) from None

    def _broken(self, error: Exception) -> AudioError:
        what = " ".join(str(getattr(error, "strerror", None) or error).split())
        return AudioError(f"{self._kind}, which FFmpeg cannot decode ({what}): fetch it again, or {_CONVERT}")

    def _count_s(self) -> float:
        """Return where the last packet of sound ends, seconds, without decoding any."""
        end_s = 0.0
        try:
            for packet in self._container.demux(self._sound):
                if packet.pts is not None:
                    end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        except self._av.FFmpegError as error:
            raise self._broken(error) from None
        self.close()
        self._open()
        return end_s

    def close(self) -> None:
        """Close it and raise the OSError that reading met, if there was one."""
        self._container.close()
        self._stream.raise_error()

    def check_header(self) -> None:
        """Raise AudioError unless the header can be true."""
        check_facts(self.rate, self.n_channels)
        if self.n_frames <= 0:
            raise AudioError("no samples")

    def notes(self) -> list[str]:
        """Return what is to be noted of the file as a whole: nothing."""
        return []

    def check_end(self) -> None:
        """Do nothing: `blocks` has seen to the end."""

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first frame's number and float32 samples [T, C] of one block after the other, until the file ends.

        It is decoded from its beginning whatever `start` is.

        Raises:
            AudioError: Decoding fails on the way, or the file ends before the header says.
        """
        if not self._is_fresh:
            self.close()
            self._open()
        self._is_fresh, self.reached, position = False, 0, 0
        for part_TC in self._parts():
            position, self.reached = self.reached, min(stop, self.reached + len(part_TC))
            first, last = max(0, start - position), self.reached - position
            if first < last:
                yield position + first, part_TC[first:last]
            if self.reached == stop:
                return
        if self._told_s is not None and self.reached < (self._told_s - _MAX_LOST_S) * self.rate:
            raise AudioError(f"truncated: its header promises {self._told_s:.2f} s")

    def _parts(self) -> Iterator[np.ndarray]:
        """Yield all samples [T, C], some seconds at a time."""
        held, count = [], 0
        try:
            for frame in self._container.decode(self._sound):
                if (frame.sample_rate, frame.layout.nb_channels) != (self.rate, self.n_channels):
                    raise AudioError("its sample rate or channels change on the way")
                held.append(_samples(frame))
                count += len(held[-1])
                if count >= _BLOCK_S * self.rate:
                    yield np.concatenate(held)
                    held, count = [], 0
        except self._av.FFmpegError:
            self._stream.raise_error()
            raise AudioError(f"truncated or damaged: its {self.format} data end early") from None
        self._stream.raise_error()
        if held:
            yield np.concatenate(held)


def _import_av(kind: str) -> Any:
    try:
        import av
    except ImportError:
        raise AudioError(f"{MISSING} to read {kind}: {INSTALL}, or {_CONVERT}") from None
    av.logging.set_level(av.logging.PANIC)  # what is wrong is said once, by the reason
    return av


def _samples(frame: Any) -> np.ndarray:
    """Return the samples [T, C] of a frame, full scale 1."""
    values = frame.to_ndarray()
    values_TC = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
    scale = _FULL_SCALE.get(frame.format.name.removesuffix("p"), 1)
    if frame.format.name.startswith("u8"):
        values_TC = values_TC.astype(np.float32) - scale
    return values_TC.astype(np.float32) / np.float32(scale)
