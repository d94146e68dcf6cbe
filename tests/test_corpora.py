import csv
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.base.storage import open_read
from ser_ray.speech.corpora import CORPORA, audit, crema_d, discover, ravdess, savee, tess
from ser_ray.speech.emotions import EMOTIONS
from ser_ray.speech.utterance import Reject

SHARED = os.environ.get("SER_RAY_CORPORA")
needs_corpora = pytest.mark.skipif(not SHARED, reason="SER_RAY_CORPORA is not set")


def names(file):
    return (Path(SHARED) / "facts" / file).read_text().split()


def clip(path, seed=0, seconds=0.1):
    """Write a second of noise, or less; the same seed gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, np.random.default_rng(seed).uniform(-0.5, 0.5, int(16_000 * seconds)), 16_000)
    return str(path)


def reasons(records):
    return {Path(record.path).name: record.reason for record in records}


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


# ------------------------------------------------------------------ discovery


def test_a_doubled_download_counts_each_clip_once(tmp_path):
    for seed, name in enumerate(["Actor_01/03-01-01-01-01-01-01", "Actor_02/03-01-03-02-01-01-02"]):
        clip(tmp_path / f"{name}.wav", seed)
        clip(tmp_path / f"audio_speech_actors_01-24/{name}.wav", seed)
    clip(tmp_path / "OAF_Fear/OAF_back_fear.wav", 7)
    clip(tmp_path / "TESS Toronto emotional speech set data/OAF_Fear/OAF_back_fear.wav", 7)
    manifest = discover([str(tmp_path)])
    assert [u.path for u in manifest.utterances] == sorted(u.path for u in manifest.utterances)
    assert len({u.utterance_id for u in manifest.utterances}) == len(manifest.utterances) == 3
    assert len(manifest.duplicates) == 3 and not manifest.rejects and not manifest.conflicts
    kept = str(tmp_path / "Actor_01/03-01-01-01-01-01-01.wav")
    copy = str(tmp_path / "audio_speech_actors_01-24/Actor_01/03-01-01-01-01-01-01.wav")
    assert Reject(copy, "ravdess", "ravdess/03-01-01-01-01-01-01", f"copy of {kept}") in manifest.duplicates
    u = manifest.utterances[0]
    status = os.stat(u.path)
    assert (u.size, u.modified_ns) == (status.st_size, status.st_mtime_ns)
    assert [tuple(row) for row in audit(manifest)] == [
        ("ravdess", 4, 1440, 2, 2, 0, 0),
        ("tess", 2, 2800, 1, 1, 0, 0),
    ]


def test_the_same_id_with_other_audio_is_rejected(tmp_path):
    first = clip(tmp_path / "a/1001_DFA_ANG_XX.wav", 1)
    clip(tmp_path / "b/1001_DFA_ANG_XX.wav", 2)
    clip(tmp_path / "c/1001_dfa_ang_xx.flac", 1)
    manifest = discover([str(tmp_path)])
    assert [u.path for u in manifest.utterances] == [first]
    assert {r.reason for r in manifest.rejects} == {f"same id as {first}, other audio"}
    assert {r.utterance_id for r in manifest.rejects} == {"crema_d/1001_DFA_ANG_XX"}
    assert [tuple(row) for row in audit(manifest)] == [("crema_d", 3, 7442, 1, 0, 0, 2)]


def test_a_file_without_speech_does_not_take_the_place_of_a_good_one(tmp_path):
    pointer = tmp_path / "AudioMP3/1001_DFA_ANG_XX.mp3"
    pointer.parent.mkdir()
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    good = clip(tmp_path / "AudioWAV/1001_DFA_ANG_XX.wav", 1)
    manifest = discover([str(tmp_path)])
    assert [u.path for u in manifest.utterances] == [good]
    assert [(r.path, r.reason) for r in manifest.rejects] == [(str(pointer), f"same id as {good}, other audio")]


def test_copies_under_other_names_are_dropped_and_two_labels_are_a_conflict(tmp_path):
    clip(tmp_path / "03-01-03-01-02-01-07.wav", 1)
    clip(tmp_path / "03-01-03-01-02-02-07.wav", 1)
    clip(tmp_path / "03-02-03-01-02-02-07.wav", 2)
    clip(tmp_path / "1006_TIE_HAP_XX.wav", 3)
    clip(tmp_path / "1006_TIE_NEU_XX.wav", 3)
    clip(tmp_path / "1006_TSI_NEU_XX.wav", 3)
    manifest = discover([str(tmp_path)])
    assert manifest.conflicts == [("crema_d/1006_TIE_HAP_XX", "crema_d/1006_TIE_NEU_XX")]
    assert [r.utterance_id for r in manifest.duplicates] == ["ravdess/03-01-03-01-02-02-07", "crema_d/1006_TSI_NEU_XX"]
    assert [tuple(row) for row in audit(manifest)] == [
        ("ravdess", 2, 1440, 1, 1, 0, 0),
        ("ravdess song", 1, 1012, 1, 0, 0, 0),
        ("crema_d", 3, 7442, 1, 1, 1, 0),
    ]


def test_files_alike_only_in_size_or_in_the_middle_are_no_copies(tmp_path):
    for number, byte in enumerate(b"\0\1"):
        path = tmp_path / f"DC_a{number + 1:02}.wav"
        path.write_bytes(bytes([byte]) + bytes(20_000))
    assert len(discover([str(tmp_path)]).utterances) == 2


def test_empty_files_and_pointers_are_no_copies_of_each_other(tmp_path):
    for name in ("DC_a01", "DC_a02", "DC_h01"):
        (tmp_path / f"{name}.wav").write_bytes(b"")
    for name in ("KL_a01", "KL_h01"):
        (tmp_path / f"{name}.wav").write_text("version https://git-lfs.github.com/spec/v1\n" + "x" * 90)
    manifest = discover([str(tmp_path)])
    assert len(manifest.utterances) == 5
    assert not manifest.duplicates and not manifest.conflicts and not manifest.rejects


def test_every_stray_file_has_a_reason(tmp_path):
    clip(tmp_path / "DC_a01.wav")
    clip(tmp_path / "holiday.wav", 1)
    clip(tmp_path / "03-01-06-01-02-01-25.wav", 2)
    (tmp_path / "._DC_a01.wav").write_bytes(b"\0\5\26\7")
    (tmp_path / "README.txt").write_text("not audio")
    (tmp_path / "DC_a02.wav").symlink_to(tmp_path / "gone.wav")
    os.mkfifo(tmp_path / "DC_a03.wav")
    with open(os.fsencode(tmp_path) + b"/DC_\xe9.wav", "wb"):
        pass
    manifest = discover([str(tmp_path)])
    assert len(manifest.utterances) == 1
    assert reasons(manifest.rejects) == {
        "holiday.wav": "name fits no known corpus",
        "03-01-06-01-02-01-25.wav": "actor 25 is not one of 01 to 24",
        "._DC_a01.wav": "macOS sidecar file (AppleDouble), not audio",
        "DC_a02.wav": "file not found",
        "DC_a03.wav": "not a regular file",
        "DC_\\xe9.wav": "path is not valid UTF-8: rename it",
    }
    assert [r.path for r in manifest.rejects] == sorted(r.path for r in manifest.rejects)
    assert [tuple(row) for row in audit(manifest)] == [
        ("ravdess", 1, 1440, 0, 0, 0, 1),
        ("savee", 1, 480, 1, 0, 0, 0),
        ("unknown", 5, None, 0, 0, 0, 5),
    ]


def test_a_folder_that_cannot_be_listed_is_said(tmp_path, monkeypatch):
    clip(tmp_path / "DC_a01.wav")
    clip(tmp_path / "shut/DC_a02.wav", 1)
    scandir = os.scandir

    def refuse(path):  # a real refusal would not stop root
        if path.endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    manifest = discover([str(tmp_path)])
    assert reasons(manifest.rejects) == {"shut": "folder cannot be listed: Permission denied"}
    assert len(manifest.utterances) == 1


def test_links_are_followed_but_a_file_counts_once(tmp_path):
    clip(tmp_path / "data/DC/a01.wav", 1)
    clip(tmp_path / "elsewhere/KL/a01.wav", 2)
    (tmp_path / "data/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "twin").symlink_to(tmp_path / "data")
    roots = [str(tmp_path / name) for name in ("data", "data/DC", "twin", "elsewhere", "data/../data")]
    manifest = discover(roots)
    assert [u.utterance_id for u in manifest.utterances] == ["savee/DC_a01", "savee/KL_a01"]
    assert not manifest.duplicates and not manifest.rejects
    assert discover(roots[::-1]) == manifest
    (tmp_path / "data/Z").symlink_to(tmp_path / "data/DC")
    assert discover([str(tmp_path / "data")]).utterances[0].path == str(tmp_path / "data/DC/a01.wav")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: shutil.rmtree(root), "is no folder"),
        (lambda root: None, "holds no audio file"),
        (lambda root: (root / "notes.txt").write_text("x"), "holds no audio file"),
        (lambda root: clip(root / "hello.wav"), "holds no clip of ravdess, crema_d, tess, savee among 1 audio files"),
        (lambda root: clip(root / "DC_a77.wav"), "sentence number 77"),
    ],
)
def test_a_root_without_clips_gets_one_clear_line(tmp_path, make, message):
    clip(tmp_path / "good/DC_a01.wav")
    root = tmp_path / "bad"
    root.mkdir()
    make(root)
    with pytest.raises(UserError, match=message) as caught:
        discover([str(tmp_path / "good"), str(root)])
    assert "\n" not in str(caught.value) and str(root) in str(caught.value)


def test_a_uri_of_no_known_kind_is_a_users_mistake():
    with pytest.raises(UserError, match="nonsense://bucket"):
        discover(["nonsense://bucket/corpora"])


def test_hashing_can_be_replaced(tmp_path):
    clip(tmp_path / "DC_a01.wav", 1)
    clip(tmp_path / "DC_a02.wav", 1)
    assert len(discover([str(tmp_path)], hash_files=lambda utterances: {}).utterances) == 2


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


# ------------------------------------------------------------------ object storage


@pytest.fixture
def bucket(monkeypatch):
    server_module = pytest.importorskip("moto.server")
    from pyarrow import fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    storage._connect.cache_clear()  # its clients keep the endpoint they were made with
    files = fs.S3FileSystem(allow_bucket_creation=True, endpoint_override=f"http://{host}:{port}")
    files.create_dir("corpora")
    yield files
    server.stop()


def test_a_bucket_is_read_like_a_folder(bucket, tmp_path):
    for seed, path in enumerate(
        ["TESS set/OAF_Fear/OAF_back_fear.wav", "again/OAF_back_fear.wav", "DC/a01.wav", "x.wav"]
    ):
        with bucket.open_output_stream(f"corpora/all/{path}") as stream:
            stream.write(Path(clip(tmp_path / "clip.wav", max(seed, 1))).read_bytes())
    manifest = discover(["s3://corpora/all/"])
    assert [u.utterance_id for u in manifest.utterances] == ["savee/DC_a01", "tess/OAF_back_fear"]
    assert manifest.utterances[1].path == "s3://corpora/all/TESS%20set/OAF_Fear/OAF_back_fear.wav"
    assert manifest.utterances[0].size > 1000 and manifest.utterances[0].modified_ns > 0
    assert [r.reason for r in manifest.duplicates] == [f"copy of {manifest.utterances[1].path}"]
    assert reasons(manifest.rejects) == {"x.wav": "name fits no known corpus"}
    for missing in ("s3://corpora/none", "s3://nobody/all", "s3://corpora/none.csv"):
        with pytest.raises(UserError, match=missing):
            discover([missing])


def test_a_table_in_a_bucket(bucket, tmp_path):
    with bucket.open_output_stream("corpora/my clips/one #1.wav") as stream:
        stream.write(Path(clip(tmp_path / "clip.wav")).read_bytes())
    with bucket.open_output_stream("corpora/lab.csv") as stream:
        stream.write(b"path,emotion,speaker_id\nmy clips/one #1.wav,joy,7\n./none/gone.wav,joy,7\n")
    manifest = discover(["s3://corpora/lab.csv"])
    (u,) = manifest.utterances
    assert (u.utterance_id, u.path) == ("lab/my clips/one #1", "s3://corpora/my%20clips/one%20%231.wav")
    assert open_read(u.path).read() == Path(tmp_path / "clip.wav").read_bytes()
    assert reasons(manifest.rejects) == {"gone.wav": "file not found"}
