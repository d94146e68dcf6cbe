"""What a file that libsndfile cannot read holds instead of sound, told by its first bytes, and what to do about it."""

from __future__ import annotations

import re

SAMPLE_BYTES = 1024  # as many of a file's first bytes tell what it is
_MIN_TEXT = 32  # bytes; fewer may be letters by chance
_AGAIN = "fetch it again"
_REMOVE = "take it away"
_UNPACK = "unpack it"

# Position, bytes that stand there, what that is. Sound and film first, which a converter turns into something readable.
_MEDIA = [
    (4, b"ftyp", "MPEG-4 media (M4A, MP4, MOV or 3GP)"),
    (4, b"moov", "QuickTime media (MOV)"),
    (4, b"mdat", "QuickTime media (MOV)"),
    (4, b"wide", "QuickTime media (MOV)"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska media (WebM or MKV)"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media (WMA or WMV)"),
    (0, b"#!AMR", "AMR speech"),
    (0, b"#!SILK", "SILK speech"),
    (1, b"#!SILK", "SILK speech"),
    (0, b"#!EVS", "EVS speech"),
    (0, b"\xff\xf1", "AAC sound"),
    (0, b"\xff\xf9", "AAC sound"),
    (0, b"ADIF", "AAC sound"),
    (0, b"NIST_1A", "NIST SPHERE with compressed samples"),
    (0, b"ajkg", "Shorten sound"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"wvpk", "WavPack sound"),
    (0, b"TTA", "True Audio sound"),
    (0, b"MPCK", "Musepack sound"),
    (0, b"MP+", "Musepack sound"),
    (0, b"DSD ", "DSD sound"),
    (0, b"FRM8", "DSD sound"),
    (0, b"BW64", "BW64 sound"),
    (0, b".RMF", "RealMedia"),
    (0, b".ra\xfd", "RealAudio"),
    (0, b"\x0b\x77", "Dolby AC-3 sound"),
    (0, b"FLV\x01", "Flash video"),
    (0, b"\x00\x00\x01\xba", "MPEG video"),
    (0, b"\x00\x00\x01\xb3", "MPEG video"),
    (8, b"AVI ", "AVI video"),
    (28, b"Speex   ", "Ogg with the codec Speex"),
    (28, b"\x80theora", "Ogg video (Theora)"),
]
_OTHERS = [
    (0, b"PK\x03\x04", "a ZIP archive", _UNPACK),
    (0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    (0, b"BZh", "a bzip2 archive", _UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"%PDF", "a PDF document", _REMOVE),
    (0, b"\xd0\xcf\x11\xe0", "an Office document", _REMOVE),
    (0, b"{\\rtf", "an RTF document", _REMOVE),
    (0, b"\x89PNG", "a picture (PNG)", _REMOVE),
    (0, b"\xff\xd8\xff", "a picture (JPEG)", _REMOVE),
    (0, b"GIF8", "a picture (GIF)", _REMOVE),
    (8, b"WEBP", "a picture (WebP)", _REMOVE),
    (0, b"II*\x00", "a picture (TIFF)", _REMOVE),
    (0, b"MM\x00*", "a picture (TIFF)", _REMOVE),
    (0, b"MThd", "MIDI notes, which hold no sound", _REMOVE),
    (8, b"RMID", "MIDI notes, which hold no sound", _REMOVE),
    (0, b"\x93NUMPY", "a NumPy array", "write its samples as WAV"),
    (0, b"\x89HDF", "an HDF5 file", "write its samples as WAV"),
    (0, b"PAR1", "a Parquet table", "name it .parquet"),
    (0, b"\x00\x05\x16\x07", "a macOS sidecar file (AppleDouble)", _REMOVE),
]
_PICTURES = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")  # brands of MPEG-4's container
_POINTERS = {
    b"version https://git-lfs": ("Git-LFS", "git lfs pull"),
    b"/annex/objects/": ("git-annex", "git annex get"),
}

# Codecs by RIFF's wFormatTag (RFC 2361 and mmreg.h): those that libsndfile reads, and names of those it lacks.
_READABLE = {0x0001, 0x0002, 0x0003, 0x0006, 0x0007, 0x0011, 0x0031, 0x0038, 0x0040, 0x0055}
_CODECS = {
    0x0004: "VSELP",
    0x0005: "IBM CVSD",
    0x0008: "DTS",
    0x000A: "Windows Media Voice",
    0x0010: "OKI ADPCM",
    0x0014: "G.723 ADPCM",
    0x0015: "DigiSTD",
    0x0016: "DigiFIX",
    0x0017: "Dialogic OKI ADPCM",
    0x0020: "Yamaha ADPCM",
    0x0022: "TrueSpeech",
    0x0030: "Dolby AC-2",
    0x0041: "G.728",
    0x0042: "G.723.1",
    0x0045: "G.726",
    0x0050: "MPEG layer 1 or 2",
    0x0057: "AMR-NB",
    0x0058: "AMR-WB",
    0x0059: "G.723.1",
    0x0064: "G.726",
    0x0065: "G.722",
    0x0083: "G.729",
    0x0085: "G.726",
    0x0092: "Dolby AC-3",
    0x00FF: "AAC",
    0x0111: "G.723",
    0x0112: "Siren",
    0x0123: "G.723",
    0x0130: "ACELP",
    0x0131: "ACELP",
    0x0133: "G.729",
    0x0134: "G.729",
    0x0140: "G.726",
    0x0160: "Windows Media Audio 1",
    0x0161: "Windows Media Audio 2",
    0x0162: "Windows Media Audio Professional",
    0x0163: "Windows Media Audio Lossless",
    0x0200: "Creative ADPCM",
    0x0270: "ATRAC3",
    0x1600: "AAC",
    0x1602: "AAC",
    0x1610: "HE-AAC",
    0x2000: "Dolby AC-3",
    0x2001: "DTS",
    0x674F: "Vorbis",
    0x6750: "Vorbis",
    0x6751: "Vorbis",
    0x676F: "Vorbis",
    0x6770: "Vorbis",
    0x6771: "Vorbis",
    0x704F: "Opus",
    0x7A21: "GSM-AMR",
    0x7A22: "GSM-AMR",
    0xA100: "G.723.1",
    0xA106: "AAC",
    0xA109: "Speex",
    0xF1AC: "FLAC",
}
_READABLE_AIFF = {b"NONE", b"sowt", b"twos", b"raw ", b"in24", b"42n1", b"in32", b"23ni", b"fl32", b"FL32", b"fl64"}
_READABLE_AIFF |= {b"FL64", b"ulaw", b"ULAW", b"alaw", b"ALAW", b"ima4", b"GSM ", b"DWVW"}
_READABLE_CAF = {b"lpcm", b"alaw", b"ulaw", b"alac"}


def name_pointer(head: bytes) -> str:
    """Return the reason why a file that stands for another one cannot be used, or an empty text."""
    for beginning, (system, command) in _POINTERS.items():
        if head.startswith(beginning):
            return f"{system} pointer instead of audio: fetch it with `{command}`"
    return ""


def name_media(head: bytes) -> str:
    """Return the kind of sound or film that libsndfile cannot read, or an empty text.

    Args:
        head: The first `SAMPLE_BYTES` bytes of a file, fewer where it is shorter.
    """
    if head[4:8] == b"ftyp" and head[8:12] in _PICTURES:
        return ""
    return next((what for place, magic, what in _MEDIA if head.startswith(magic, place)), "")


def name_content(head: bytes) -> str:
    """Return what a file is that is no sound, and what to do, one line, or an empty text.

    Args:
        head: Its first `SAMPLE_BYTES` bytes, fewer where it is shorter, none where it holds but tags and zeros.
    """
    if not head:
        return f"not audio: tags or zeros alone, as an unfinished download or copy leaves them: {_AGAIN}"
    if head[4:8] == b"ftyp" and head[8:12] in _PICTURES:
        return f"not audio: a picture (HEIF or AVIF): {_REMOVE}"
    for place, magic, what, remedy in _OTHERS:
        if head.startswith(magic, place):
            return f"not audio: {what}: {remedy}"
    what = _name_text(head)
    return f"not audio: {what}" if what else ""


def _name_text(head: bytes) -> str:
    """Return what kind of text it is and what to do; nothing where it is none."""
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = head.decode("utf-16" if wide else "utf-8-sig", "ignore").lstrip()
    controls = sum(not letter.isprintable() and letter not in "\t\n\r\f" for letter in text)
    if controls or (not wide and len(text.encode()) < 0.9 * len(head.strip())):
        return ""
    if re.search(r"<(!doctype )?html", text, re.IGNORECASE) and text.startswith("<"):
        return f"a web page: the download failed, {_AGAIN}"
    if re.match(r"<[?!\w]", text):
        return f"an XML document, such as a server's error: the download failed, {_AGAIN}"
    if re.match(r"""[{\[]\s*(["{\[}\]]|[-\d])""", text):
        return f"a JSON document, such as a server's error: the download failed, {_AGAIN}"
    return f"text: {_AGAIN}, or take it away" if len(head) >= _MIN_TEXT else ""


def name_codec(chunk: bytes, content: bytes, *, big_endian: bool) -> str:
    """Return the codec that libsndfile lacks, with its container, or an empty text where it has it or there is none.

    Args:
        chunk: Name of the chunk that tells the codec: `fmt ` of WAV, `COMM` of AIFF, `desc` of CAF.
        content: The first bytes of that chunk.
        big_endian: Byte order of WAV's numbers.
    """
    if chunk == b"fmt " and len(content) >= 2:
        tag = int.from_bytes(content[:2], "big" if big_endian else "little")
        if tag == 0xFFFE and len(content) >= 26:  # extensible: the codec is the first number of a GUID
            tag = int.from_bytes(content[24:26], "big" if big_endian else "little")
        if tag in _CODECS:
            return f"WAV with the codec {_CODECS[tag]} (0x{tag:04X})"
        return "" if tag in _READABLE else f"WAV with the unknown codec 0x{tag:04X}"
    container, four, readable = "AIFF", content[18:22], _READABLE_AIFF
    if chunk == b"desc":
        container, four, readable = "CAF", content[8:12], _READABLE_CAF
    if chunk not in (b"COMM", b"desc") or four in readable or not re.fullmatch(rb"[ -~]{4}", four):
        return ""
    return f"{container} with the codec {four.decode().strip()}"
