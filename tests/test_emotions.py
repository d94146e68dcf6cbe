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
        ("FEA", "fearful"),
        (" Joy ", "happy"),
    ],
)
def test_synonyms(word, emotion):
    assert parse_emotion(word) == emotion


def test_an_unknown_emotion_is_named_with_the_words_that_are_known():
    with pytest.raises(ValueError, match="bored") as caught:
        parse_emotion("bored")
    assert all(word in str(caught.value) for word in (*EMOTIONS, "anger", "joy", "pleasant surprise"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("code", ["W", "A", "F", "N", "n", "h", "sa", "su", "ps", "0", "3", ""])
def test_a_code_of_one_corpus_is_no_word(code):
    with pytest.raises(ValueError, match="unknown emotion"):
        parse_emotion(code)
    if code:
        with pytest.raises(UserError, match=f"--labels: unknown emotion in '{code}'"):
            parse_labels([code, "happy"])


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
