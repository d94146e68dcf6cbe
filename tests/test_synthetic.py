from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from ser_ray.base.errors import UserError
from ser_ray.speech import made as synthetic
from ser_ray.speech.corpora import discover
from ser_ray.speech.emotions import EMOTIONS

CLIPS = [synthetic.clip_at(i) for i in range(480)]


def contents(root) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in Path(root).rglob("*") if p.is_file()}


def test_480_clips_are_balanced():
    assert set(Counter(clip.corpus for clip in CLIPS).values()) == {120}
    assert {clip.emotion for clip in CLIPS} == set(EMOTIONS)
    for corpus, speakers, emotions in [("ravdess", 24, 8), ("crema_d", 24, 6), ("tess", 2, 7), ("savee", 4, 7)]:
        for attribute, kinds in [("speaker_id", speakers), ("emotion", emotions)]:
            counts = Counter(getattr(clip, attribute) for clip in CLIPS if clip.corpus == corpus)
            assert len(counts) == kinds and max(counts.values()) - min(counts.values()) <= 1


def test_100_000_clips_have_names_of_their_own():
    assert f"{len(synthetic._named()):,}" in synthetic.__doc__
    clips = [synthetic.clip_at(i) for i in range(100_000)]
    assert len({clip.utterance_id for clip in clips}) == len({clip.path for clip in clips}) == 100_000
    counts = Counter((clip.speaker_id, clip.emotion) for clip in clips if clip.corpus == "synthetic")
    assert len(counts) == 96 * 8 and max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.skipif("SER_RAY_CORPORA" not in os.environ, reason="needs the published file names")
def test_names_are_published_ones():
    facts = Path(os.environ["SER_RAY_CORPORA"], "facts")
    for corpus, file in [("ravdess", "ravdess_speech"), ("crema_d", "crema_d"), ("tess", "tess"), ("savee", "savee")]:
        published = set((facts / f"{file}_names.txt").read_text().split())
        folder = "AudioWAV/" if corpus == "crema_d" else ""  # listed without it
        made = {clip.path for clip in synthetic._named() if clip.corpus == corpus}
        assert made and made <= {f"{corpus}/{folder}{name}" for name in published}


def test_files_have_the_formats_of_their_corpora(tmp_path):
    assert synthetic.write_speech(str(tmp_path), 16) == [str(tmp_path)]
    formats = {
        "ravdess": (48_000, 2.5, 5),
        "crema_d": (16_000, 1.2, 4.5),
        "tess": (24_414, 1, 3.5),
        "savee": (44_100, 2.4, 7),
    }
    for clip in CLIPS[:16]:
        info = sf.info(tmp_path / clip.path)
        rate, shortest, longest = formats[clip.corpus]
        assert (info.samplerate, info.channels, info.subtype, info.format) == (rate, 1, "PCM_16", "WAV")
        assert shortest < info.duration < longest
        samples, _ = sf.read(tmp_path / clip.path)
        assert 0.01 < np.abs(samples).max() < 1
    manifest = discover([str(tmp_path)])
    assert not manifest.rejects and not manifest.duplicates
    found = {replace(u, path="", size=0, modified_ns=0) for u in manifest.utterances}
    assert found == {replace(clip, path="") for clip in CLIPS[:16]}


def test_clips_without_a_published_name_come_with_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "_named", lambda: CLIPS[:4])
    data = synthetic.write_speech(str(tmp_path), 12)
    assert data == [str(tmp_path), str(tmp_path / synthetic.TABLE)]
    manifest = discover(data)
    assert not manifest.rejects and not manifest.duplicates
    wanted = {replace(synthetic.clip_at(i), path=str(tmp_path / synthetic.clip_at(i).path)) for i in range(12)}
    assert {replace(u, size=0, modified_ns=0) for u in manifest.utterances} == wanted


def test_bytes_depend_on_the_seed_but_not_on_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "CHUNK", 3)
    for name, arguments in {"one": {}, "two": {"processes": 2}, "other": {"seed": 1}}.items():
        synthetic.write_speech(str(tmp_path / name), 6, **arguments)
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert (
        one == two and one.keys() == other.keys() and len(one) == 6 + 1 + 4
    )  # a marker above, and one for each corpus
    assert all(one[name] != other[name] for name in one)


