"""SAVEE: the Surrey Audio-Visual Expressed Emotion database.

Recorded at the University of Surrey: four male native English speakers, researchers aged 27 to 31, read TIMIT
sentences in seven emotions. Published at 44.1 kHz, 16 bit, mono; some files clip or carry a DC offset, and KL is
about 20 dB quieter. For research only, on registration. Haq & Jackson, in Machine Audition, IGI Global, 2010.

Names are speaker, emotion and sentence number, in one folder or in one folder per speaker.
    ALL/DC_a01.wav   speaker DC, angry, sentence 1
    JK/su15.wav      speaker JK, surprised, sentence 15

Each emotion has fifteen sentences: 01 to 03 are common to all emotions, 04 and 05 belong to the emotion, the other
ten are its own and phonetically balanced. Neutral has thirty, among them the three common ones and the twelve that
belong to other emotions, at numbers the publication does not give. So `savee_common_01` to `_03` are the only
sentence ids that several emotions share here, and a neutral id may stand for a text that another id names too.
"""

from __future__ import annotations

import re
from sys import intern

from ser_ray.speech.corpora.grammar import decode_field
from ser_ray.speech.utterance import Utterance

NAME = "savee"
PUBLISHED_CLIPS = {NAME: 480}

_SPEAKERS = frozenset({"DC", "JE", "JK", "KL"})
_FILE = re.compile(r"(?:(DC|JE|JK|KL)_)?([a-z]{1,2})([0-9]{2})\.\w+", re.IGNORECASE | re.ASCII)
_EMOTIONS = {
    "a": "angry",
    "d": "disgust",
    "f": "fearful",
    "h": "happy",
    "n": "neutral",
    "sa": "sad",
    "su": "surprised",
}


def parse(path: str) -> Utterance | None:
    """Read a clip's labels off its file name and, in the layout of one folder per speaker, its folder.

    Args:
        path: Local path or URI, whatever the folders above, the suffix and the case.

    Returns:
        The utterance, or None when the name does not have the shape of SAVEE or no speaker is named.

    Raises:
        ValueError: The name has the shape but a field holds what the corpus does not have.
    """
    folder, _, name = path.rpartition("/")
    match = _FILE.fullmatch(name)
    if match is None:
        return None
    speaker = (match[1] or folder.rpartition("/")[2]).upper()
    if speaker not in _SPEAKERS:
        return None
    code, number = match[2].lower(), match[3]
    emotion = decode_field("emotion", code, _EMOTIONS)
    last = 30 if code == "n" else 15
    if not 1 <= int(number) <= last:
        raise ValueError(f"sentence number {number} is not 01 to {last} of emotion {code!r}")
    return Utterance(
        utterance_id=f"savee/{speaker}_{code}{number}",
        corpus=NAME,
        gender="male",
        speaker_id=intern(f"savee_{speaker.lower()}"),
        emotion=emotion,
        intensity="",
        sentence_id=intern(f"savee_{'common_' if int(number) <= 3 else code}{number}"),
        channel="speech",
        path=path,
    )
