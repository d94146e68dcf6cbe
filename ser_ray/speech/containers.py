"""Where an audio file's samples lie: what tags stand before them, what its headers promise, what is there.

libsndfile takes a header at its word. Recorders that lost power, pipes, taggers and cut downloads leave headers that
are wrong; this room finds the container's beginning and the bytes that libsndfile should see instead of wrong ones.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, NamedTuple

from ser_ray.speech.content import name_codec

_UNKNOWN_SIZE = {4: 0x7FFFF000, 8: 1 << 62}  # a size of 4 or 8 bytes that claims more was never meant as one
_LARGEST_SIZE = {4: 0xFFFFFFFF, 8: 1 << 62}
_MAX_OGG_PAGE = 27 + 255 + 255 * 255  # bytes
_BLOCK = 1 << 16  # bytes
_HEAD = 64  # bytes that tell a container
_SAMPLE_RATES = (1_000, 1_000_000)  # Hz; a header that says anything else is damaged
_MAX_CHANNELS = 64
_CONTAINERS = (b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b"caff", b".snd", b"fLaC", b"OggS")


class AudioError(Exception):
    """A file that cannot be used; the message is the reason, one line."""


@dataclass(frozen=True)
class Layout:
    """What is where in an audio file.

    Attributes:
        start: Position of the container, after what taggers put before it, bytes.
        inside: Position after tags and zeros, whatever stands there.
        mpeg: Whether frames of MPEG audio stand there.
        patches: Positions in the file, and the bytes that should stand there.
        promised: Bytes of samples that the header promises; 0 where it promises nothing that can be checked.
        present: Bytes of samples that are there.
        unwritten: Whether the header says that there are no samples although some follow.
        exact: Whether an MP3 file says how many samples it holds; without that libsndfile guesses.
        codec: The codec, with its container, where libsndfile lacks it, or empty.
    """

    start: int = 0
    inside: int = 0
    mpeg: bool = False
    patches: tuple[tuple[int, bytes], ...] = ()
    promised: int = 0
    present: int = 0
    unwritten: bool = False
    exact: bool = False
    codec: str = ""

    def lost_s(self, duration_s: float) -> float:
        """Return how many seconds are missing where the samples that are there last for some."""
        lost = self.promised - self.present
        if lost <= 0:
            return 0.0
        return lost * duration_s / self.present if self.present and duration_s else math.inf


def survey(file: BinaryIO) -> Layout:
    """Find out where a file's samples lie.

    Args:
        file: Seekable binary stream.

    Raises:
        AudioError: An Ogg or MP3 file ends early.
        OSError: The file cannot be read.
    """
    end = file.seek(0, os.SEEK_END)
    inside, head, zeros = _skip_tags(file)
    mpeg = _is_mpeg_frame(head)
    # libsndfile skips a tag before MP3 by itself, and guesses a length from the bytes with it.
    skipped = zeros if mpeg else head.startswith(_CONTAINERS)
    layout = Layout(inside if skipped else 0, inside, mpeg)
    if head.startswith(b"OggS"):
        return replace(layout, patches=_end_ogg(file, inside, end))
    if mpeg:
        return replace(layout, exact=_check_mp3_size(file, inside, end))
    dialect = _DIALECTS.get(head[:4])
    if dialect is None:
        return layout
    data, codec = _find_samples(file, dialect, inside)
    layout = replace(layout, codec=codec)
    return layout if data is None else _measure(file, dialect, data, end, layout)


def check_facts(rate: int, channels: int) -> None:
    """Raise AudioError unless a header's sample rate, Hz, and number of channels can be true."""
    low, high = _SAMPLE_RATES
    if not low <= rate <= high:
        raise AudioError(f"damaged header: a sample rate of {rate} Hz")
    if channels > _MAX_CHANNELS:
        raise AudioError(f"damaged header: {channels} channels")


