"""What makes a run the same run: what was told of its clips, and not where they lie."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from training_here import training_here

import ser_ray
from ser_ray.experiment.experiment import Experiment
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.features.summary import Summary
from ser_ray.networks.cnn1d import Cnn1dSpec
from ser_ray.scores.run_folder import RunFolder
from ser_ray.store import pipeline, rows, shards
from ser_ray.store.store import Store
from ser_ray.training.settings import TrainConfig

pytestmark = pytest.mark.usefixtures("local_ray", "train_here")
COLUMNS = "path,emotion,speaker_id,gender,intensity,sentence_id,channel,remark"
WISH = ("--model", "cnn1d", "--epochs", "1", "--corpus", "lab")
CORRECTED = {  # what stands in another row of the table, by column, and whether a run then is another one
    "emotion": ("sad", True),
    "speaker_id": ("fay", True),
    "gender": ("male", True),
    "sentence_id": ("other", True),
    "channel": ("song", True),
    "intensity": ("strong", False),
    "remark": ("noisy", False),
}


def write_lab(folder):
    """Six people, two emotions, three clips of each, as a table of cells."""
    folder.mkdir()
    cells = []
    for k in range(36):
        person, emotion = ["ann", "bob", "cyd", "dan", "eve", "fay"][k // 6], ("happy", "sad")[k % 2]
        sf.write(folder / f"{k}.wav", np.random.default_rng(k).normal(0, 0.05 + 0.1 * (k % 2), 16_000), 16_000)
        cells.append([f"{k}.wav", emotion, person, "female", "normal", "kids", "speech", ""])
    return cells


def write_table(folder, cells):
    (folder / "lab.csv").write_text("\n".join([COLUMNS, *map(",".join, cells)]))
    return folder / "lab.csv"


@pytest.fixture(scope="module")
def template(local_ray, tmp_path_factory):
    """The folder of a run that was cut short, with its recordings and its store; and the cells of its table."""
    folder = tmp_path_factory.mktemp("template")
    cells = write_lab(folder / "lab")
    table = str(write_table(folder / "lab", cells))
    store = ser_ray.featurize(ser_ray.discover([table]), FeaturizeConfig(Summary()), str(folder / "store"))
    experiment = Experiment(corpus=("lab",), network=Cnn1dSpec(), train=TrainConfig(epochs=1))
    with training_here():
        ser_ray.run(store, experiment, RunFolder(str(folder / "run")))
    for name in ("metrics.json", "model/config.json"):
        (folder / "run" / name).unlink()
    return folder, cells


@pytest.fixture
def begun(template, job, tmp_path):
    """A run that was cut short, in this test's folder: its command, and the cells of its table."""
    folder, cells = template
    for name in ("lab", "store", "run"):
        shutil.copytree(folder / name, tmp_path / name)
    table = tmp_path / "lab" / "lab.csv"
    return ("train", "--data", table, "--store", "store", *WISH, "--output", "run"), [list(row) for row in cells]


@pytest.mark.parametrize("column", CORRECTED)
def test_a_corrected_column_makes_another_run_if_people_are_split_or_scored_by_it(job, begun, tmp_path, column):
    wish, cells = begun
    value, refuses = CORRECTED[column]
    cells[0][COLUMNS.split(",").index(column)] = value
    write_table(tmp_path / "lab", cells)
    code, out, err = job(*wish)
    assert "Featurizing" not in out, "its sound is what it was"
    if not refuses:
        assert (code, err) == (0, "") and "Going on with the unfinished run" in out, err
        return
    assert code == 2 and err.count("\n") == 1
    assert f"unfinished run with other settings ({column.removesuffix('_id')} of clips: corrected since)" in err


def test_moved_recordings_are_the_same_run_and_nothing_is_made_anew(job, begun, tmp_path):
    wish, _ = begun
    shutil.move(tmp_path / "lab", tmp_path / "elsewhere")
    moved = [tmp_path / "elsewhere" / "lab.csv" if word == tmp_path / "lab" / "lab.csv" else word for word in wish]
    code, out, err = job(*moved)
    assert (code, err) == (0, ""), err
    assert "36 of 36 clips are there already" in out and "Going on with the unfinished run" in out
    assert all("elsewhere" in path for path in Store("store").table()["path"].to_pylist())


def test_a_fold_of_other_labels_is_not_pooled(job, tmp_path):
    cells = write_lab(tmp_path / "lab")
    table = write_table(tmp_path / "lab", cells)
    wish = ("--data", table, "--store", "store", *WISH, "--num-folds", "2")
    code, _, err = job("train", *wish, "--fold", "0", "--output", "cv/fold-0")
    assert (code, err) == (0, ""), err
    for row in cells:
        row[1] = {"happy": "sad", "sad": "happy"}[row[1]]
    write_table(tmp_path / "lab", cells)
    code, _, err = job("train", *wish, "--fold", "all", "--output", "cv")
    assert code == 2 and "fold-0 was run with other settings (emotion of clips: corrected since)" in err


