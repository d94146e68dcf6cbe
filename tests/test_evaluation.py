"""A saved model on data: what is left out and why, and what is claimed of whom it heard."""

import dataclasses
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from test_encoders import write_whisper

from ser_ray.base.errors import UserError
from ser_ray.experiment.evaluate import evaluate
from ser_ray.experiment.experiment import Experiment
from ser_ray.experiment.run import run
from ser_ray.features.summary import Summary
from ser_ray.model.files import load_model, save_model
from ser_ray.model.model import Model
from ser_ray.networks.cnn1d import Cnn1dSpec
from ser_ray.scores.run_folder import RunFolder
from ser_ray.speech.emotions import LabelSet
from ser_ray.store.rows import open_rows
from ser_ray.training.settings import TrainConfig

pytestmark = pytest.mark.usefixtures("local_ray")


def model_of(labels, trained_on=(), clips=None):
    """Return an untrained model of these labels that claims to have heard some speakers and files."""
    network = Cnn1dSpec().build((162,), len(labels.names)).eval()
    return Model([network], Cnn1dSpec(), Summary(), labels, trained_on=tuple(trained_on), trained_clips=clips)


def refused(store, model, tmp_path):
    with pytest.raises(UserError) as error:
        evaluate([model], store, RunFolder(str(tmp_path / "run")))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_emotions_that_the_model_does_not_know_are_named_and_no_speaker_blamed(made_store, tmp_path, monkeypatch):
    rows = open_rows(made_store)
    shown = rows.take(rows.among("emotion", ["happy", "sad"]))
    monkeypatch.setattr("ser_ray.experiment.evaluate.open_rows", lambda store: shown)
    said = refused(made_store, model_of(LabelSet(("neutral", "angry"), (("calm", "neutral"),))), tmp_path)
    assert f"{len(shown) // 3} clips, emotion not among the model's labels" in said
    assert "the model knows neutral, calm, angry, the data show happy, sad" in said
    assert "choose --data with emotions that the model knows" in said and "speaker" not in said


def test_all_that_left_clips_out_is_named_with_its_count(made_store, tmp_path):
    speakers = open_rows(made_store).values("speaker_id")
    said = refused(made_store, model_of(LabelSet(("happy", "sad")), speakers), tmp_path)
    assert "clips, emotion not among the model's labels; " in said and "clips, speaker heard in training; " in said
    assert "with emotions that the model knows and with speakers that the model has not heard" in said


def test_speakers_are_blamed_where_they_alone_are_the_reason(made_store, tmp_path):
    said = refused(made_store, model_of(LabelSet(), open_rows(made_store).values("speaker_id")), tmp_path)
    assert said == (
        "no clip is left to test on: 96 clips, speaker heard in training; choose --data with speakers that the model "
        "has not heard"
    )


def test_clips_that_were_trained_on_are_known_by_their_content_and_so_are_their_speakers(made_store, tmp_path):
    rows = open_rows(made_store)
    some = rows.take(rows.among("speaker_id", ["ravdess_01", "tess_oaf"]))
    first = some.take(some.among("utterance_id", sorted(some.values("utterance_id"))[::2]))
    scores = evaluate([model_of(LabelSet(), clips=first.digests())], made_store, RunFolder(str(tmp_path / "run")))
    excluded, clips = scores["excluded"], lambda part: len(part.values("utterance_id"))
    assert excluded["trained on"] == clips(first)
    heard = rows.take(rows.among("speaker_id", first.values("speaker_id")))
    assert excluded["speaker heard in training"] == clips(heard) - clips(first)
    assert scores["num_test"] == 96 - clips(heard)
    assert scores["leaks"]["train_test"] == {"speakers": 0, "clips_by_content": 0}
    assert "clips by content" in (tmp_path / "run" / "report.html").read_text().replace("_", " ")
    older = evaluate([model_of(LabelSet())], made_store, RunFolder(str(tmp_path / "older")))
    assert "does not know the files that it was trained on" in older["description"]


def test_a_model_keeps_the_digests_of_its_files(tmp_path, made_store):
    model = model_of(LabelSet(), clips=open_rows(made_store).digests())
    save_model(model, str(tmp_path))
    again = load_model(str(tmp_path))
    np.testing.assert_array_equal(again.trained_clips, model.trained_clips)
    assert len(again.trained_clips) == 96 and (np.diff(again.trained_clips) > 0).all()


