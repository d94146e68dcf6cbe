import errno
import os
import random
import shutil
import signal
import threading
import tracemalloc
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
import ray
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.features.spec import find_features
from ser_ray.features.summary import Summary
from ser_ray.speech.audio import NOTES
from ser_ray.speech.corpora import discover
from ser_ray.speech.utterance import Reject, Utterance
from ser_ray.store import pipeline as room
from ser_ray.store import task as featurize_task
from ser_ray.store.accounts import settle
from ser_ray.store.pipeline import deal_clips, featurize
from ser_ray.store.shards import MEASURES, METADATA, name_clips
from ser_ray.store.store import Store
from ser_ray.store.task import Kept, ShardWriter, read_clip

pytestmark = pytest.mark.usefixtures("local_ray")


def write_clips(folder, names, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        noise = np.random.default_rng([seed, i]).normal(0, 0.1, 16_000 + 100 * i)
        sf.write(folder / name, noise, 16_000)


NAMES = [
    f"10{actor:02}_{text}_{emotion}_XX.wav" for actor in (1, 2) for text in ("DFA", "IEO") for emotion in ("SAD", "HAP")
]


def test_every_clip_has_its_rows_and_every_row_its_facts(made_store):
    rows = made_store.table([*METADATA, "features"])
    assert rows.num_rows == 96 * 3
    assert set(rows.column("augmentation").to_pylist()) == {"none", "noise", "stretch+pitch"}
    assert not any(rows.column(name).null_count for name in METADATA)
    info = made_store.info()
    assert info["complete"] and info["rows"] == 288
    for numbers in info["counts"].values():
        assert numbers == {"found": 24, "featurized": 24, "rejected": 0, "duplicates": 0}
    features = np.stack(rows.column("features").to_pylist())
    assert features.shape == (288, 162) and np.isfinite(features).all()


def test_the_store_opens_in_pandas_polars_and_duckdb(made_store):
    shards = f"{made_store.root}/shards/*.parquet"
    columns = [*METADATA, *MEASURES, "features"]
    counted = duckdb.sql(
        f"SELECT corpus, emotion, count(*) AS clips FROM '{shards}' WHERE augmentation = 'none' GROUP BY ALL"
    ).fetchall()
    assert sum(clips for _, _, clips in counted) == 96
    assert list(duckdb.sql(f"SELECT * FROM '{shards}'").columns) == columns
    frame = pl.read_parquet(shards)
    assert frame.columns == columns and frame["features"].dtype == pl.Array(pl.Float32, 162)
    table = pd.read_parquet(f"{made_store.root}/shards")
    assert list(table.columns) == columns and np.stack(table["features"]).shape == (288, 162)


def test_content_does_not_depend_on_shards_or_order(made, made_store, tmp_path, monkeypatch):
    monkeypatch.setattr("ser_ray.store.pipeline.MAX_CLIPS_PER_TASK", 7)
    manifest = discover(made)
    manifest.utterances.reverse()
    other = featurize(manifest, FeaturizeConfig(), str(tmp_path / "store"))
    assert len(other.shards()) != len(made_store.shards())
    columns = [*METADATA, "features"]
    assert other.table(columns).equals(made_store.table(columns))


def test_a_second_run_reuses_the_store(made, made_store):
    before = {path: pq.read_metadata(path).num_rows for path in made_store.shards()}
    times = {path: Path(path).stat().st_mtime_ns for path in made_store.shards()}
    featurize(discover(made), FeaturizeConfig(), made_store.root)
    assert {path: pq.read_metadata(path).num_rows for path in made_store.shards()} == before
    assert {path: Path(path).stat().st_mtime_ns for path in made_store.shards()} == times


def test_new_clips_are_added_vanished_and_changed_ones_are_not_left_behind(tmp_path, capsys):
    corpus, root = tmp_path / "AudioWAV", str(tmp_path / "store")
    write_clips(corpus, NAMES[:6])
    config = FeaturizeConfig(augment=("none",))
    featurize(discover([str(corpus)]), config, root)
    first = {row["utterance_id"]: row for row in Store(root).table().to_pylist()}
    (corpus / NAMES[0]).unlink()
    write_clips(corpus, NAMES[1:2], seed=9)
    write_clips(corpus, NAMES[6:], seed=5)
    store = featurize(discover([str(corpus)]), config, root)
    second = {row["utterance_id"]: row for row in store.table().to_pylist()}
    assert set(second) == {f"crema_d/{name[:-4]}" for name in NAMES[1:]}
    changed = {i for i in first.keys() & second.keys() if first[i]["sha256"] != second[i]["sha256"]}
    assert changed == {f"crema_d/{NAMES[1][:-4]}"}
    assert "No longer there, so left out: 1 clips" in capsys.readouterr().out
    assert store.info()["counts"] == {"crema_d": {"found": 7, "featurized": 7, "rejected": 0, "duplicates": 0}}


def test_half_the_files_corrupt_the_other_half_is_kept(tmp_path, capsys):
    corpus = tmp_path / "AudioWAV"
    write_clips(corpus, NAMES)
    for name in NAMES[::2]:
        (corpus / name).write_text("this is no sound")
    store = featurize(discover([str(tmp_path)]), FeaturizeConfig(), str(tmp_path / "store"))
    assert store.info()["counts"]["crema_d"] == {"found": 8, "featurized": 4, "rejected": 4, "duplicates": 0}
    assert {reject.path for reject in store.rejects()} == {str(corpus / name) for name in NAMES[::2]}
    assert "rejected" in capsys.readouterr().out
    write_clips(corpus, NAMES[:1])  # mended: the next run takes it in
    store = featurize(discover([str(tmp_path)]), FeaturizeConfig(), str(tmp_path / "store"))
    assert store.info()["counts"]["crema_d"] == {"found": 8, "featurized": 5, "rejected": 3, "duplicates": 0}


def test_nothing_but_corrupt_files_is_said(tmp_path):
    corpus = tmp_path / "AudioWAV"
    corpus.mkdir()
    for name in NAMES:
        (corpus / name).write_text("no sound")
    with pytest.raises(UserError, match="none of the clips could be read"):
        featurize(discover([str(tmp_path)]), FeaturizeConfig(), str(tmp_path / "store"))


def test_doubled_folders_and_label_conflicts_are_said(tmp_path, capsys):
    write_clips(tmp_path / "a", NAMES)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.copy(tmp_path / "a" / NAMES[0], tmp_path / "a" / NAMES[0].replace("SAD", "ANG"))
    store = featurize(discover([str(tmp_path)]), FeaturizeConfig(augment=("none",)), str(tmp_path / "store"))
    assert store.info()["counts"]["crema_d"] == {"found": 17, "featurized": 9, "rejected": 0, "duplicates": 8}
    assert store.info()["label_conflicts"] == [["crema_d/1001_DFA_ANG_XX", "crema_d/1001_DFA_SAD_XX"]]
    said = capsys.readouterr().out
    assert "Copies dropped: 8, such as" in said and "crema_d/1001_DFA_ANG_XX = crema_d/1001_DFA_SAD_XX" in said


def test_many_rejects_are_told_by_kind(tmp_path, capsys):
    corpus = tmp_path / "AudioWAV"
    write_clips(corpus, NAMES[:4])
    (corpus / NAMES[1]).write_bytes(b"")
    (corpus / NAMES[2]).write_bytes(b"")
    (corpus / NAMES[3]).write_bytes((corpus / NAMES[3]).read_bytes()[:9000])
    (corpus / "1001_XYZ_SAD_XX.wav").write_bytes((corpus / NAMES[0]).read_bytes())
    store = featurize(discover([str(tmp_path)]), FeaturizeConfig(augment=("none",)), str(tmp_path / "store"))
    said = capsys.readouterr().out
    assert f"Rejected: 2 × empty file, such as {corpus / NAMES[1]}\n" in said
    assert "Rejected: 1 × truncated" in said and f", such as {corpus / NAMES[3]}\n" in said
    assert len(store.rejects()) == 4 and said.count("Rejected:") == 3


def test_what_was_done_to_clips_is_told_by_kind(tmp_path, capsys):
    corpus = tmp_path / "AudioWAV"
    write_clips(corpus, NAMES[:3])  # 1 s, so that half a second is left behind the summary's offset of 0.6 s
    for name in NAMES[:2]:
        data = bytearray((corpus / name).read_bytes())
        data[40:44] = bytes(4)
        (corpus / name).write_bytes(data)
    featurize(discover([str(tmp_path)]), FeaturizeConfig(augment=("none",)), str(tmp_path / "store"))
    said = capsys.readouterr().out
    assert "Length never written: 2 clips; they are read to the end of their file\n" in said
    assert "Window slid back: 3 clips; they are too short for a window where it should begin\n" in said
    assert "cancel" not in said


def test_rejects_stand_until_their_file_changes_or_can_be_read(tmp_path, monkeypatch):
    corpus, config = tmp_path / "AudioWAV", FeaturizeConfig(augment=("none",))
    write_clips(corpus, NAMES)
    (corpus / NAMES[0]).write_text("this is no sound")
    manifest = discover([str(corpus)])
    gone = (corpus / NAMES[1]).rename(tmp_path / "elsewhere")
    store = featurize(manifest, config, str(tmp_path / "store"))
    reasons = {reject.path: reject.reason for reject in store.rejects()}
    assert reasons == {
        str(corpus / NAMES[0]): "not audio: Format not recognised.",
        str(corpus / NAMES[1]): "cannot be read: No such file or directory",
    }
    gone.rename(corpus / NAMES[1])
    tried = []
    monkeypatch.setattr(room, "_run", lambda store, config, todo, device: tried.extend(c.path for c in todo))
    with pytest.raises(RuntimeError, match="do not add up"):
        featurize(manifest, config, store.root)
    assert tried == [str(corpus / NAMES[1])]


def test_a_file_without_permission_is_a_reject(tmp_path):
    write_clips(tmp_path, NAMES[:2])
    (tmp_path / NAMES[0]).chmod(0)
    if os.access(tmp_path / NAMES[0], os.R_OK):
        pytest.skip("this user may read everything")
    store = featurize(discover([str(tmp_path)]), FeaturizeConfig(), str(tmp_path / "store"))
    assert [reject.reason for reject in store.rejects()] == ["cannot be read: Permission denied"]


def test_a_clip_that_kills_its_workers_is_rejected_and_costs_no_other(made, made_store, tmp_path, monkeypatch):
    manifest = discover(made)
    victim = manifest.utterances[10].utterance_id

    def deadly(utterance, config):
        if utterance.utterance_id == victim:
            os.kill(os.getpid(), signal.SIGSEGV)
        return read_clip(utterance, config)

    def write(tasks, arguments):  # takes the deadly reader along to the workers
        from ser_ray.store import task as featurize_task

        featurize_task.read_clip = deadly
        try:
            return featurize_task.ShardWriter(*arguments)(tasks)
        finally:
            featurize_task.read_clip = read_clip

    monkeypatch.setattr(room, "write_in_task", write)
    store = featurize(manifest, FeaturizeConfig(), str(tmp_path / "store"))
    assert [(r.utterance_id, r.reason) for r in store.rejects()] == [(victim, featurize_task.CRASHED)]
    rows = made_store.table([*METADATA, "features"])
    others = [i != victim for i in rows.column("utterance_id").to_pylist()]
    assert store.table([*METADATA, "features"]).equals(rows.filter(others))
    assert not list(Path(store.root).glob("attempts/*"))


@pytest.mark.usefixtures("local_ray")
def test_leaving_rows_early_leaves_no_thread_behind():
    before = set(threading.enumerate())
    with closing(room._each_row(ray.data.range(8, override_num_blocks=4))) as rows:
        assert next(rows)["id"] in range(8)
    assert not set(threading.enumerate()) - before


def test_what_is_kept_comes_back():
    assert Kept().arrays() == []
    kept = Kept()
    arrays = [np.arange(6, dtype=np.int16).reshape(2, 3), np.zeros((0, 3), np.int16), np.ones(2, np.int16)]
    for array in arrays:
        kept.add(array)
    for array, back in zip(arrays, kept.arrays(), strict=True):
        np.testing.assert_array_equal(back, array, strict=True)


def writer_of(store, clips):
    """Call a task's code in this process."""
    config = FeaturizeConfig(augment=("none",))
    return ShardWriter(store, config, "cpu").write(clips)


def test_a_fault_of_ours_is_a_reject_that_says_so(made, tmp_path, monkeypatch):
    monkeypatch.setattr("ser_ray.features.kernels.spectra.SummaryKernel.rows", lambda *arguments: 1 / 0)
    store, clips = Store(str(tmp_path)), discover(made).utterances[:2]
    store.claim(FeaturizeConfig())
    none = dict.fromkeys(NOTES, 0)
    assert writer_of(store, clips) == {"clips": 2, "rejected": 2, "notes": none, "cut": 0, "error": ""}
    assert store.rejects()[0].reason == "internal error: ZeroDivisionError: division by zero; please report it"
    manifest = discover(made)
    with pytest.raises(UserError, match=r"none of the clips could be read, the first because: .*ZeroDivisionError"):
        settle(store, manifest, 1)


def test_what_an_attempt_that_died_rejected_is_forgotten_by_the_next(made, tmp_path):
    store, clips = Store(str(tmp_path)), discover(made).utterances[:2]
    passing = Reject(clips[0].path, clips[0].corpus, clips[0].utterance_id, "cannot be read: Input/output error")
    store.write_rejects(name_clips(clip.utterance_id for clip in clips), [passing])
    storage.write_json(store.attempts_path(clips), {"clip": "", "deaths": {}})
    assert writer_of(store, clips)["rejected"] == 0
    assert not store.rejects() and store.table().num_rows == 2


def test_a_table_that_names_a_file_twice_is_accounted_for_and_so_is_its_mended_one(tmp_path):
    write_clips(tmp_path / "clips", ["a.wav", "b.wav"])
    table, root = tmp_path / "mine.csv", str(tmp_path / "store")
    rows = [f"clips/{cells},ann" for cells in ("a.wav,sad", "a.wav,bored", "a.wav,bored", "b.wav,sad")]
    for wanted, counts in ((rows, (4, 2, 2)), (rows[::3], (2, 2, 0))):
        table.write_text("\n".join(["path,emotion,speaker_id", *wanted]))
        store = featurize(discover([str(table)]), FeaturizeConfig(augment=("none",)), root)
        found, featurized, rejected = counts
        numbers = {"found": found, "featurized": featurized, "rejected": rejected, "duplicates": 0}
        assert store.info()["counts"] == {"mine": numbers}


def test_a_device_that_there_is_not_is_named(made, tmp_path):
    with pytest.raises(UserError, match="--device gpu: choose auto, cpu or cuda"):
        featurize(discover(made), FeaturizeConfig(), str(tmp_path / "store"), "gpu")
    with pytest.raises(UserError, match="--device cuda: CPUs make summary features faster; leave it out"):
        featurize(discover(made), FeaturizeConfig(), str(tmp_path / "store"), "cuda")


def test_a_store_that_other_nodes_do_not_share_is_told_by_its_missing_clips(made, made_store):
    clips = discover(made).utterances
    assert not room._is_unseen(made_store, clips)
    assert room._is_unseen(made_store, [*clips, replace(clips[0], utterance_id="mine/elsewhere")])


def test_a_full_disk_ends_the_job_with_one_line(made, tmp_path, monkeypatch):
    def full(path, table):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ser_ray.store.store.write_parquet", full)
    outcome = writer_of(Store(str(tmp_path)), discover(made).utterances[:2])
    assert "No space left on device; put that right" in outcome["error"]
    with pytest.raises(UserError, match="cannot be read or written: No space left on device"):
        featurize(discover(made), FeaturizeConfig(), str(tmp_path / "store"))


def test_two_jobs_on_one_store_take_turns(made, made_store, tmp_path, capsys):
    jobs = [
        threading.Thread(target=featurize, args=(discover(made), FeaturizeConfig(), str(tmp_path))) for _ in range(2)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert Store(str(tmp_path)).table([*METADATA, "features"]).equals(made_store.table([*METADATA, "features"]))
    said = capsys.readouterr().out
    assert "Another job is at work" in said and "96 of 96 clips are there already" in said


def test_an_hour_of_recording_costs_no_more_memory_than_its_window(tmp_path):
    path, rate = tmp_path / "hour.wav", 8000
    with sf.SoundFile(path, "w", rate, 1, "PCM_16") as sound:
        for minute in range(60):
            sound.write(np.random.default_rng(minute).normal(0, 0.1, 60 * rate))
    clip = Utterance("x/hour", "x", "x_1", "", "sad", "", "", "speech", str(path), path.stat().st_size)
    tracemalloc.start()
    _, window = read_clip(clip, Summary())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert clip.size > 50e6 and window.duration_s == 3600 and len(window.waveform_T) == 2.5 * 22_050
    assert peak < 5e6


@given(st.integers(0, 100_000), st.integers(1, 200))
def test_every_clip_is_dealt_to_one_task(clips, workers):
    sizes = deal_clips(clips, workers)
    assert sum(sizes) == clips and sizes == sorted(sizes, reverse=True)
    assert all(0 < size <= room.MAX_CLIPS_PER_TASK for size in sizes)
    assert len(sizes) <= clips / room.MIN_CLIPS_PER_TASK + 1


def test_log_mel_and_waveform_go_the_same_way(made, tmp_path):
    for kind in ("log_mel", "waveform"):
        config = FeaturizeConfig(features=find_features(kind)(), augment=("none",))
        store = featurize(discover(made), config, str(tmp_path / kind))
        assert store.table(["utterance_id", "augmentation", "features"]).num_rows == 96


def test_another_fingerprint_is_refused(made, made_store):
    with pytest.raises(UserError, match=r"n_mels: 128, wanted 64"):
        featurize(discover(made), FeaturizeConfig(features=Summary(n_mels=64)), made_store.root)
    with pytest.raises(UserError, match=r"unknown augmentation .reverb."):
        FeaturizeConfig(augment=("none", "reverb"))
    assert FeaturizeConfig(augment=("shift", "noise")) == FeaturizeConfig(augment=("noise", "none", "shift"))


FORMS = [
    ("WAV", "PCM_U8", 8_000),
    ("WAV", "PCM_16", 16_000),
    ("WAV", "PCM_24", 96_000),
    ("WAV", "FLOAT", 44_100),
    ("AIFF", "PCM_16", 22_050),
    ("FLAC", "PCM_16", 48_000),
    ("OGG", "VORBIS", 16_000),
    ("MP3", "MPEG_LAYER_III", 24_000),
]


def damage(data, draw):
    """Change, cut out, repeat or overwrite parts of a file, in its header as often as elsewhere."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(draw.choice((min(64, len(data)), len(data))))
        part = slice(place, place + draw.choice((1, 4, draw.randint(1, 4000))))
        if (how := draw.randrange(9)) == 0:
            del data[place + 1 :]
        elif how < 3:
            del data[part.start + 1 : part.stop]
        elif how < 5:
            data[place:place] = data[part]
        else:
            data[part] = draw.randbytes(len(data[part]))
    return bytes(data)


def test_a_thousand_damaged_files_are_each_featurized_or_rejected(tmp_path):
    draw, whole = random.Random(0), []
    for form, subtype, rate in FORMS:
        loudness = np.random.default_rng(0).uniform(0.1, 0.5, 2 * rate)
        voice = loudness * np.sin(np.arange(2 * rate) * 2 * np.pi * 150 / rate)
        sf.write(tmp_path / "whole", np.stack([voice, voice / 2], 1), rate, format=form, subtype=subtype)
        whole.append((tmp_path / "whole").read_bytes())
    lines = ["path,emotion,speaker_id"]
    for i in range(1000):
        (tmp_path / f"{i}.wav").write_bytes(damage(whole[i % len(whole)], draw))
        lines.append(f"{i}.wav,sad,ann")
    table = tmp_path / "mine.csv"
    table.write_text("\n".join(lines))
    store = featurize(discover([str(table)]), FeaturizeConfig(augment=("none",)), str(tmp_path / "store"))
    counts = store.info()["counts"]["mine"]
    assert counts["found"] == 1000 == counts["featurized"] + counts["rejected"] + counts["duplicates"]
    assert counts["featurized"] > 100 and counts["rejected"] > 100
    assert not [reject for reject in store.rejects() if reject.reason.startswith(featurize_task.INTERNAL)]
    assert np.isfinite(np.stack(store.table(["utterance_id", "augmentation", "features"])["features"].to_numpy())).all()
