"""Which clip a row of a table is: files under several labels or names, several tables of one corpus."""

import unicodedata
from itertools import permutations
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import soundfile as sf

from ser_ray.base.errors import UserError
from ser_ray.speech.corpora import audit, discover


def sound(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, np.random.default_rng(seed).uniform(-0.5, 0.5, 8000), 16_000)
    return str(path)


def table(path, *rows, header="path,emotion,speaker_id"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def ids(manifest):
    return {u.utterance_id: u.speaker_id for u in manifest.utterances}


# ------------------------------------------------------------------ one file in several rows


def test_a_file_under_two_labels_is_a_conflict_whatever_the_order_of_rows(tmp_path):
    for number in range(3):
        sound(tmp_path / f"clips/{number}.wav", number)
    rows = ["clips/0.wav,happy,a", "clips/1.wav,sad,a", "clips/./0.wav,angry,a", "clips/0.wav,joy,a"]
    manifest = discover([table(tmp_path / "lab.csv", *rows)])
    assert manifest.conflicts == [("lab/clips/0#angry", "lab/clips/0#happy")]
    assert ids(manifest) == dict.fromkeys(["lab/clips/0#angry", "lab/clips/0#happy", "lab/clips/1"], "lab_a")
    assert [r.reason for r in manifest.rejects] == ["row 4: the file is listed twice"]
    assert [tuple(row) for row in audit(manifest)] == [("lab", 4, None, 1, 0, 1, 1)]
    turned = discover([table(tmp_path / "lab.csv", *rows[::-1])])
    assert turned.conflicts == manifest.conflicts and ids(turned) == ids(manifest)


def test_a_file_with_two_speakers_belongs_to_neither(tmp_path):
    for number in range(2):
        sound(tmp_path / f"{number}.wav", number)
    for rows in permutations(["0.wav,happy,a", "1.wav,sad,a", "0.wav,happy,b"]):
        manifest = discover([table(tmp_path / "lab.csv", *rows)])
        assert ids(manifest) == {"lab/1": "lab_a"}
        assert any("several speakers, 'a' and 'b': name the one who speaks" in r.reason for r in manifest.rejects)
        assert audit(manifest)[0].found == 3


@pytest.mark.usefixtures("local_ray")
def test_a_store_leaves_a_file_under_two_labels_out_and_its_accounts_add_up(tmp_path, capsys):
    from ser_ray.features.recipe import FeaturizeConfig
    from ser_ray.store.pipeline import featurize

    for number in range(3):
        sound(tmp_path / f"{number}.wav", number)
    rows = ["0.wav,happy,a", "1.wav,sad,a", "0.wav,angry,a", "2.wav,sad,nan"]
    manifest = discover([table(tmp_path / "lab.csv", *rows)])
    store = featurize(manifest, FeaturizeConfig(augment=("none",)), str(tmp_path / "store"))
    info = store.info()
    assert info["counts"]["lab"] == {"found": 4, "featurized": 3, "rejected": 1, "duplicates": 0}
    assert info["label_conflicts"] == [["lab/0#angry", "lab/0#happy"]]
    assert "kept out of training and test: 1" in capsys.readouterr().out


# ------------------------------------------------------------------ several files of one name


def test_recordings_of_several_people_that_differ_in_their_suffix_are_all_used(tmp_path):
    for seed, name in enumerate(["r/001.wav", "r/001.flac", "r/001.mp3", "r/002.wav", "r/002.wav.flac", "r/002.mp3"]):
        sound(tmp_path / name, seed)
    sound(tmp_path / "r/003.wav", 9)
    rows = [f"r/001.{suffix},happy,{suffix}" for suffix in ("wav", "flac", "mp3")]
    rows += ["r/003.wav,sad,x", "r/002.mp3,sad,x", "r/002.wav,sad,y", "r/002.wav.flac,sad,z"]
    manifest = discover([table(tmp_path / "t.csv", *rows)])
    assert not manifest.rejects and len(ids(manifest)) == 7
    expected = {"t/r/001.wav": "t_wav", "t/r/001.flac": "t_flac", "t/r/001.mp3": "t_mp3", "t/r/003": "t_x"}
    assert expected.items() <= ids(manifest).items()
    assert ids(discover([table(tmp_path / "t.csv", *rows[::-1])])) == ids(manifest)


def test_a_table_that_grows_leaves_the_ids_of_other_rows_alone(tmp_path):
    for seed, name in enumerate(["001.wav", "001.flac", "002.wav"]):
        sound(tmp_path / name, seed)
    rows = ["001.wav,sad,a", "002.wav,sad,a"]
    assert set(ids(discover([table(tmp_path / "t.csv", *rows)]))) == {"t/001", "t/002"}
    grown = discover([table(tmp_path / "t.csv", *rows, "001.flac,sad,b")])
    assert set(ids(grown)) == {"t/001.wav", "t/001.flac", "t/002"}


# ------------------------------------------------------------------ paths in other spellings


def test_a_table_written_on_windows_is_found_where_its_paths_make_sense(tmp_path):
    sound(tmp_path / "clips/a.wav")
    rows = ["clips\\a.wav,sad,x", r"C:\Users\me\clips\b.wav,sad,x", "D:/clips/c.wav,sad,x"]
    manifest = discover([table(tmp_path / "lab.csv", *rows)])
    assert ids(manifest) == {"lab/clips/a": "lab_x"}
    assert {r.reason.partition(":")[2] for r in manifest.rejects} == {
        " a path as Windows writes it; write it with / and relative to the table"
    }


def test_a_file_whose_name_holds_a_backslash_is_itself(tmp_path):
    sound(tmp_path / "a\\b.wav", 1)
    sound(tmp_path / "a/b.wav", 2)
    (u,) = discover([table(tmp_path / "lab.csv", "a\\b.wav,sad,x")]).utterances
    assert u.path == str(tmp_path / "a\\b.wav")


@pytest.mark.parametrize(("there", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_that_a_mac_wrote_in_another_form_are_found(tmp_path, there, written):
    name = "M\u00fcller/J\u00f6rg \u00e0.wav"
    sound(tmp_path / unicodedata.normalize(there, name))
    cell = unicodedata.normalize(written, name)
    manifest = discover([table(tmp_path / "lab.csv", f"{cell},sad,x", "M\u00fcller/\u00c4nne.wav,sad,x")])
    assert [Path(u.path).exists() for u in manifest.utterances] == [True]
    assert [r.reason for r in manifest.rejects] == ["file not found"]


@pytest.mark.parametrize("quoted", [True, False])
def test_file_addresses_are_found_however_they_are_quoted(tmp_path, quoted):
    names = ["a&b.wav", "a+b.wav", "it's.wav", "a;b.wav", "a@b.wav", "a=b.wav", "t wo.wav", "J\u00f6.wav", "no #1.wav"]
    names += ["why?.wav", "50%.wav", "[x].wav"]
    rows = []
    for seed, name in enumerate(names):
        sound(tmp_path / "q" / name, seed)
        rows.append(f'"file://{tmp_path}/q/{quote(name, safe="") if quoted else name}",sad,s{seed}')
    (tmp_path / "q/take.001").write_bytes(bytes(1000))
    rows.append(f"file://{tmp_path}/q/take.001,sad,last")
    manifest = discover([table(tmp_path / "lab.csv", *rows)])
    assert not manifest.rejects and len(manifest.utterances) == len(rows)


# ------------------------------------------------------------------ whose speakers they are


def test_a_table_names_its_corpus_in_a_column_or_on_the_command_line(tmp_path):
    for number in range(3):
        sound(tmp_path / f"{number}.wav", number)
    with_column = table(
        tmp_path / "all.csv",
        "0.wav,sad,a,Lab A",
        "1.wav,sad,a,lab-b",
        "2.wav,sad,a,",
        header="path,emotion,speaker,corpus",
    )
    assert set(ids(discover([with_column])).values()) == {"lab_a_a", "lab_b_a", "all_a"}
    assert set(ids(discover([f"My Lab={with_column}"])).values()) == {"lab_a_a", "lab_b_a", "my_lab_a"}
    plain = table(tmp_path / "x=y.csv", "0.wav,sad,a")
    assert ids(discover([plain])) == {"x_y/0": "x_y_a"}  # a path that is there is a path
    with pytest.raises(UserError, match="would be the corpus ravdess, but that is a corpus known here"):
        discover([f"ravdess={plain}"])


def test_train_and_test_of_one_corpus_speak_of_the_same_people(tmp_path, capsys, monkeypatch):
    for number in range(3):
        sound(tmp_path / f"{number}.wav", number)
    table(tmp_path / "train.csv", "0.wav,sad,a", "1.wav,sad,b")
    table(tmp_path / "test.csv", "1.wav,sad,b", "2.wav,sad,a")
    monkeypatch.chdir(tmp_path)
    manifest = discover(["lab=train.csv", "lab=test.csv"])
    assert ids(manifest) == {"lab/0": "lab_a", "lab/1": "lab_b", "lab/2": "lab_a"}
    assert [r.reason for r in manifest.rejects] == ["row 2: the file is listed twice"]
    assert manifest.roots == [f"{tmp_path}/test.csv#lab", f"{tmp_path}/train.csv#lab"]
    assert capsys.readouterr().out == ""


def test_two_tables_of_one_corpus_in_different_folders_keep_their_clips_apart(tmp_path):
    tables = []
    for place in ("x", "y"):
        sound(tmp_path / place / "1.wav", ord(place))
        tables.append(f"lab={table(tmp_path / place / 'metadata.csv', '1.wav,sad,a')}")
    manifest = discover(tables)
    assert len(ids(manifest)) == 2 and not manifest.rejects
    assert ids(discover(tables[::-1])) == ids(manifest)


def test_equal_names_of_speakers_in_two_tables_are_said_once(tmp_path, capsys):
    for place in ("one", "two"):
        sound(tmp_path / f"{place}.wav", len(place) + ord(place[0]))
        table(tmp_path / f"{place}.csv", f"{place}.wav,sad,anna", f"{place}.wav,sad,anna")
    manifest = discover([str(tmp_path / "one.csv"), str(tmp_path / "two.csv")])
    assert set(ids(manifest).values()) == {"one_anna", "two_anna"}
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "same name in several tables: 1, such as anna in one and two" in said
    discover([str(tmp_path / "one.csv")])
    assert capsys.readouterr().out == ""
