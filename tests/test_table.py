from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from ser_ray.base.errors import UserError
from ser_ray.speech.corpora import audit, discover

HEADER = ("path", "emotion", "speaker_id")


@pytest.fixture
def root(tmp_path):
    for number in range(4):
        path = tmp_path / "lab" / "clips" / f"{number:03}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, np.random.default_rng(number).uniform(-0.5, 0.5, 1600), 16_000)
    return tmp_path / "lab"


def write(path, text):
    path.write_text(text)
    return str(path)


def test_a_csv_names_the_clips_of_any_corpus(root):
    outside = root.parent / "outside.wav"
    (root / "clips/003.wav").rename(outside)
    table = write(
        root / "My Lab-2.csv",
        "note,speaker_id,path,emotion,gender,sentence_id,intensity,channel\n"
        "x,001,clips/000.wav,Happiness,F,a,High,\n"
        f"x,01,{root}/clips/001.wav,pleasant surprise,,,,\n"
        "x, 1 ,./clips/002.wav,NEU,unknown,,,Song\n"
        f"x,1,{outside},calm,male,,,\n",
    )
    manifest = discover([table])
    rows = {u.utterance_id: u for u in manifest.utterances}
    assert not manifest.rejects
    assert set(rows) == {
        "my_lab_2/clips/000",
        "my_lab_2/clips/001",
        "my_lab_2/clips/002",
        f"my_lab_2{outside.with_suffix('')}",
    }
    first, second, third, last = (rows[key] for key in sorted(rows))
    assert (first.corpus, first.speaker_id, first.emotion, first.gender) == (
        "my_lab_2",
        "my_lab_2_001",
        "happy",
        "female",
    )
    assert (first.sentence_id, first.intensity, first.channel) == ("my_lab_2_a", "high", "speech")
    assert (first.path, first.size) == (str(root / "clips/000.wav"), (root / "clips/000.wav").stat().st_size)
    assert (second.speaker_id, second.emotion, second.gender, second.sentence_id) == (
        "my_lab_2_01",
        "surprised",
        "",
        "",
    )
    assert (third.speaker_id, third.emotion, third.gender, third.channel) == ("my_lab_2_1", "neutral", "", "song")
    assert (last.path, last.gender) == (str(outside), "male")
    assert [tuple(row) for row in audit(manifest)] == [("my_lab_2", 4, None, 3, 0, 0, 0)]


def test_a_parquet_table_of_any_column_types(root):
    table = pa.table(
        {
            "path": [f"clips/00{n}.wav" for n in range(3)],
            "emotion": pa.array(["sad", "sad", "anger"]).dictionary_encode(),
            "speaker_id": pa.array([1, 2, None], pa.int32()),
            "features": [[1.0], [2.0], [3.0]],
        }
    )
    pq.write_table(table, root / "lab.parquet")
    manifest = discover([str(root / "lab.parquet")])
    assert [(u.speaker_id, u.emotion) for u in manifest.utterances] == [("lab_1", "sad"), ("lab_2", "sad")]
    assert [r.reason for r in manifest.rejects] == ["row 3: speaker_id is empty"]