class Patched:
    """A file as libsndfile should see it: from its container on, with some bytes replaced.

    An error cannot pass through libsndfile, which takes it for the file's end; so it is kept until after. A damaged
    header may ask for a place before the beginning: that is no error of the file.
    """

    def __init__(self, file: BinaryIO, layout: Layout) -> None:
        self._file, self._start, self._patches = file, layout.start, layout.patches
        self._error: OSError | None = None
        file.seek(layout.start)

    def tell(self) -> int:
        """Return the position, counted from the container's beginning."""
        return self._file.tell() - self._start

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, or stay where there is no such place."""
        before = self._file.tell()
        try:
            after = self._file.seek(offset + self._start if whence == os.SEEK_SET else offset, whence)
        except (OSError, ValueError, OverflowError):
            return self.tell()
        if after < self._start:
            self._file.seek(before)
        return self.tell()

    def read(self, size: int) -> bytes:
        """Read some bytes, none where the file cannot be read."""
        try:
            position = self._file.tell() if self._patches else 0
            data = self._file.read(size)
        except OSError as error:
            self._error = error
            return b""
        for place, patch in self._patches:
            first, last = max(place, position), min(place + len(patch), position + len(data))
            if first < last:
                mended = patch[first - place : last - place]
                data = data[: first - position] + mended + data[last - position :]
        return data

    def raise_error(self) -> None:
        """Raise the error that reading met, if there was one."""
        if self._error:
            raise self._error


def _skip_tags(file: BinaryIO) -> tuple[int, bytes, bool]:
    """Skip ID3v2 tags and zeros before the container; return its position, its head and whether there were zeros."""
    start, zeros = 0, False
    while True:
        file.seek(start)
        head = file.read(_HEAD)
        if head.startswith(b"\0"):
            start, zeros = _skip_zeros(file, start), True
        elif head.startswith(b"ID3") and len(head) >= 10:
            # 10 bytes and a size of four times 7 bits; the same 10 bytes again at the end, where a flag says so.
            size = sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
            start += 10 + size + (10 if head[5] & 16 else 0)
        else:
            return start, head, zeros


def _skip_zeros(file: BinaryIO, position: int) -> int:
    file.seek(position)
    while block := file.read(_BLOCK):
        if rest := block.lstrip(b"\0"):
            return position + len(block) - len(rest)
        position += len(block)
    return position


def _is_mpeg_frame(head: bytes) -> bool:
    """Tell whether an MPEG audio frame's header stands there: sync, version, layer, both rates (ISO 11172-3)."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    return head[1] & 0x18 != 0x08 and head[1] & 0x06 != 0 and head[2] & 0xF0 != 0xF0 and head[2] & 0x0C != 0x0C


class _Dialect(NamedTuple):
    """How a container writes its chunks.

    Attributes:
        first: Position of the first chunk in the container.
        name: Bytes of a chunk's name, of which the first four are looked at.
        size: struct format of a chunk's size.
        counts_header: Whether the size covers name and size too.
        align: Chunks begin at a multiple of so many bytes.
        ahead: Bytes between the size of the chunk of samples and the samples.
    """

    first: int
    name: int
    size: str
    counts_header: bool
    align: int
    ahead: int


class _Chunk(NamedTuple):
    """One chunk: its name, where its size stands, and where and how long its content is, bytes."""

    name: bytes
    field: int
    body: int
    size: int


_DIALECTS = {
    b"RIFF": _Dialect(12, 4, "<I", False, 2, 0),
    b"RIFX": _Dialect(12, 4, ">I", False, 2, 0),
    b"RF64": _Dialect(12, 4, "<I", False, 2, 0),
    b"FORM": _Dialect(12, 4, ">I", False, 2, 8),
    b"riff": _Dialect(40, 16, "<Q", True, 8, 0),
    b"caff": _Dialect(8, 4, ">q", False, 1, 4),
    b".snd": _Dialect(0, 0, ">I", False, 1, 0),  # no chunks: a header of its own
}


def _each_chunk(file: BinaryIO, dialect: _Dialect, position: int) -> Iterator[_Chunk]:
    """Yield chunks one after the other, as long as their names are letters."""
    length = dialect.name + struct.calcsize(dialect.size)
    while True:
        file.seek(position)
        header = file.read(length)
        if len(header) < length or not all(32 <= letter < 127 for letter in header[:4]):
            return
        (size,) = struct.unpack(dialect.size, header[dialect.name :])
        size = max(0, size - length) if dialect.counts_header else size
        yield _Chunk(header[:4], position + dialect.name, position + length, size)
        if not 0 <= size < _UNKNOWN_SIZE[8]:
            return
        position += length + size + -size % dialect.align


def _find_samples(file: BinaryIO, dialect: _Dialect, start: int) -> tuple[_Chunk | None, str]:
    """Return the chunk that holds the samples, its size that of RF64's `ds64`, and what to say of its codec."""
    if not dialect.name:
        file.seek(start)
        header = file.read(12)
        if len(header) < 12:
            return None, ""
        _, offset, size = struct.unpack(">4sII", header)
        return _Chunk(b"data", start + 8, start + offset, size), ""
    long, codec = None, ""
    for chunk in _each_chunk(file, dialect, start + dialect.first):
        if chunk.name in (b"data", b"SSND"):
            return (long if long and chunk.size in (0, 0xFFFFFFFF) else chunk)._replace(body=chunk.body), codec
        if chunk.name in (b"ds64", b"fmt ", b"COMM", b"desc"):
            file.seek(chunk.body)
            content = file.read(min(chunk.size, _HEAD))
            codec = codec or name_codec(chunk.name, content, big_endian=dialect.size == ">I")
            if chunk.name == b"ds64" and len(content) >= 16:
                long = _Chunk(b"ds64", chunk.body + 8, 0, int.from_bytes(content[8:16], "little"))
    return None, codec


