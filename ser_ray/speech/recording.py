"""An open audio file whose samples are read anywhere, block by block, whatever its container and length.

libsndfile reads what it can (`Recording`), FFmpeg what that refuses (`media.MediaRecording`); both are used alike.

Shapes: T samples, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

import numpy as np
import soundfile as sf

from ser_ray.speech.containers import AudioError, Layout, Patched, check_facts, survey
from ser_ray.speech.content import SAMPLE_BYTES, name_content, name_media, name_pointer
from ser_ray.speech.media import ForeignError, MediaRecording

UNWRITTEN = "length never written"
_MAX_LOST_S = 0.01  # a header that promises so much more than is there is no sign of a loss
_BLOCK = 1 << 20  # samples of all channels together that are decoded at once
_MAGIC = (b"RIFF", b"RIFX", b"FORM", b"fLaC", b"OggS", b"ID3")


def open_recording(file: BinaryIO) -> Recording | MediaRecording:
    """Open an audio file, told by its content; its header is still to be checked.

    Args:
        file: Seekable binary stream, which stays the caller's.

    Raises:
        AudioError: It is no sound, or none that can be read.
        OSError: It cannot be read.
    """
    head = file.read(SAMPLE_BYTES)
    if not head:
        raise AudioError("empty file")
    if pointer := name_pointer(head):
        raise AudioError(pointer)
    try:
        return Recording(file, survey(file))
    except ForeignError as error:
        return MediaRecording(file, str(error))


class Recording:
    """An open audio file whose frames are read anywhere, as often as needed.

    Attributes:
        format: libsndfile's name of the container.
        rate: Hz.
        n_channels: Channels.
        n_frames: Samples of each channel; a guess for an MP3 file that does not tell.
        is_float: Whether its samples are stored as floats.
        is_exact: Whether `n_frames` is no guess.
        from_start: Whether it can be decoded from the beginning alone.
        reached: The frame up to which it was last decoded.
    """

    def __init__(self, file: BinaryIO, layout: Layout) -> None:
        self._file, self._layout = file, layout
        self._open()
        self._is_fresh, self.reached = True, 0
        self.format, self.rate = self._sound.format, self._sound.samplerate
        self.n_channels, self.n_frames = self._sound.channels, self._sound.frames
        self.is_float = self._sound.subtype in ("FLOAT", "DOUBLE")
        self.from_start = self.format == "MP3" or not self._sound.seekable()
        self.is_exact = layout.exact or not self.from_start

    def _open(self) -> None:
        self._stream = Patched(self._file, self._layout)
        try:
            self._sound = sf.SoundFile(self._stream)
        except sf.LibsndfileError as error:
            self._stream.raise_error()
            if not self._layout.mpeg or self._layout.start == self._layout.inside:
                raise self._explain(error) from None
            self._layout = replace(self._layout, start=self._layout.inside)  # more tags than libsndfile skips
            self._open()

    def _explain(self, error: sf.LibsndfileError) -> AudioError:
        """Return why libsndfile could not open the file."""
        if self._layout.codec:
            return ForeignError(self._layout.codec)
        heads = []
        for position in (0, self._layout.inside):
            self._file.seek(position)
            heads.append(self._file.read(SAMPLE_BYTES))
        if kind := name_media(heads[0]) or name_media(heads[1]):
            return ForeignError(kind)
        if content := name_content(heads[0]) or name_content(heads[1]):
            return AudioError(content)
        if self._layout.mpeg:
            return AudioError("damaged audio: none of its MP3 frames can be decoded")
        what = "damaged audio" if any(head.startswith(_MAGIC) for head in heads) else "not audio"
        return AudioError(f"{what}: {error.error_string or 'format not recognised.'}")

    def close(self) -> None:
        """Close it and raise the OSError that reading met, if there was one."""
        self._sound.close()
        self._stream.raise_error()

    def check_header(self) -> None:
        """Raise AudioError unless the header can be true."""
        check_facts(self.rate, self.n_channels)
        if self._layout.lost_s(self.n_frames / self.rate) >= _MAX_LOST_S:
            promised, present = self._layout.promised, self._layout.present
            raise AudioError(f"truncated: its header promises {promised} bytes, {present} are there")
        if self.n_frames <= 0:
            raise AudioError("no samples")
        if self.n_frames > 2**62:
            raise AudioError(f"its {self.format} header tells no length (written to a pipe): encode it again")

    def notes(self) -> list[str]:
        """Return what is to be noted of the file as a whole."""
        return [f"{UNWRITTEN}: read to the end of the file"] if self._layout.unwritten else []

    def check_end(self) -> None:
        """Raise AudioError where the end of a FLAC file is missing."""
        if self.format == "FLAC":
            try:
                self._sound.seek(self.n_frames - 1)
            except sf.LibsndfileError:
                raise self._ends_early() from None

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first frame's number and float32 samples [T, C] of one block after the other, until the file ends.

        A file that can be decoded from its beginning alone is decoded from there whatever `start` is.

        Raises:
            AudioError: Decoding fails on the way.
        """
        try:
            yield from self._blocks(start, stop)
        except sf.LibsndfileError:
            raise self._ends_early() from None

    def _ends_early(self) -> AudioError:
        return AudioError(f"truncated or damaged: its {self.format} data end early")

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        if not self.from_start:
            self._sound.seek(start)
        elif not self._is_fresh:
            self.close()
            self._open()
        self._is_fresh = False
        self.reached = position = 0 if self.from_start else start
        size = _BLOCK // self.n_channels
        while position < stop:
            part_TC = self._sound.read(min(size, stop - position), dtype="float32", always_2d=True)
            if not part_TC.size:
                return
            first = max(0, start - position)
            self.reached += len(part_TC)
            if first < len(part_TC):
                yield position + first, part_TC[first:]
            position = self.reached
