"""CREMA-D: the Crowd-sourced Emotional Multimodal Actors Dataset.

Recorded in Philadelphia: 91 actors (48 male, 43 female, aged 20 to 74, of several ethnic backgrounds) speak twelve
sentences in six emotions; "It's eleven o'clock" (IEO) also at three levels. Published at 16 kHz, 16 bit, mono.
Licence ODbL 1.0. Cao, Cooper, Keutmann, Gur, Nenkova & Verma, IEEE Transactions on Affective Computing 5(4), 2014,
doi:10.1109/TAFFC.2014.2336244.

Names are actor, sentence, emotion, level.
    AudioWAV/1001_DFA_ANG_XX.wav   actor 1001, "Don't forget a jacket", angry, level not specified
    AudioWAV/1091_IEO_SAD_HI.wav   actor 1091, "It's eleven o'clock", sad, high

Some copies hold `1040_ITH_SAD_X`, which is the clip `1040_ITH_SAD_XX`. The corpus's repository holds each clip also
under `AudioMP3/`; point at `AudioWAV/` to use the uncompressed ones. Three pairs are the same audio under two labels.
"""

from __future__ import annotations

import re
from sys import intern

from ser_ray.speech.corpora.grammar import decode_field
from ser_ray.speech.utterance import Utterance

NAME = "crema_d"
PUBLISHED_CLIPS = {NAME: 7442}

# The rest of 1001 to 1091 are male (the corpus's VideoDemographics table).
# fmt: off
_FEMALE = frozenset({
    1002, 1003, 1004, 1006, 1007, 1008, 1009, 1010, 1012, 1013, 1018, 1020, 1021, 1024, 1025, 1028, 1029, 1030, 1037,
    1043, 1046, 1047, 1049, 1052, 1053, 1054, 1055, 1056, 1058, 1060, 1061, 1063, 1072, 1073, 1074, 1075, 1076, 1078,
    1079, 1082, 1084, 1089, 1091,
})
# fmt: on
_GENDERS = {str(actor): "female" if actor in _FEMALE else "male" for actor in range(1001, 1092)}

_FILE = re.compile(r"([0-9]{4})_([A-Z]{3})_([A-Z]{3})_([A-Z]{1,2})\.\w+", re.IGNORECASE | re.ASCII)
_EMOTIONS = {"ANG": "angry", "DIS": "disgust", "FEA": "fearful", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
_LEVELS = {"LO": "low", "MD": "medium", "HI": "high", "XX": ""}
_CODES = ("IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI")
_SENTENCES = {code: f"crema_d_{code}" for code in _CODES}


def parse(path: str) -> Utterance | None:
    """Read a clip's labels off its file name.

    Args:
        path: Local path or URI, whatever the folders, the suffix and the case.

    Returns:
        The utterance, or None when the name does not have the shape of CREMA-D.

    Raises:
        ValueError: The name has the shape but a field holds what the corpus does not have.
    """
    match = _FILE.fullmatch(path.rpartition("/")[2])
    if match is None:
        return None
    actor, sentence, emotion, level = (field.upper() for field in match.groups())
    level = "XX" if level == "X" else level
    utterance = Utterance(
        utterance_id=f"crema_d/{actor}_{sentence}_{emotion}_{level}",
        corpus=NAME,
        gender=decode_field("actor", actor, _GENDERS),
        speaker_id=intern(f"crema_d_{actor}"),
        emotion=decode_field("emotion", emotion, _EMOTIONS),
        intensity=decode_field("level", level, _LEVELS),
        sentence_id=decode_field("sentence", sentence, _SENTENCES),
        channel="speech",
        path=path,
    )
    if utterance.intensity and (sentence != "IEO" or emotion == "NEU"):
        raise ValueError(f"level {level}: only sentence IEO has levels, and not when neutral")
    return utterance