def test_a_row_that_cannot_be_used_has_a_reason(root):
    table = write(
        root / "lab.csv",
        "\ufeffpath,emotion,speaker_id\n"
        "clips/000.wav,happy,a\n"
        "clips/001.wav,bored,a\n"
        "clips/002.wav,happy, \n"
        ",happy,a\n"
        "clips/003.wav,,a\n"
        "clips/gone.wav,happy,a\n"
        "clips,happy,a\n"
        "clips/../clips/000.wav,joy,a\n"
        "clips/0\0.wav,sad,b\n",
    )
    manifest = discover([table])
    assert [u.utterance_id for u in manifest.utterances] == ["lab/clips/000"]
    assert {
        (Path(r.path).name, r.utterance_id, r.reason.partition(": known words are")[0]) for r in manifest.rejects
    } == {
        ("001.wav", "lab/clips/001", "unknown emotion 'bored'"),
        ("002.wav", "lab/clips/002", "row 3: speaker_id is empty"),
        ("lab.csv", "", "row 4: path is empty"),
        ("003.wav", "lab/clips/003", "row 5: emotion is empty"),
        ("gone.wav", "lab/clips/gone", "file not found"),
        ("clips", "lab/clips", "not a regular file"),
        ("000.wav", "lab/clips/000", "row 8: the file is listed twice"),
        ("0\0.wav", "lab/clips/0\0", "path holds a null character"),
    }
    assert [tuple(row) for row in audit(manifest)] == [("lab", 9, None, 1, 0, 0, 8)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("lab.csv", "path,emotion\nclips/000.wav,happy\n", "speaker_id is missing or empty.*without speakers"),
        ("lab.csv", "path,emotion,speaker_id\nclips/000.wav,happy,\n", "speaker_id is missing or empty"),
        (
            "lab.csv",
            "Track,Label,Speaker\nclips/000.wav,happy,a\n",
            "path is missing or empty.*its columns are Track, Label, Speaker",
        ),
        ("lab.csv", "path,emotion,speaker_id,emotion\nclips/000.wav,happy,a,sad\n", "emotion twice.*keep one"),
        ("lab.csv", "path,File Name,emotion,speaker\na,b,c,d\n", "path twice, by the columns path and File Name"),
        ("lab.csv", "path,emotion,label,speaker\na,b,c,d\n", "emotion twice, by the columns emotion and label"),
        ("lab.csv", "path,emotion,speaker,sex,gender\na,b,c,d,e\n", "gender twice"),
        ("lab.csv", "path,emotion,speaker_id\nclips/000.wav,happy,nan\n", "speaker_id is missing or empty"),
        ("lab.csv", "path,emotion,speaker_id\n,,\n,,\n", "path is missing or empty"),
        ("lab.csv", "path,emotion,speaker_id\nclips/000.wav,W,a\n", "'W': known words are neutral.*anger"),
        ("lab.csv", "path,emotion,speaker_id,corpus\nclips/000.wav,sad,a,CREMA-D\n", "would be the corpus crema_d"),
        ("lab.csv", "path,emotion,speaker_id,corpus\nclips/000.wav,sad,a,unknown\n", "the name of stray files"),
        (
            "lab.csv",
            "path;emotion;speaker_id\nclips/000.wav;happy;a\n",
            "separated by commas, its first line is 'path;",
        ),
        ("lab.csv", "path,emotion,speaker_id\n", "path is missing or empty"),
        ("lab.csv", "", "path is missing or empty"),
        (
            "lab.csv",
            "path,emotion,speaker_id\nclips/000.wav,happy\n",
            "cannot be read as a table: line 2 has 2 cells, the header 3",
        ),
        ("lab.csv", "path,emotion,speaker_id\nclips/000.wav,happy,a,b\n", "line 2 has 4 cells, the header 3"),
        ("lab.parquet", "path,emotion,speaker_id\n", "cannot be read as a table"),
        ("lab.csv", "path,emotion,speaker_id\nclips/000.wav,bored,a\n", "no clip that can be used.*'bored'"),
        ("ravdess.csv", "path,emotion,speaker_id\nclips/000.wav,happy,a\n", "would be the corpus ravdess.*rename"),
    ],
)
def test_a_table_that_cannot_be_used_gets_one_clear_line(root, name, text, message):
    with pytest.raises(UserError, match=message) as caught:
        discover([write(root / name, text)])
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_table_that_is_not_there(root):
    with pytest.raises(UserError, match=r"gone.csv is not there"):
        discover([str(root / "gone.csv")])


def test_two_tables_of_one_name_would_mix_their_speakers(root):
    (root / "other").mkdir()
    text = f"path,emotion,speaker_id\n{root}/clips/000.wav,happy,1\n"
    tables = [write(root / "lab.csv", text), write(root / "other" / "LAB.csv", text)]
    with pytest.raises(UserError, match="rename"):
        discover(tables)
    with pytest.raises(UserError, match="rename the table, or name its corpus"):
        discover([tables[0], f"lab={tables[1]}"])  # only one of them says so


def test_a_tables_row_beats_the_name_and_counts_once(root):
    (root / "clips/000.wav").rename(root / "clips/DC_a01.wav")
    (root / "clips/001.wav").rename(root / "clips/DC_a02.wav")
    table = write(root / "lab.csv", "path,emotion,speaker_id\nclips/DC_a01.wav,sad,x\nclips/002.wav,sad,x\n")
    manifest = discover([str(root), table])
    assert {u.utterance_id for u in manifest.utterances} == {"lab/clips/DC_a01", "lab/clips/002", "savee/DC_a02"}
    assert [Path(r.path).name for r in manifest.rejects] == ["003.wav"]
    only = write(root / "only.csv", "path,emotion,speaker_id\nclips/DC_a02.wav,sad,x\nclips/DC_a01.wav,sad,x\n")
    assert len(discover([str(root / "clips"), only]).utterances) == 2


def test_a_csv_in_another_encoding_or_of_blank_lines(root):
    (root / "lab.csv").write_bytes("path,emotion,speaker_id\nclips/000.wav,happy,J\xf6rg\n".encode("latin-1"))
    with pytest.raises(UserError, match="is not in UTF-8, which a CSV must be"):
        discover([str(root / "lab.csv")])
    table = write(root / "lab.csv", '\r\npath, emotion ,speaker_id\r\n\r\n"clips/000.wav",happy,"a, b"\r\n\r\n')
    (clip,) = discover([table]).utterances
    assert (clip.utterance_id, clip.emotion, clip.speaker_id) == ("lab/clips/000", "happy", "lab_a, b")


