"""Clips below folders: copies, versions, links, stray files, and folders that hold no clip."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from ser_ray.base.errors import UserError
from ser_ray.speech.corpora import audit, discover
from ser_ray.speech.utterance import Reject


def clip(path, seed=0, seconds=0.1):
    """Write a second of noise, or less; the same seed gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, np.random.default_rng(seed).uniform(-0.5, 0.5, int(16_000 * seconds)), 16_000)
    return str(path)


def reasons(records):
    return {Path(record.path).name: record.reason for record in records}


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
    assert {r.reason for r in manifest.rejects} == {f"another version of {first}"}
    assert {r.utterance_id for r in manifest.rejects} == {"crema_d/1001_DFA_ANG_XX"}
    assert [tuple(row) for row in audit(manifest)] == [("crema_d", 3, 7442, 1, 0, 0, 2)]


def test_a_file_without_speech_does_not_take_the_place_of_a_good_one(tmp_path):
    pointer = tmp_path / "AudioMP3/1001_DFA_ANG_XX.mp3"
    pointer.parent.mkdir()
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    good = clip(tmp_path / "AudioWAV/1001_DFA_ANG_XX.wav", 1)
    manifest = discover([str(tmp_path)])
    assert [u.path for u in manifest.utterances] == [good]
    assert [(r.path, r.reason) for r in manifest.rejects] == [(str(pointer), f"another version of {good}")]


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
        (
            lambda root: (root.rmdir(), clip(root.with_suffix(".wav")), root.with_suffix(".wav").rename(root)),
            "is a file",
        ),
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


# ------------------------------------------------------------------ versions of one clip


def version(path, rate, **how):
    """Write the one clip at some rate and in some format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(rate // 2) / rate
    sf.write(path, 0.3 * np.sin(2 * np.pi * 220 * t), rate, **how)
    return str(path)


def test_of_mp3_beside_wav_the_lossless_one_is_kept(tmp_path):
    version(tmp_path / "AudioMP3/1001_DFA_ANG_XX.mp3", 48_000)
    best = version(tmp_path / "AudioWAV/1001_DFA_ANG_XX.wav", 16_000)
    version(tmp_path / "Codec/1001_DFA_ANG_XX.wav", 44_100, subtype="IMA_ADPCM")
    version(tmp_path / "Ogg/1001_DFA_ANG_XX.ogg", 48_000)
    manifest = discover([str(tmp_path)])
    assert [u.path for u in manifest.utterances] == [best]
    assert [r.reason for r in manifest.rejects] == [f"another version of {best}"] * 3
    assert [tuple(row) for row in audit(manifest)] == [("crema_d", 4, 7442, 1, 0, 0, 3)]


def test_of_16_beside_48_khz_the_higher_rate_is_kept_and_its_copy_is_a_copy(tmp_path):
    name = "Actor_01/03-01-03-01-01-01-01"
    version(tmp_path / f"a16k/{name}.wav", 16_000)
    best = version(tmp_path / f"b48k/{name}.flac", 48_000)
    copy = tmp_path / f"c/{name}.flac"
    copy.parent.mkdir(parents=True)
    shutil.copy(best, copy)
    broken = tmp_path / f"d/{name}.wav"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no audio at all" * 100)
    manifest = discover([str(tmp_path)])
    assert [u.path for u in manifest.utterances] == [best]
    assert [(r.path, r.reason) for r in manifest.duplicates] == [(str(copy), f"copy of {best}")]
    assert [r.reason for r in manifest.rejects] == [f"another version of {best}"] * 2


def test_a_version_of_a_clip_that_is_a_copy_of_another_clip_is_not_used_either(tmp_path):
    kept = version(tmp_path / "03-01-03-01-02-01-07.wav", 48_000)
    version(tmp_path / "03-01-03-01-02-02-07.wav", 48_000)  # the same sound under two takes, as in the published corpus
    version(tmp_path / "mp3/03-01-03-01-02-02-07.mp3", 48_000)
    manifest = discover([str(tmp_path)])
    assert [u.path for u in manifest.utterances] == [kept]
    assert [r.reason for r in manifest.duplicates] == [f"copy of {kept}"]
    assert [r.reason for r in manifest.rejects] == [f"another version of {kept}"]


# ------------------------------------------------------------------ what else is in a folder


def test_a_download_that_was_never_unpacked_says_so(tmp_path):
    for number in range(3):
        with zipfile.ZipFile(tmp_path / f"Audio_Speech_{number}.zip", "w") as archive:
            archive.writestr("Actor_01/03-01-01-01-01-01-01.wav", "x")
    with pytest.raises(UserError, match="holds no audio file but 3 zip archives: unpack them") as caught:
        discover([str(tmp_path)])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is an archive: unpack it"):
        discover([str(tmp_path / "Audio_Speech_0.zip")])
    (tmp_path / "half.tar.gz").write_bytes(b"x")
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(UserError, match="3 zip archives: unpack them; 1 gz archive: unpack it; 1 other file"):
        discover([str(tmp_path)])


def test_a_folder_of_videos_of_no_corpus_says_what_to_do(tmp_path):
    for number in range(2):
        (tmp_path / f"interview{number}.MP4").write_bytes(bytes(1000))
    with pytest.raises(UserError, match="but 2 mp4 files whose names are of no corpus: list them in a table"):
        discover([str(tmp_path)])


def test_a_folder_with_a_table_of_its_clips_is_told_apart_from_an_empty_one(tmp_path):
    clip(tmp_path / "hello.wav")
    (tmp_path / "metadata.csv").write_text("path,emotion,speaker_id\nhello.wav,sad,a\n")
    with pytest.raises(UserError, match="1 csv table: name the table itself"):
        discover([str(tmp_path)])


@pytest.mark.parametrize("suffix", [".mp4", ".sph", ".webm", ".amr", ".flv"])
def test_a_clip_in_a_rare_format_is_a_clip_and_others_of_that_format_are_none(tmp_path, suffix):
    clip(tmp_path / "1001_DFA_ANG_XX.wav")
    (tmp_path / f"1001_DFA_SAD_XX{suffix}").write_bytes(bytes(1000))
    (tmp_path / f"holiday{suffix}").write_bytes(bytes(1000))
    (tmp_path / "1001_DFA_SAD_XX.txt").write_text("don't forget a jacket")
    manifest = discover([str(tmp_path)])
    assert [u.utterance_id for u in manifest.utterances] == ["crema_d/1001_DFA_ANG_XX", "crema_d/1001_DFA_SAD_XX"]
    assert [tuple(row) for row in audit(manifest)] == [("crema_d", 2, 7442, 1, 0, 0, 0)]


def test_a_git_annex_clone_without_its_content_says_how_to_get_it(tmp_path):
    clip(tmp_path / "DC_a01.wav")
    key = ".git/annex/objects/Xx/Yy/SHA256E-s9--ab.wav/SHA256E-s9--ab.wav"
    (tmp_path / "DC_a02.wav").symlink_to(key)
    clip(tmp_path / ".git/annex/objects/Zz/SHA256E-s8--cd.wav", 3)  # what Git keeps for itself is no clip
    manifest = discover([str(tmp_path)])
    assert [u.utterance_id for u in manifest.utterances] == ["savee/DC_a01"]
    (reason,) = reasons(manifest.rejects).values()
    assert reason.startswith("git-annex link whose content is not here: fetch it with `git annex get`")
    (tmp_path / "lab.csv").write_text("path,emotion,speaker_id\nDC_a01.wav,sad,a\nDC_a02.wav,sad,a\n")
    assert [r.reason for r in discover([str(tmp_path / "lab.csv")]).rejects] == [reason]
