import pytest

from ser_ray.base.errors import UserError
from ser_ray.speech.emotions import EMOTIONS, SIX, parse_emotion, parse_labels


def test_the_order_is_fixed():
    assert EMOTIONS == ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")


@pytest.mark.parametrize(
    ("word", "emotion"),
    [
        ("Happiness", "happy"),
        ("pleasant-surprise", "surprised"),
        ("ps", "surprised"),
        ("FEA", "fearful"),
        (" sa ", "sad"),
    ],
)
def test_synonyms(word, emotion):
    assert parse_emotion(word) == emotion


def test_an_unknown_emotion_is_named():
    with pytest.raises(ValueError, match="bored"):
        parse_emotion("bored")


def test_label_sets():
    assert parse_labels(["all"]).names == EMOTIONS
    assert parse_labels(["six"]).names == SIX
    assert parse_labels(["sad", "happy"]).names == ("happy", "sad")
    merged = parse_labels(["all", "calm=neutral"])
    assert "calm" not in merged.names and merged.index("calm") == merged.index("neutral") == 0
    assert parse_labels(["calm=neutral"]) == merged
    assert parse_labels(["six"]).index("surprised") is None


@pytest.mark.parametrize("words", [["bored"], ["happy"], ["happy", "sad", "calm=neutral"]])
def test_useless_label_sets_are_refused(words):
    with pytest.raises(UserError, match="--labels"):
        parse_labels(words)
