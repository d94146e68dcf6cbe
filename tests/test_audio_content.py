"""Files that hold something else than sound that can be read: the line says what, and what to do."""

import io
import sys
import zipfile

import numpy as np
import pytest
from sound_files import encode, id3, reason, replaced

from ser_ray.speech.content import _CODECS, _MEDIA, _OTHERS, _READABLE, name_content, name_media
from ser_ray.speech.media import INSTALL

PAGE = b"<html><head><title>Sign in</title></head><body>Please sign in to continue.</body></html>"
READ = "PyAV is missing to read"


@pytest.fixture
def without_pyav(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("clip.wav", encode("WAV", seconds=0.1))
    return file.getvalue()


def numpy_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(1_000))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            b"\0\0\0\x1cftypM4A \0\0\2\0M4A isomiso2" + bytes(5_000),
            f"{READ} MPEG-4 media (M4A, MP4, MOV or 3GP): {INSTALL}",
        ),
        (b"\0\0\0\x14ftypqt  " + bytes(5_000), f"{READ} MPEG-4 media (M4A, MP4, MOV or 3GP): {INSTALL}"),
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01" + bytes(5_000), f"{READ} Matroska media (WebM or MKV): {INSTALL}"),
        (b"#!AMR-WB\n" + bytes(range(256)), f"{READ} AMR speech: {INSTALL}"),
        (b"\xff\xf1\x50\x80" + bytes(range(256)), f"{READ} AAC sound: {INSTALL}"),
        (id3(2_000) + b"\xff\xf1\x50\x80" + bytes(range(256)), f"{READ} AAC sound: {INSTALL}"),
        (b"RIFF\x00\x10\x00\x00AVI LIST" + bytes(4_000), f"{READ} AVI video: {INSTALL}"),
        (PAGE, "not audio: a web page: the download failed, fetch it again"),
        (b"\n\n<!DOCTYPE HTML>\n" + PAGE, "not audio: a web page: the download failed, fetch it again"),
        (b'<?xml version="1.0"?><!DOCTYPE html>' + PAGE, "not audio: a web page: the download failed, fetch it again"),
        (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "not audio: an XML document, such as"),
        (b'{"error": {"code": 403, "message": "Quota exceeded"}}', "not audio: a JSON document, such as"),
        (zipped(), "not audio: a ZIP archive: unpack it"),
        (b"\x1f\x8b\x08\0" + bytes(range(256)), "not audio: a gzip archive: unpack it"),
        (b"%PDF-1.7\n" + bytes(range(256)), "not audio: a PDF document: take it away"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "not audio: a picture (PNG): take it away"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(range(256)), "not audio: a picture (JPEG): take it away"),
        (b"\0\0\0\x1cftypheic" + bytes(500), "not audio: a picture (HEIF or AVIF): take it away"),
        (numpy_array(), "not audio: a NumPy array: write its samples as WAV"),
        (b"path,emotion,speaker_id\na.wav,happy,anna\n" * 9, "not audio: text: fetch it again, or take it away"),
        ("Grüße aus München, straßenlaut und übermütig.\n".encode() * 40, "not audio: text: fetch it again, or"),
        ("This folder holds no audio at all.\n".encode("utf-16"), "not audio: text: fetch it again, or take it away"),
        (bytes(5_000), "not audio: tags or zeros alone, as an unfinished download or copy leaves them: fetch it again"),
        (id3(3_000), "not audio: tags or zeros alone, as an unfinished download or copy leaves them: fetch it again"),
        (bytes(range(256)) * 20, "not audio: Format not recognised."),
        (b"too short to tell", "not audio: Format not recognised."),
    ],
)
def test_what_is_no_sound_is_called_by_its_name(data, said, without_pyav):
    assert reason(data).startswith(said)


@pytest.mark.parametrize(
    ("pointer", "command"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "`git lfs pull`"),
        (b"/annex/objects/SHA256E-s96044--4d7a.wav\n", "`git annex get`"),
    ],
)
def test_a_pointer_says_how_to_fetch_what_it_points_to(pointer, command):
    assert "pointer instead of audio: fetch it with" in reason(pointer) and command in reason(pointer)


def with_codec(kind: str, tag: int) -> bytes:
    data = encode(kind, "PCM_16", channels=2)
    place = data.index(b"fmt ") + (24 if kind == "W64" else 8)
    return replaced(data, place, ">H" if kind == "RIFX" else "<H", tag)


@pytest.mark.parametrize("kind", ["WAV", "W64"])
@pytest.mark.parametrize(
    ("tag", "name"),
    [(0x45, "G.726 (0x0045)"), (0x22, "TrueSpeech (0x0022)"), (0x161, "Windows Media Audio 2 (0x0161)"), (0xFF, "AAC")],
)
def test_a_codec_that_cannot_be_read_is_called_by_its_name(kind, tag, name, without_pyav):
    assert reason(with_codec(kind, tag)).startswith(f"{READ} WAV with the codec {name}")


def test_an_extensible_wav_names_the_codec_of_its_subformat(without_pyav):
    data = encode("WAVEX", "PCM_16")
    said = reason(replaced(data, data.index(b"fmt ") + 32, "<H", 0x65))
    assert said == f"{READ} WAV with the codec G.722 (0x0065): {INSTALL}, or convert it to WAV or FLAC"


def test_an_unknown_codec_is_told_by_its_number(without_pyav):
    assert reason(with_codec("WAV", 0x2E03)).startswith(f"{READ} WAV with the unknown codec 0x2E03: ")


def test_a_header_of_a_known_codec_that_is_damaged_is_called_damaged():
    data = encode("WAV", "PCM_16")
    assert reason(replaced(data, data.index(b"fmt ") + 22, "<H", 0)).startswith("damaged audio: ")


def test_codecs_of_other_containers_are_named(without_pyav):
    aiff = encode("AIFF", "ULAW")
    place = aiff.index(b"ulaw")
    assert reason(aiff[:place] + b"MAC6" + aiff[place + 4 :]).startswith(f"{READ} AIFF with the codec MAC6: ")
    caf = encode("CAF", "PCM_16")
    place = caf.index(b"lpcm")
    assert reason(caf[:place] + b"aac " + caf[place + 4 :]).startswith(f"{READ} CAF with the codec aac: ")


def test_mp3_of_which_nothing_is_left_is_called_damaged():
    data = encode("MP3")
    assert reason(data[:4] + bytes(2_000)).startswith(("damaged audio", "truncated"))


def test_no_row_of_the_tables_hides_another_or_sound_that_can_be_read():
    rows = [(place, magic, what) for place, magic, what, *_ in [*_MEDIA, *_OTHERS]]
    for place, magic, what in rows:
        head = bytes(place) + magic + bytes(64)
        assert what in (name_media(head) or name_content(head)), what
    for kind, subtype in [("WAV", None), ("AIFF", None), ("FLAC", None), ("OGG", None), ("OGG", "OPUS"), ("MP3", None)]:
        head = encode(kind, subtype)[:1_024]
        assert not name_media(head) and not name_content(head), kind
    assert not set(_CODECS) & _READABLE