# ------------------------------------------------------------------ what people write into tables


@pytest.mark.parametrize(
    "word", ["nan", "NaN", "NAN", "None", "NA", "N/A", "n/a", "<NA>", "null", "NULL", "-", "?", " "]
)
def test_a_word_for_nothing_is_an_empty_cell(root, word):
    rows = (
        f"clips/000.wav,sad,a,{word},{word}\nclips/001.wav,sad,{word},f,x\n{word},sad,b,f,x\nclips/002.wav,{word},b,,\n"
    )
    manifest = discover([write(root / "lab.csv", f"path,emotion,speaker_id,gender,sentence_id\n{rows}")])
    (kept,) = manifest.utterances
    assert (kept.speaker_id, kept.gender, kept.sentence_id) == ("lab_a", "", "")
    reasons = {r.reason for r in manifest.rejects}
    assert reasons == {"row 2: speaker_id is empty", "row 3: path is empty", "row 4: emotion is empty"}


def test_someone_called_nan_or_null_stays_someone(root):
    manifest = discover([write(root / "lab.csv", "path,emotion,speaker_id\nclips/000.wav,sad,Nan\n")])
    assert [u.speaker_id for u in manifest.utterances] == ["lab_Nan"]


def test_a_number_that_is_none_in_parquet_is_an_empty_cell(root):
    columns = {"path": [f"clips/00{n}.wav" for n in range(3)], "emotion": ["sad"] * 3, "spk": [1.0, float("nan"), None]}
    pq.write_table(pa.table(columns), root / "lab.parquet")
    manifest = discover([str(root / "lab.parquet")])
    assert [u.speaker_id for u in manifest.utterances] == ["lab_1"]
    assert [r.reason for r in manifest.rejects] == ["row 2: speaker_id is empty", "row 3: speaker_id is empty"]


def test_rows_with_nothing_in_them_are_no_rows(root):
    blank = ",,\n" * 50
    text = f",,\npath,emotion,speaker_id\nclips/000.wav,sad,a\n{blank}nan,-, \nclips/001.wav,sad,\n"
    manifest = discover([write(root / "lab.csv", text)])
    assert [tuple(row) for row in audit(manifest)] == [("lab", 2, None, 1, 0, 0, 1)]
    assert [r.reason for r in manifest.rejects] == ["row 53: speaker_id is empty"]
    columns = {name: [value, None, ""] for name, value in zip(HEADER, ("clips/000.wav", "sad", "a"), strict=True)}
    pq.write_table(pa.table(columns), root / "rows.parquet")
    assert not discover([str(root / "rows.parquet")]).rejects


@pytest.mark.parametrize(
    "header",
    [
        "file_name,label,speaker,sex,transcription",
        "Path,Emotion,Speaker,Gender,Text",
        "FILEPATH,CLASS,ACTOR,SEX,SENTENCE",
        "wav,emotion_label,client_id,gender,sentence_id",
        "Audio File,Emotions,Subject ID,Sex,Sentence-ID",
        "filename,label,spk,gender,transcript",
    ],
)
def test_columns_have_the_usual_names_of_the_field_in_any_case(root, header):
    manifest = discover([write(root / "lab.csv", f"{header}\nclips/000.wav,joy,a,F,kids\n")])
    (u,) = manifest.utterances
    assert (u.emotion, u.speaker_id, u.gender, u.sentence_id) == ("happy", "lab_a", "female", "lab_kids")


def test_where_there_are_ids_of_sentences_their_texts_are_not_needed(root):
    text = "path,emotion,speaker_id,text,sentence_id\nclips/000.wav,sad,a,Kids are talking,kids\n"
    assert discover([write(root / "lab.csv", text)]).utterances[0].sentence_id == "lab_kids"


def test_a_parquet_file_whose_sound_is_inside_is_read_by_its_paths_or_refused(root):
    columns = {"audio": [{"bytes": b"", "path": "x.wav"}], "label": ["sad"], "speaker": ["a"]}
    pq.write_table(pa.table(columns), root / "lab.parquet")
    with pytest.raises(UserError, match=r"lists no clip that can be used; .*x\.wav: file not found"):
        discover([str(root / "lab.parquet")])
    pq.write_table(pa.table({**columns, "file": ["clips/000.wav"]}), root / "lab.parquet")
    assert len(discover([str(root / "lab.parquet")]).utterances) == 1
