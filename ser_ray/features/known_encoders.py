"""Pretrained speech encoders as they are known by name: their shapes, files, licences, and what emotions they heard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ser_ray.speech.emotions import parse_emotion

OUTPUTS = "the output of each layer"
INPUT_AND_OUTPUTS = "the input of the first layer and the output of each, as transformers gives them"


class Family(NamedTuple):
    """Encoders of one `model_type` of config.json.

    Attributes:
        layers: How config.json calls the number of layers.
        width: How it calls their width.
        network: The class in transformers; empty where ser_ray has its own.
        states: What a row holds of.
    """

    layers: str = "num_hidden_layers"
    width: str = "hidden_size"
    network: str = ""
    states: str = INPUT_AND_OUTPUTS


FAMILIES = {
    "whisper": Family(
        "encoder_layers", "d_model", states=f"{OUTPUTS}, and of the last once more after the final normalization"
    ),
    "wav2vec2": Family(network="Wav2Vec2Model"),
    "hubert": Family(network="HubertModel"),
    "wavlm": Family(network="WavLMModel"),
    "data2vec-audio": Family(network="Data2VecAudioModel"),
    "wav2vec2-bert": Family(network="Wav2Vec2BertModel"),
}
SPOKEN = "Whisper, wav2vec2, HuBERT, WavLM, data2vec-audio or w2v-BERT"


class Pipeline(NamedTuple):
    """A pretrained encoder of `torchaudio.pipelines`.

    Attributes:
        file: The file of its weights, as torchaudio names it.
        factory: The function of `torchaudio.models` that builds it, and
        settings: what that takes.
        layers: Their number.
        width: Of a layer.
        normalizes: Whether waveforms are brought to mean 0 and deviation 1 first.
    """

    file: str
    factory: str
    layers: int
    width: int
    normalizes: bool
    settings: dict[str, Any] = {}  # noqa: RUF012


PIPELINES = {
    "WAV2VEC2_BASE": Pipeline("wav2vec2_fairseq_base_ls960.pth", "wav2vec2_base", 12, 768, False),
    "WAV2VEC2_LARGE": Pipeline("wav2vec2_fairseq_large_ls960.pth", "wav2vec2_large", 24, 1024, False),
    "WAV2VEC2_LARGE_LV60K": Pipeline("wav2vec2_fairseq_large_lv60k.pth", "wav2vec2_large_lv60k", 24, 1024, True),
    "WAV2VEC2_XLSR53": Pipeline("wav2vec2_fairseq_large_xlsr53.pth", "wav2vec2_large_lv60k", 24, 1024, True),
    "WAV2VEC2_XLSR_300M": Pipeline("wav2vec2_xlsr_300m.pth", "wav2vec2_xlsr_300m", 24, 1024, True),
    "WAV2VEC2_XLSR_1B": Pipeline("wav2vec2_xlsr_1b.pth", "wav2vec2_xlsr_1b", 48, 1280, True),
    "WAV2VEC2_XLSR_2B": Pipeline("wav2vec2_xlsr_2b.pth", "wav2vec2_xlsr_2b", 48, 1920, True),
    "HUBERT_BASE": Pipeline("hubert_fairseq_base_ls960.pth", "hubert_base", 12, 768, False),
    "HUBERT_LARGE": Pipeline("hubert_fairseq_large_ll60k.pth", "hubert_large", 24, 1024, True),
    "HUBERT_XLARGE": Pipeline("hubert_fairseq_xlarge_ll60k.pth", "hubert_xlarge", 48, 1280, True),
    "WAVLM_BASE": Pipeline("wavlm_base.pth", "wavlm_base", 12, 768, False),
    "WAVLM_BASE_PLUS": Pipeline("wavlm_base_plus.pth", "wavlm_base", 12, 768, False),
    "WAVLM_LARGE": Pipeline("wavlm_large.pth", "wavlm_large", 24, 1024, True),
}
PIPELINE_LICENCE = "MIT"  # of all these, as torchaudio.pipelines passes them on


class Heard(NamedTuple):
    """Encoders that were trained on emotional speech which others test on.

    Attributes:
        name: What their names hold, in small letters.
        corpora: What they heard.
        source: Where that is told.
    """

    name: str
    corpora: tuple[str, ...]
    source: str


CORPORA = ("crema_d", "ravdess", "savee", "tess")
HEARD = (
    Heard("emotion2vec_plus", CORPORA, "https://github.com/ddlBoJack/emotion2vec (EmoBox is its data)"),
    Heard("emotion2vec+", CORPORA, "https://github.com/ddlBoJack/emotion2vec (EmoBox is its data)"),
    Heard("exhubert", CORPORA, "https://huggingface.co/amiriparian/ExHuBERT"),
    Heard("wav2vec2-lg-xlsr-en-speech-emotion-recognition", ("ravdess",), "its model card"),
    Heard("wav2vec2-xlsr-english-speech-emotion-recognition", ("ravdess",), "its model card"),
)
_WORDS = {"crema": "crema_d", "ravdess": "ravdess", "savee": "savee", "tess": "tess"}  # in names of data sets
_FEWEST = 3  # classes by names of emotions that make a classifier one of emotions


def find_heard(names: Iterable[str], settings: dict[str, Any], data_sets: Iterable[str]) -> tuple[tuple[str, ...], str]:
    """Return the corpora, of those known here, that an encoder was trained on as far as anything tells, and what does.

    Args:
        names: What it is called, in config.json and by its user.
        settings: `config.json`.
        data_sets: What its model card names.
    """
    spoken = " ".join(names).lower()
    for heard in HEARD:
        if heard.name in spoken:
            return heard.corpora, heard.source
    told = {corpus for word, corpus in _WORDS.items() for name in data_sets if word in name.lower()}
    if told:
        return tuple(sorted(told)), "its model card"
    classes = settings.get("id2label") or {}
    if sum(_is_emotion(str(name)) for name in classes.values()) >= _FEWEST:
        return CORPORA, "its classes are emotions, and its folder does not tell which speech it learned them from"
    return (), ""


def _is_emotion(text: str) -> bool:
    try:
        parse_emotion(text)
    except ValueError:
        return False
    return True