def _measure(file: BinaryIO, dialect: _Dialect, data: _Chunk, end: int, layout: Layout) -> Layout:
    """Compare the size of the chunk of samples with what is there, and mend it."""
    form = "<Q" if data.name == b"ds64" else dialect.size
    width = struct.calcsize(form)
    present = max(0, end - data.body)
    unknown = not 0 <= data.size < _UNKNOWN_SIZE[width]
    empty = not unknown and data.size <= dialect.ahead < present
    empty = empty and not _is_chain(file, dialect, data.body + data.size, end)
    if not empty and not unknown and data.size <= present:
        return layout
    counted = present + (dialect.name + width if dialect.counts_header else 0)
    patches: tuple[tuple[int, bytes], ...] = ((data.field, struct.pack(form, min(counted, _LARGEST_SIZE[width]))),)
    if data.name == b"ds64":
        patches += ((data.body - 4, b"\xff" * 4),)
    # Some recorders write the file's size there, or the size without the first 8 bytes, as RIFF's own field holds it.
    whole = end - layout.start
    promised = 0 if empty or unknown or data.size in (whole, whole - 8) else data.size
    return replace(layout, patches=patches, promised=promised, present=present, unwritten=empty)


def _is_chain(file: BinaryIO, dialect: _Dialect, position: int, end: int) -> bool:
    """Tell whether nothing but chunks follows, the last of which ends where the file does."""
    if not dialect.name:
        return False
    last = position
    for chunk in _each_chunk(file, dialect, position):
        last = chunk.body + chunk.size
    return last > position and end - dialect.align < last <= end


def _end_ogg(file: BinaryIO, start: int, end: int) -> tuple[tuple[int, bytes], ...]:
    """Return the patches that make the last page of an Ogg file its end (RFC 3533, section 6).

    A stream whose writer was stopped lacks the flag, and all its samples are there nevertheless.

    Raises:
        AudioError: The last page or its last packet is not whole.
    """
    first = max(start, end - _MAX_OGG_PAGE)
    file.seek(first)
    tail = file.read()
    place = tail.rfind(b"OggS")
    page = tail[place:] if place >= 0 else b""
    segments = page[26] if len(page) > 26 else 255
    length = 27 + segments + sum(page[27 : 27 + segments])
    ends = len(page) > 5 and page[5] & 4
    if len(page) < 27 + segments or len(page) < length:
        raise AudioError("truncated: the end of its Ogg stream is missing")
    if ends:
        return ()
    if not segments or page[26 + segments] == 255 or page[length:] in (b"O", b"Og", b"Ogg"):  # something was begun
        raise AudioError("truncated: the end of its Ogg stream is missing")
    ended = bytearray(page[:length])
    ended[5] |= 4
    ended[22:26] = bytes(4)
    ended[22:26] = struct.pack("<I", _checksum(ended))
    return ((first + place, bytes(ended[:26])),)


def _checksum(page: bytes | bytearray) -> int:
    """Return the CRC-32 of an Ogg page: polynomial 04C11DB7, no reflection, from 0."""
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x104C11DB7 if value & 0x80000000 else 0)
        table.append(value)
    value = 0
    for byte in page:
        value = (value << 8 & 0xFFFFFFFF) ^ table[value >> 24 ^ byte]
    return value


def _check_mp3_size(file: BinaryIO, start: int, end: int) -> bool:
    """Tell whether an MP3 file says in its Xing header how long it is.

    Raises:
        AudioError: It is shorter than that.
    """
    file.seek(start)
    frame = file.read(_HEAD)
    found = re.search(rb"Xing|Info", frame)
    if (
        not frame.startswith((b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2", b"\xff\xe3", b"\xff\xe2"))
        or not found
    ):
        return False
    flags = int.from_bytes(frame[found.end() : found.end() + 4], "big")
    field = found.end() + (8 if flags & 1 else 4)
    promised = int.from_bytes(frame[field : field + 4], "big") if flags & 2 else 0
    if promised < _UNKNOWN_SIZE[4] and end - start < 0.99 * promised:
        raise AudioError(f"truncated: its header promises {promised} bytes, {end - start} are there")
    return bool(flags & 1)