def write_lab(folder, people, level):
    """A table of two emotions by some people."""
    folder.mkdir()
    rows = ["path,emotion,speaker_id"]
    for person in people:
        for k, emotion in enumerate(("happy", "sad") * 3):
            name = f"{person}_{k}.wav"
            noise = np.random.default_rng([len(rows), int(level * 100)]).normal(0, level * (1 + k % 2), 16_000)
            sf.write(folder / name, noise.clip(-1, 1), 16_000)
            rows.append(f"{name},{emotion},{person}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    return folder / "metadata.csv"


@pytest.mark.usefixtures("train_here")
def test_whoever_was_trained_on_is_not_told_by_a_tables_name(job, tmp_path):
    lab_a = write_lab(tmp_path / "a", ("ann", "bob", "cyd", "dan", "eve", "fay"), 0.1)
    lab_b = write_lab(tmp_path / "b", ("ann", "gus"), 0.2)
    wish = ("--model", "cnn1d", "--epochs", "1", "--output", "runs/first")
    code, out, err = job("train", "--data", lab_a, *wish)
    assert (code, err) == (0, ""), err
    renamed = tmp_path / "a" / "test.csv"
    renamed.write_text(lab_a.read_text())
    model, tested = load_model("runs/first"), pq.read_table("runs/first/predictions.parquet")
    code, out, err = job("evaluate", "--run", "runs/first", "--data", renamed, "--output", "runs/renamed")
    assert (code, err) == (0, ""), err  # the people who were tested are still unheard
    assert f"left out: {len(model.trained_clips)} clips, trained on" in out
    assert f"on {tested.num_rows} clips" in out
    trained = {name.removeprefix("metadata_") for name in model.trained_on}
    lines = lab_a.read_text().splitlines()
    renamed.write_text("\n".join(line for line in lines if line.rsplit(",", 1)[1] in (trained | {"speaker_id"})))
    code, _, err = job("evaluate", "--run", "runs/first", "--data", renamed, "--output", "runs/all")
    assert code == 2 and "all of these clips were trained on" in err and err.count("\n") == 1
    code, out, err = job("evaluate", "--run", "runs/first", "--data", lab_b, "--output", "runs/other")
    if "metadata_ann" in model.trained_on:  # another Ann, perhaps: left out, and no more is claimed
        assert "left out: 6 clips, speaker of the same name as one in training" in out
    code, out, err = job("evaluate", "--run", "runs/first", "--data", f"b={lab_b}", "--output", "runs/named")
    assert (code, err) == (0, ""), err
    assert "on 12 clips" in out and "left out" not in out


@pytest.mark.usefixtures("train_here")
def test_a_start_that_heard_tested_clips_under_other_names_is_refused(made_store, tmp_path):
    train = TrainConfig(epochs=1)
    wish = Experiment(network=Cnn1dSpec(), train=train)
    first = RunFolder(str(tmp_path / "first"))
    run(made_store, wish, first)
    model = load_model(first.root)
    rows = open_rows(made_store)
    save_model(dataclasses.replace(model, trained_on=(), trained_clips=rows.digests()), f"{first.root}/model")
    wish = dataclasses.replace(wish, start_from=first.root)
    with pytest.raises(UserError, match="of the clips that are tested or validate here, under other names"):
        run(made_store, wish, RunFolder(str(tmp_path / "second")))


@pytest.mark.usefixtures("train_here")
def test_a_model_whose_encoder_is_gone_is_evaluated_on_a_store_that_is_there(job, made, tmp_path):
    whisper = write_whisper(tmp_path / "whisper")
    wish = ("--data", *made, "--corpus", "savee", "--labels", "neutral", "happy", "sad", "--epochs", "1")
    code, _, err = job("train", *wish, "--model", "probe", "--encoder", whisper, "--output", "runs/probe")
    assert (code, err) == (0, ""), err
    shutil.rmtree(whisper)
    code, out, err = job("evaluate", "--run", "runs/probe", "--data", *made, "--output", "runs/elsewhere")
    assert (code, err) == (0, "") and "96 of 96 clips are there already" in out, err
    assert "savee" in out and pq.read_table("runs/elsewhere/predictions.parquet").num_rows > 0
    lab = write_lab(tmp_path / "lab", ("ann", "bob"), 0.1)
    code, _, err = job("evaluate", "--run", "runs/probe", "--data", lab, "--output", "runs/lab")
    assert code == 2 and err.count("\n") == 1 and "whisper" in err, err  # whose clips nobody can featurize
