"""RAVDESS: the Ryerson Audio-Visual Database of Emotional Speech and Song.

Recorded at Ryerson University, Toronto: 24 professional actors (12 female, 12 male) with a neutral North American
accent speak and sing two sentences in eight emotions, each but neutral at two intensities. Published at 48 kHz,
16 bit; a few files are stereo. Licence CC BY-NC-SA 4.0. Livingstone & Russo, PLoS ONE 13(5), 2018,
doi:10.1371/journal.pone.0196391.

Names are seven two-digit fields: modality, vocal channel, emotion, intensity, statement, repetition, actor.
    Actor_12/03-01-06-01-02-01-12.wav   speech, fearful, normal, "Dogs are sitting by the door", first take, actor 12
    Actor_24/03-02-01-01-01-02-24.wav   song, neutral, normal, "Kids are talking by the door", second take, actor 24

Only modality 03 (audio only) is used: 01 and 02 are video, and their soundtracks would repeat the same takes. Odd
actors are male, even ones female; song has neither disgust nor surprised, and actor 18 did not sing. The usual
download holds all actor folders twice.
"""

from __future__ import annotations

import re
from sys import intern

from ser_ray.speech.corpora.grammar import decode_field
from ser_ray.speech.utterance import Utterance

NAME = "ravdess"
SONG = "ravdess song"
PUBLISHED_CLIPS = {NAME: 1440, SONG: 1012}

_FILE = re.compile(r"((?:[0-9]{2}-){6}[0-9]{2})\.\w+")
_CHANNELS = {"01": "speech", "02": "song"}
_EMOTIONS = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fearful",
    "07": "disgust",
    "08": "surprised",
}
_INTENSITIES = {"01": "normal", "02": "strong"}
_SENTENCES = {"01": "ravdess_kids", "02": "ravdess_dogs"}
_TAKES = {"01": "first", "02": "second"}
_GENDERS = {f"{number:02}": ("female", "male")[number % 2] for number in range(1, 25)}


def parse(path: str) -> Utterance | None:
    """Read a clip's labels off its file name.

    Args:
        path: Local path or URI, whatever the folders and the suffix.

    Returns:
        The utterance, or None when the name does not have the shape of RAVDESS.

    Raises:
        ValueError: The name has the shape but a field holds what the corpus does not have.
    """
    match = _FILE.fullmatch(path.rpartition("/")[2])
    if match is None:
        return None
    modality, channel, emotion, intensity, statement, take, actor = match[1].split("-")
    if modality != "03":
        raise ValueError(f"modality {modality} is not 03 (audio only)")
    decode_field("repetition", take, _TAKES)
    utterance = Utterance(
        utterance_id=f"ravdess/{match[1]}",
        corpus=NAME,
        gender=decode_field("actor", actor, _GENDERS),
        speaker_id=intern(f"ravdess_{actor}"),
        emotion=decode_field("emotion", emotion, _EMOTIONS),
        intensity=decode_field("intensity", intensity, _INTENSITIES),
        sentence_id=decode_field("statement", statement, _SENTENCES),
        channel=decode_field("vocal channel", channel, _CHANNELS),
        path=path,
    )
    if utterance.emotion == "neutral" and utterance.intensity == "strong":
        raise ValueError("intensity 02: neutral has no strong")
    if utterance.channel == "song" and utterance.emotion in ("disgust", "surprised"):
        raise ValueError(f"emotion {emotion}: song has no {utterance.emotion}")
    return utterance
