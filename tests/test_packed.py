"""Parquet tables that hold the sounds themselves, as data sets of the Hugging Face kind do."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sound_files import encode, wav

from ser_ray.base.errors import UserError
from ser_ray.features.summary import Summary
from ser_ray.predict.inputs import find_pieces
from ser_ray.speech import packed
from ser_ray.speech.corpora import discover
from ser_ray.speech.packed import open_sound
from ser_ray.store.task import read_clip

SOUNDS = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def sounds(count: int) -> list[dict]:
    return [{"bytes": encode("FLAC", seconds=1 + 0.1 * k), "path": f"clip{k}.flac"} for k in range(count)]


def write_table(path, audio: list, metadata: dict | None = None, **columns) -> str:
    table = pa.table({"audio": pa.array(audio, SOUNDS), **columns})
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, path, row_group_size=4)
    return str(path)


def test_sounds_in_a_parquet_table_are_a_corpus_with_its_labels_by_name_or_number(tmp_path):
    names = {"names": ["sad", "happy"], "_type": "ClassLabel"}
    columns = {"label": pa.array([0, 1, 1, 0, 1, 0]), "speaker": ["a", "a", "b", "b", "c", "c"]}
    audio = sounds(6)
    audio[5] = {"bytes": None, "path": "beside.wav"}  # a sound of its own beside the table
    (tmp_path / "beside.wav").write_bytes(wav(np.random.default_rng(0).normal(0, 0.1, 16_000)))
    path = write_table(tmp_path / "lab.parquet", audio, {"info": {"features": {"label": names}}}, **columns)
    manifest = discover([path])
    clips = sorted(manifest.utterances, key=lambda clip: clip.utterance_id)
    assert [clip.utterance_id for clip in clips] == ["lab/beside", *(f"lab/clip{k}" for k in range(5))]
    assert [clip.emotion for clip in clips] == ["sad", "sad", "happy", "happy", "sad", "happy"]
    assert {clip.speaker_id for clip in clips} == {"lab_a", "lab_b", "lab_c"} and not manifest.rejects
    assert [clip.size for clip in clips[1:]] == [len(sound["bytes"]) for sound in audio[:5]]
    _, clip = read_clip(clips[5], Summary(duration_s=None, offset_s=0.0))
    assert clip.duration_s == pytest.approx(1.4)


def test_sounds_in_a_parquet_table_are_recordings_each_by_its_row(tmp_path):
    audio = [*sounds(9), {"bytes": None, "path": None}, {"bytes": b"", "path": "gone.wav"}]
    path = write_table(tmp_path / "many.parquet", audio, start=pa.array([0.5] + [None] * 10, pa.float64()))
    pieces = find_pieces([path])
    assert [piece.path for piece in pieces[:9]] == [f"{path}#{row}" for row in range(9)]
    assert pieces[0].start_s == 0.5 and [bool(piece.problem) for piece in pieces] == [False] * 9 + [True]
    for row in (8, 0, 5):
        assert open_sound(f"{path}#{row}").read() == audio[row]["bytes"]
    with pytest.raises(OSError, match="no such row"):
        open_sound(f"{path}#11")


def test_bytes_are_read_by_the_row_group_and_once_for_the_rows_in_it(tmp_path, monkeypatch):
    path = write_table(tmp_path / "many.parquet", sounds(8))
    groups = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        packed.parquet.ParquetFile,
        "read_row_group",
        lambda self, group, **how: groups.append(group) or real(self, group, **how),
    )
    packed._read_group.cache_clear()
    for row in range(8):
        open_sound(f"{path}#{row}")
    assert groups == [0, 1]


def test_equal_sounds_in_two_rows_count_once_and_a_table_without_labels_is_refused(tmp_path):
    audio = sounds(3)
    audio[2]["bytes"] = audio[0]["bytes"]
    columns = {"label": ["sad"] * 3, "speaker": list("abc")}
    manifest = discover([write_table(tmp_path / "lab.parquet", audio, **columns)])
    assert len(manifest.utterances) == 2 and len(manifest.duplicates) == 1
    with pytest.raises(UserError, match="the column emotion is missing"):
        discover([write_table(tmp_path / "bare.parquet", audio)])


def test_a_file_whose_name_looks_like_a_row_is_a_file(tmp_path):
    (tmp_path / "x.parquet#1").write_bytes(b"sound")
    assert open_sound(str(tmp_path / "x.parquet#1")).read() == b"sound"
