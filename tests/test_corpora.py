"""What file names tell: every published name, every wrong code, and corpora that a caller adds."""

import csv
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf

from ser_ray.base import registry
from ser_ray.base.errors import UserError
from ser_ray.speech.corpora import CORPORA, audit, crema_d, discover, ravdess, savee, tess
from ser_ray.speech.emotions import EMOTIONS

SHARED = os.environ.get("SER_RAY_CORPORA")
needs_corpora = pytest.mark.skipif(not SHARED, reason="SER_RAY_CORPORA is not set")


def names(file):
    return (Path(SHARED) / "facts" / file).read_text().split()


# ------------------------------------------------------------------ file names


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            "Actor_12/03-01-06-01-02-01-12.wav",
            "ravdess/03-01-06-01-02-01-12 ravdess_12 female fearful normal ravdess_dogs speech",
        ),
        (
            "x/Actor_01/03-02-05-02-01-02-01.FLAC",
            "ravdess/03-02-05-02-01-02-01 ravdess_01 male angry strong ravdess_kids song",
        ),
        ("AudioWAV/1001_DFA_ANG_XX.wav", "crema_d/1001_DFA_ANG_XX crema_d_1001 male angry - crema_d_DFA speech"),
        ("1091_ieo_sad_hi.Mp3", "crema_d/1091_IEO_SAD_HI crema_d_1091 female sad high crema_d_IEO speech"),
        ("1040_ITH_SAD_X.wav", "crema_d/1040_ITH_SAD_XX crema_d_1040 male sad - crema_d_ITH speech"),
        ("OAF_Fear/OAF_back_fear.wav", "tess/OAF_back_fear tess_oaf female fearful - tess_back speech"),
        ("YAF_pleasant_surprised/yaf_Youth_PS.ogg", "tess/YAF_youth_ps tess_yaf female surprised - tess_youth speech"),
        ("OAF_neutral/OA_bite_neutral.wav", "tess/OAF_bite_neutral tess_oaf female neutral - tess_bite speech"),
        ("ALL/DC_a01.wav", "savee/DC_a01 savee_dc male angry - savee_common_01 speech"),
        ("AudioData/DC/a01.wav", "savee/DC_a01 savee_dc male angry - savee_common_01 speech"),
        ("s3://bucket/kl/SU15.aiff", "savee/KL_su15 savee_kl male surprised - savee_su15 speech"),
        ("JK_sa04.wav", "savee/JK_sa04 savee_jk male sad - savee_sa04 speech"),
        ("JE/n30.m4a", "savee/JE_n30 savee_je male neutral - savee_n30 speech"),
    ],
)
def test_a_name_tells_the_labels(path, expected):
    (u,) = [u for corpus in CORPORA if (u := corpus.parse(path))]
    fields = (u.utterance_id, u.speaker_id, u.gender, u.emotion, u.intensity or "-", u.sentence_id, u.channel)
    assert " ".join(fields) == expected
    assert u.path == path
    assert u.corpus == u.utterance_id.split("/")[0]


@pytest.mark.parametrize(
    ("corpus", "name", "reason"),
    [
        (ravdess, "01-01-06-01-02-01-12.wav", "modality 01"),
        (ravdess, "03-03-06-01-02-01-12.wav", "vocal channel 03 is not one of 01 02"),
        (ravdess, "03-01-09-01-02-01-12.wav", "emotion 09"),
        (ravdess, "03-01-06-03-02-01-12.wav", "intensity 03"),
        (ravdess, "03-01-01-02-02-01-12.wav", "neutral has no strong"),
        (ravdess, "03-01-06-01-03-01-12.wav", "statement 03"),
        (ravdess, "03-01-06-01-02-03-12.wav", "repetition 03"),
        (ravdess, "03-01-06-01-02-01-25.wav", "actor 25 is not one of 01 to 24"),
        (ravdess, "03-02-07-01-02-01-12.wav", "song has no disgust"),
        (crema_d, "1092_DFA_ANG_XX.wav", "actor 1092"),
        (crema_d, "1001_ABC_ANG_XX.wav", "sentence ABC"),
        (crema_d, "1001_DFA_SUR_XX.wav", "emotion SUR"),
        (crema_d, "1001_IEO_ANG_YY.wav", "level YY"),
        (crema_d, "1001_DFA_ANG_HI.wav", "only sentence IEO"),
        (crema_d, "1001_IEO_NEU_LO.wav", "not when neutral"),
        (tess, "OAF_back_calm.wav", "emotion calm"),
        (savee, "DC_x01.wav", "emotion x"),
        (savee, "DC/s01.wav", "emotion s"),
        (savee, "DC_a16.wav", "sentence number 16 is not 01 to 15"),
        (savee, "DC_n31.wav", "sentence number 31"),
        (savee, "DC_a00.wav", "sentence number 00"),
    ],
)
def test_a_wrong_code_is_named(corpus, name, reason):
    with pytest.raises(ValueError, match=reason):
        corpus.parse(name)