def test_without_a_store_the_one_of_the_same_clips_is_found_wherever_they_moved(job, tmp_path):
    table = write_table(tmp_path / "lab", write_lab(tmp_path / "lab"))
    code, out, err = job("featurize", "--data", table)
    assert (code, err) == (0, "") and "Featurizing: 36/36" in out, err
    code, out, err = job("featurize", "--data", table, "--seed", "1")  # where nothing is drawn, no seed counts
    assert (code, err) == (0, "") and "Featurizing" not in out
    shutil.move(tmp_path / "lab", tmp_path / "elsewhere")
    code, out, err = job("featurize", "--data", tmp_path / "elsewhere" / "lab.csv")
    assert (code, err) == (0, "") and "Featurizing" not in out and len(list(Path("stores").iterdir())) == 1
    code, out, err = job("featurize", "--data", tmp_path / "elsewhere" / "lab.csv", "--n-mels", "32")
    assert (code, err) == (0, "") and "Featurizing: 36/36" in out and len(list(Path("stores").iterdir())) == 2
    drawn = ("--features", "summary", "--data", tmp_path / "elsewhere" / "lab.csv")
    for seed in ("0", "1"):
        assert "Featurizing: 36/36" in job("featurize", *drawn, "--seed", seed)[1]


def test_a_run_reads_the_keys_of_each_shard_and_the_description_of_the_store_once(job, begun, monkeypatch):
    keys, described, real, read_json = [], [], shards.read_shard, rows.Store.info.__globals__["storage"].read_json

    def read(path, columns):
        if "shards" in path and (columns is None or "utterance_id" in columns):
            keys.append(path)
        return real(path, columns)

    for room in (shards, rows, pipeline):
        monkeypatch.setattr(room, "read_shard", read)
    monkeypatch.setattr("ser_ray.store.store.read_shard", read)
    monkeypatch.setattr("ser_ray.base.storage.read_json", lambda path: (described.append(path), read_json(path))[1])
    code, _, err = job("train", "--store", "store", *WISH, "--output", "other")
    assert (code, err) == (0, ""), err
    assert len(keys) == len(set(keys)) == len(Store("store").shards())
    assert sum(path.endswith("store.json") for path in described) == 1


@pytest.mark.parametrize(
    ("change", "flags", "says"),
    [
        ({}, ("--corpus", "lob"), "--corpus lob: not among the clips found, which are of lab"),
        ({}, ("--fold", "7"), "there is no fold 7: speaker-independent has folds 0 to 4 here"),
        ({}, ("--start-from", "nowhere"), "nowhere holds no trained model"),
        ({1: "happy"}, (), "all training clips are happy: a classifier needs clips of two emotions or more"),
        ({2: "ann"}, (), "speaker-independent needs at least 3 speakers"),
        ({}, ("--labels", "calm", "angry"), "leaves nothing for train"),
    ],
)
def test_what_the_table_tells_at_once_is_refused_before_any_sound_is_read(job, tmp_path, change, flags, says):
    cells = write_lab(tmp_path / "lab")
    for row in cells:
        for column, value in change.items():
            row[column] = value
    table = write_table(tmp_path / "lab", cells)
    wish = [word for word in WISH if not (flags[:1] == ("--corpus",) and word in ("--corpus", "lab"))]
    code, out, err = job("train", "--data", table, "--store", "store", *wish, *flags)
    assert code == 2 and says in err and err.count("\n") == 1, err
    assert "Featurizing" not in out and not Path("store").exists()


def test_three_people_with_a_clip_each_are_too_few_to_train_on(job, tmp_path):
    cells = write_lab(tmp_path / "lab")
    table = write_table(tmp_path / "lab", [cells[0], cells[7], cells[14]])
    code, out, err = job("train", "--data", table, "--store", "store", *WISH)
    assert code == 2 and "one clip is left to train on: add clips of more speakers" in err and "Featurizing" not in out


def test_a_finished_run_holds_what_it_was_told(job, begun):
    wish, _ = begun
    assert job(*wish)[0] == 0
    told = json.loads(Path("run/metrics.json").read_text())["config"]["told"]
    assert set(told) == {"corpus", "speaker_id", "gender", "emotion", "sentence_id", "channel"}
    assert pq.read_table("run/predictions.parquet").num_rows > 0