def test_an_interrupted_folder_is_completed(tmp_path, monkeypatch):
    root = str(tmp_path / "made")
    make, made = synthetic.waveform, []

    def fail_at_fourth(clip, seed):
        made.append(clip.path)
        if len(made) == 4:
            raise KeyboardInterrupt
        return make(clip, seed)

    monkeypatch.setattr(synthetic, "waveform", fail_at_fourth)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write_speech(root, 6)
    synthetic.write_speech(root, 6)
    assert made == [clip.path for clip in [*CLIPS[:4], *CLIPS[3:6]]]
    synthetic.write_speech(root, 8)  # enlarged
    assert made[7:] == [clip.path for clip in CLIPS[6:8]]
    monkeypatch.setattr(synthetic, "_write_clips", None)
    synthetic.write_speech(root, 8)  # finished: nothing is looked at
    monkeypatch.undo()
    synthetic.write_speech(str(tmp_path / "at once"), 8)
    assert contents(root) == contents(tmp_path / "at once")


def test_other_folders_are_left_alone(tmp_path):
    root = tmp_path / "made"
    synthetic.write_speech(str(root), 2)
    before = contents(root)
    for arguments in [{"clips": 1}, {"clips": 2, "seed": 1}]:
        with pytest.raises(UserError, match="choose another folder"):
            synthetic.write_speech(str(root), **arguments)
    assert contents(root) == before
    for occupied in (tmp_path, root / CLIPS[0].path):
        with pytest.raises(UserError, match="no empty folder"):
            synthetic.write_speech(str(occupied), 2)
    with pytest.raises(UserError, match="local folder"):
        synthetic.write_speech("s3://bucket/made", 2)
    with pytest.raises(UserError, match="one clip or more"):
        synthetic.write_speech(str(tmp_path / "none"), 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made"]


def test_a_part_of_a_made_corpus_is_no_folder_to_write_into(tmp_path):
    synthetic.write_speech(str(tmp_path / "made"), 4)
    with pytest.raises(UserError, match="no empty folder"):
        synthetic.write_speech(str(tmp_path / "made/ravdess"), 4)


def test_a_folder_of_an_earlier_version_without_inner_markers_is_finished(tmp_path, monkeypatch):
    root = tmp_path / "made"
    synthetic.write_speech(str(root), 4)
    for marker in root.glob(f"*/{synthetic.MARKER}"):
        marker.unlink()
    monkeypatch.setattr(synthetic, "_write_clips", None)
    assert synthetic.write_speech(str(root), 4) == [str(root)]
    assert discover([str(root / "tess")]).made_speech == [str(root)]


def test_speakers_are_heard_by_their_pitch():
    pitch = {"female": [], "male": []}
    for clip in CLIPS[:96]:
        if clip.emotion == "neutral" and clip.corpus == "crema_d":
            samples = synthetic.waveform(clip).astype(float)
            middle = samples[len(samples) // 4 : -len(samples) // 4]
            power = np.abs(np.fft.rfft(middle, 2 * len(middle))) ** 2
            autocorrelation = np.fft.irfft(power)
            pitch[clip.gender].append(16_000 / (40 + np.argmax(autocorrelation[40:229])))  # 70-400 Hz
    assert 80 < np.median(pitch["male"]) < 150 < 170 < np.median(pitch["female"]) < 260


def spectrum(clip) -> np.ndarray:
    samples = synthetic.waveform(clip) / 32768
    frames = np.lib.stride_tricks.sliding_window_view(samples, 2048)[::1024] * np.hanning(2048)
    power = np.abs(np.fft.rfft(frames)).T ** 2
    hz = np.fft.rfftfreq(2048, 1 / synthetic.SETTINGS[clip.corpus].sample_rate)
    edges = np.geomspace(80, 7500, 33)
    loud = power.sum(0) > power.sum(0).max() / 100
    return np.log10([power[(hz >= low) & (hz < high + 24)][:, loud].mean() for low, high in pairwise(edges)])


def test_emotions_of_unheard_speakers_are_learnable_but_not_given_away():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    clips = [synthetic.clip_at(i) for i in range(1, 576, 4)]  # each of CREMA-D's 24 speakers in each of six emotions
    assert {clip.corpus for clip in clips} == {"crema_d"}
    score = cross_val_score(
        make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=1000)),
        [spectrum(clip) for clip in clips],
        [clip.emotion for clip in clips],
        groups=[clip.speaker_id for clip in clips],
        cv=GroupKFold(4),
    ).mean()
    assert 0.4 < score < 0.95  # by chance 0.17


def test_command_line(tmp_path):
    def run(*flags):
        command = [sys.executable, "-m", "ser_ray.speech.made", *flags]
        return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])

    done = run("--root", str(tmp_path / "made"), "--clips", "2")
    assert done.returncode == 0 and "nothing about people" in done.stdout and str(tmp_path / "made") in done.stdout
    assert json.loads((tmp_path / "made" / synthetic.MARKER).read_text())["finished"]
    refused = run("--root", str(tmp_path))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1


def test_imports_stay_small():
    code = "import sys, ser_ray.speech.made; sys.exit(bool({'torch', 'librosa', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