@pytest.mark.parametrize(
    "name", ["a01.wav", "ALL/a01.wav", "hello.wav", "03-01-06-01-02-01.wav", "OAF_back.wav", "DC_"]
)
def test_other_names_fit_no_grammar(name):
    assert [corpus.parse(name) for corpus in CORPORA] == [None] * 4


# ------------------------------------------------------------------ every published name

SEVEN = set(EMOTIONS) - {"calm"}
PUBLISHED = [
    (ravdess, "ravdess_speech_names.txt", dict.fromkeys(EMOTIONS, 192) | {"neutral": 96}, {60: 24}),
    (ravdess, "ravdess_song_names.txt", dict.fromkeys(EMOTIONS[1:6], 184) | {"neutral": 92}, {44: 23}),
    (crema_d, "crema_d_names.txt", dict.fromkeys(SEVEN - {"surprised"}, 1271) | {"neutral": 1087}, None),
    (tess, "tess_names.txt", dict.fromkeys(SEVEN, 400), {1400: 2}),
    (savee, "savee_names.txt", dict.fromkeys(SEVEN, 60) | {"neutral": 120}, {120: 4}),
]


@needs_corpora
@pytest.mark.parametrize(("corpus", "file", "emotions", "speakers"), PUBLISHED, ids=[row[1] for row in PUBLISHED])
def test_every_published_name_is_read_and_counted(corpus, file, emotions, speakers):
    paths = names(file)
    utterances = [corpus.parse(path) for path in paths]
    row = "ravdess song" if "song" in file else corpus.NAME
    assert len({u.utterance_id for u in utterances}) == corpus.PUBLISHED_CLIPS[row]
    assert Counter(u.emotion for u in utterances) == emotions
    per_speaker = Counter(u.speaker_id for u in utterances)
    if speakers:
        assert Counter(per_speaker.values()) == speakers
    for changed in (
        lambda p: f"/a/b/c/{Path(p).with_suffix('.FLAC')}",
        lambda p: f"s3://b/{Path(p).with_suffix('.mp3')}",
    ):
        assert [corpus.parse(changed(path)).utterance_id for path in paths] == [u.utterance_id for u in utterances]
    assert all(other.parse(path) is None for other in CORPORA if other is not corpus for path in paths)


@needs_corpora
def test_crema_d_speakers_and_their_sexes():
    with open(Path(SHARED) / "facts" / "crema_d_demographics.csv") as file:
        sexes = {f"crema_d_{row['ActorID']}": row["Sex"].lower() for row in csv.DictReader(file)}
    utterances = [crema_d.parse(name) for name in names("crema_d_names.txt")]
    assert {u.speaker_id: u.gender for u in utterances} == sexes
    assert Counter(sexes.values()) == {"male": 48, "female": 43}
    expected = Counter(f"crema_d_{name[:4]}" for name in names("crema_d_names.txt"))
    assert Counter(u.speaker_id for u in utterances) == expected
    assert len({u.sentence_id for u in utterances}) == 12


@needs_corpora
def test_sexes_and_sentences_of_the_others():
    actors = {u.speaker_id: u.gender for n in names("ravdess_speech_names.txt") if (u := ravdess.parse(n))}
    assert Counter(actors.values()) == {"male": 12, "female": 12}
    assert "Actor_18" not in "".join(names("ravdess_song_names.txt"))
    assert len({tess.parse(name).sentence_id for name in names("tess_names.txt")}) == 200
    both = [
        (savee.parse(name), savee.parse(name.replace("ALL/", "").replace("_", "/")))
        for name in names("savee_names.txt")
    ]
    assert all(one.utterance_id == other.utterance_id for one, other in both)
    # 3 common, 12 more of each of six emotions, 27 more of neutral.
    assert len({one.sentence_id for one, _ in both}) == 3 + 6 * 12 + 27


