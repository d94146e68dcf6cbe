"""The eight emotion labels in their fixed order, their synonyms, and label sets chosen from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ser_ray.base.errors import UserError

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
COLORS = {  # Okabe and Ito's palette, told apart by all kinds of colour vision; grey for what is neither
    **{"neutral": "#8C8C8C", "calm": "#56B4E9", "happy": "#F0E442", "sad": "#0072B2"},
    **{"angry": "#D55E00", "fearful": "#CC79A7", "disgust": "#009E73", "surprised": "#E69F00"},
}
SIX = ("neutral", "happy", "sad", "angry", "fearful", "disgust")

# Words and usual abbreviations of three letters. Shorter codes belong to one corpus, whose own room knows them: `A` is
# angry in SAVEE and fearful (Angst) in EMO-DB.
_SYNONYMS = {
    "neutral": "neutral neutrality neu",
    "calm": "calm calmness relaxed cal",
    "happy": "happy happiness joy joyful hap",
    "sad": "sad sadness",
    "angry": "angry anger ang",
    "fearful": "fearful fear scared afraid fea",
    "disgust": "disgust disgusted dis",
    "surprised": "surprised surprise pleasant_surprise pleasant_surprised sur",
}
_CANONICAL = {word: emotion for emotion, words in _SYNONYMS.items() for word in words.split()}
_KNOWN = ", ".join(f"{e} ({', '.join(words.split()[1:])})".replace("_", " ") for e, words in _SYNONYMS.items())


def parse_emotion(text: str) -> str:
    """Map a label, as a table or a flag writes it, to one of `EMOTIONS`.

    Args:
        text: A label in any case, with spaces, hyphens or underscores between words.

    Returns:
        The canonical label.

    Raises:
        ValueError: The label is none of the eight emotions nor a known synonym; the message names it, and the words
            that are known.
    """
    emotion = _CANONICAL.get(text) or _CANONICAL.get(_word(text))
    if emotion is None:
        raise ValueError(f"unknown emotion {text!r}: known words are {_KNOWN}")
    return emotion


def _word(text: str) -> str:
    return "_".join(text.strip().lower().replace("-", " ").replace("_", " ").split())


@dataclass(frozen=True)
class LabelSet:
    """The classes of one experiment and how the eight emotions fall into them.

    Attributes:
        names: Class names, in the order of `EMOTIONS`; a class's index is its position here.
        merged: `(emotion, class)` pairs for emotions that count as another one.
    """

    names: tuple[str, ...] = EMOTIONS
    merged: tuple[tuple[str, str], ...] = ()

    def index(self, emotion: str) -> int | None:
        """Return the class index of an emotion, or None when it is left out."""
        name = dict(self.merged).get(emotion, emotion)
        return self.names.index(name) if name in self.names else None


def parse_labels(words: Sequence[str]) -> LabelSet:
    """Read the `--labels` flag.

    Args:
        words: `all`, `six` (the emotions of CREMA-D), or emotions by name; besides these,
            merges such as `calm=neutral`, which count the first emotion as the second.

    Raises:
        UserError: A word is no emotion, or fewer than two classes remain.
    """
    names: set[str] = set()
    merged: dict[str, str] = {}
    for word in words:
        if word in ("all", "six"):
            names |= set(EMOTIONS if word == "all" else SIX)
            continue
        try:
            source, _, target = word.partition("=")
            if target:
                merged[parse_emotion(source)] = parse_emotion(target)
            else:
                names.add(parse_emotion(source))
        except ValueError:
            raise UserError(
                f"--labels: unknown emotion in {word!r}; choose all, six, merges such as calm=neutral, or some of: "
                f"{', '.join(EMOTIONS)}"
            ) from None
    kept = tuple(name for name in EMOTIONS if name in (names or set(EMOTIONS)) and name not in merged)
    stray = [target for target in merged.values() if target not in kept]
    if stray:
        raise UserError(f"--labels: the merge target {stray[0]} is not among the classes {', '.join(kept)}")
    if len(kept) < 2:
        raise UserError(f"--labels: a classifier needs two classes or more, got {', '.join(kept) or 'none'}")
    return LabelSet(kept, tuple(sorted(merged.items())))
