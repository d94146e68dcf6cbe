"""TESS: the Toronto Emotional Speech Set.

Recorded at the University of Toronto: two actresses, aged 26 and 64, say "Say the word ..." with each of 200 words of
the Northwestern University Auditory Test No. 6, in seven emotions. Published at 24,414 Hz, 16 bit, mono (single
files differ: one at 96 kHz, two with AIFF data). Licence CC BY-NC-ND 4.0. Pichora-Fuller & Dupuis, 2020,
doi:10.5683/SP2/E8H2MF.

Names are actress (OAF the older, YAF the younger), word, emotion (`ps` is pleasant surprise).
    OAF_Pleasant_surprise/OAF_back_ps.wav   older actress, "Say the word back", surprised
    YAF_fear/YAF_youth_fear.wav             younger actress, "Say the word youth", fearful

The folders' spelling varies (`OAF_Fear`, `YAF_fear`, `YAF_pleasant_surprised`) and does not matter, but for one file
that lacks a letter: `OAF_neutral/OA_bite_neutral.wav` is the clip `OAF_bite_neutral`, by its folder and because the
younger actress has no O. The usual download holds all folders twice.
"""

from __future__ import annotations

import re
from sys import intern

from ser_ray.speech.corpora.grammar import decode_field
from ser_ray.speech.utterance import Utterance

NAME = "tess"
PUBLISHED_CLIPS = {NAME: 2800}

_FILE = re.compile(r"(OAF|YAF|OA)_([a-z]+)_([a-z]+)\.\w+", re.IGNORECASE | re.ASCII)
_EMOTIONS = {
    "angry": "angry",
    "disgust": "disgust",
    "fear": "fearful",
    "happy": "happy",
    "neutral": "neutral",
    "ps": "surprised",
    "sad": "sad",
}


def parse(path: str) -> Utterance | None:
    """Read a clip's labels off its file name.

    Args:
        path: Local path or URI, whatever the folders, the suffix and the case.

    Returns:
        The utterance, or None when the name does not have the shape of TESS.

    Raises:
        ValueError: The name has the shape but a field holds what the corpus does not have.
    """
    match = _FILE.fullmatch(path.rpartition("/")[2])
    if match is None:
        return None
    actress, word, emotion = match[1].upper(), match[2].lower(), match[3].lower()
    actress = "OAF" if actress == "OA" else actress
    return Utterance(
        utterance_id=f"tess/{actress}_{word}_{emotion}",
        corpus=NAME,
        gender="female",
        speaker_id=intern(f"tess_{actress.lower()}"),
        emotion=decode_field("emotion", emotion, _EMOTIONS),
        intensity="",
        sentence_id=intern(f"tess_{word}"),
        channel="speech",
        path=path,
    )