@needs_corpora
def test_the_real_tree():
    manifest = discover([f"{SHARED}/corpora"])
    assert [tuple(row) for row in audit(manifest)] == [
        ("ravdess", 1440, 1440, 24, 1, 0, 0),
        ("crema_d", 3266, 7442, 40, 0, 2, 0),
        ("tess", 350, 2800, 2, 0, 0, 0),
    ]
    assert [r.utterance_id for r in manifest.duplicates] == ["ravdess/03-01-03-01-02-02-07"]
    assert manifest.conflicts == [
        ("crema_d/1013_WSI_DIS_XX", "crema_d/1013_WSI_SAD_XX"),
        ("crema_d/1017_IWW_ANG_XX", "crema_d/1017_IWW_FEA_XX"),
    ]


@needs_corpora
def test_the_odd_files():
    manifest = discover([f"{SHARED}/oddities"])
    assert [tuple(row) for row in audit(manifest)] == [
        ("ravdess", 7, 1440, 4, 1, 0, 0),
        ("ravdess song", 1, 1012, 1, 0, 0, 0),
        ("crema_d", 8, 7442, 5, 0, 3, 0),
        ("tess", 9, 2800, 2, 0, 0, 0),
    ]
    assert {"tess/OAF_bite_neutral", "crema_d/1040_ITH_SAD_XX"} <= {u.utterance_id for u in manifest.utterances}


# ------------------------------------------------------------------ corpora that a caller adds


@pytest.fixture
def clean_registry(monkeypatch):
    monkeypatch.setattr(registry, "_SPECS", {})


def barking(name="dogs"):
    """A corpus whose clips are called `bark_*.wav` and are those of RAVDESS's first actor otherwise."""

    def parse(path):
        stem = Path(path).stem
        if not stem.startswith("bark_"):
            return None
        if stem == "bark_":
            raise ValueError("no dog is named")
        pattern = ravdess.parse("03-01-05-01-01-01-01.wav")
        return replace(pattern, utterance_id=f"{name}/{stem}", corpus=name, speaker_id=f"{name}_{stem[5:]}", path=path)

    return SimpleNamespace(NAME=name, PUBLISHED_CLIPS={name: 10}, parse=parse)


def test_a_caller_registers_a_corpus_of_their_own(tmp_path, clean_registry):
    for seed, name in enumerate(["bark_rex", "bark_ada", "bark_", "DC_a01"]):
        sf.write(tmp_path / f"{name}.wav", np.random.default_rng(seed).uniform(-0.5, 0.5, 1600), 16_000)
    assert [u.corpus for u in discover([str(tmp_path)]).utterances] == ["savee"]
    registry.register_spec("corpus", "dogs", barking())
    manifest = discover([str(tmp_path)])
    assert [u.utterance_id for u in manifest.utterances] == ["savee/DC_a01", "dogs/bark_ada", "dogs/bark_rex"]
    assert [r.reason for r in manifest.rejects] == ["no dog is named"]
    assert [tuple(row) for row in audit(manifest)] == [("savee", 1, 480, 1, 0, 0, 0), ("dogs", 3, 10, 2, 0, 0, 1)]
    (tmp_path / "dogs.csv").write_text("path,emotion,speaker_id\nDC_a01.wav,sad,a\n")
    with pytest.raises(UserError, match="would be the corpus dogs, but that is a corpus known here"):
        discover([str(tmp_path / "dogs.csv")])


def test_a_name_that_is_taken_is_refused(clean_registry):
    dogs = barking()
    registry.register_spec("corpus", "dogs", dogs)
    registry.register_spec("corpus", "dogs", dogs)  # the cell of a notebook, run again
    registry.register_spec("network", "dogs", object())
    assert registry.registered_specs("corpus") == (dogs,) and registry.registered_specs("features") == ()
    with pytest.raises(UserError, match="corpus dogs is registered already"):
        registry.register_spec("corpus", "dogs", barking())


def test_a_registered_corpus_cannot_take_a_built_in_name(tmp_path, clean_registry):
    registry.register_spec("corpus", "mine", barking("tess"))
    with pytest.raises(UserError, match="called tess, which is taken"):
        discover([str(tmp_path)])


def test_ravdess_keeps_its_eight_codes_whatever_emotions_there_are():
    codes = [ravdess.parse(f"03-01-{code:02}-01-02-01-12.wav").emotion for code in range(1, 9)]
    assert codes == ["neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"]
