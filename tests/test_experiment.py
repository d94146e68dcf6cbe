import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from training_here import training_here

from ser_ray.base.errors import UserError
from ser_ray.experiment.evaluate import evaluate
from ser_ray.experiment.experiment import Experiment, choose_rows
from ser_ray.experiment.protocols import SplitConfig
from ser_ray.experiment.run import plan_run, run
from ser_ray.experiment.splits import split
from ser_ray.features.log_mel import LogMel
from ser_ray.model.examples import Examples, predict_logits
from ser_ray.model.files import load_model, save_model
from ser_ray.model.model import Model
from ser_ray.model.speakers import Speakers, listen
from ser_ray.networks.cnn1d import Cnn1dSpec
from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
from ser_ray.scores import metrics
from ser_ray.scores.run_folder import RunFolder
from ser_ray.scores.scores import MADE_SPEECH
from ser_ray.scores.screen import show_scores
from ser_ray.speech.emotions import LabelSet
from ser_ray.store.rows import open_rows
from ser_ray.training.settings import TrainConfig
from ser_ray.training.worker_rows import usual_speech

pytestmark = pytest.mark.usefixtures("local_ray")


def todo(**settings):
    names = {field.name for field in dataclasses.fields(TrainConfig)} & set(settings)
    train = TrainConfig(**{"epochs": 1, **{name: settings.pop(name) for name in names}})
    return Experiment(train=train, network=Cnn1dSpec(), **settings)


def train(store, wish, root, command=""):
    return run(store, wish, RunFolder(str(root), command))


@pytest.fixture(scope="module")
def finished(made_store, tmp_path_factory):
    root = str(tmp_path_factory.mktemp("run") / "first")
    with training_here():
        scores = train(made_store, todo(epochs=2), root, "python jobs/train.py")
    show_scores(scores)
    return root, scores


def test_the_run_is_complete_and_its_scores_can_be_recomputed(finished):
    root, scores = finished
    assert json.loads(Path(root, "metrics.json").read_text()) == json.loads(json.dumps(scores))
    predictions = pq.read_table(f"{root}/predictions.parquet")
    again = metrics.score(predictions, scores["labels"], seed=0)
    for name in ("accuracy", "uar", "macro_f1", "confusion_matrix", "per_corpus", "calibration", "interval"):
        assert again[name] == scores[name], name
    with open(f"{root}/history.csv") as stream:
        assert [row["epoch"] for row in csv.DictReader(stream)] == ["1", "2"]
    assert scores["made_speech"] and scores["notes"] == [MADE_SPEECH]
    page = Path(root, "report.html").read_text()
    assert MADE_SPEECH in page and load_model(root).made_speech
    assert "<img" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_no_tested_speaker_was_heard(finished):
    _, scores = finished
    for pair in ("train_test", "train_validation", "validation_test"):
        assert scores["leaks"][pair]["speakers"] == 0
        assert scores["leaks"][pair]["utterances"] == 0


def test_the_model_gives_the_same_probabilities(finished, made_store):
    root, _ = finished
    model = load_model(root)
    parts = split(choose_rows(open_rows(made_store), todo()), model.labels, SplitConfig())
    table = model.predict_rows(parts.test)
    before = pq.read_table(f"{root}/predictions.parquet")
    assert table.column("utterance_id").equals(before.column("utterance_id"))
    np.testing.assert_allclose(
        np.stack(table.column("probabilities").to_pylist()), np.stack(before.column("probabilities").to_pylist()), 1e-6
    )


@pytest.fixture(scope="module")
def three(made_store, tmp_path_factory):
    """What was asked of three members, where they were trained, their scores, and their model."""
    wish = todo(members=3, epochs=2, monitor="validation_uar", schedule="one-cycle")
    root = tmp_path_factory.mktemp("members") / "run"
    with training_here():
        scores = train(made_store, wish, root)
    return wish, root, scores, load_model(str(root))


def test_only_the_first_member_is_validated(three):
    _, root, scores, _ = three
    assert scores["best_epoch"] in (1, 2) and "3 networks" in scores["description"]
    with open(root / "history.csv") as stream:
        history = [(row["member"], row["epoch"], bool(row["validation_uar"])) for row in csv.DictReader(stream)]
    assert history == [(str(k), str(epoch), k == 0) for k in range(3) for epoch in (1, 2)]


def test_all_members_answer_together(three, made_store):
    wish, root, _, model = three
    parts = split(choose_rows(open_rows(made_store), wish), model.labels, SplitConfig())
    table, before = model.predict_rows(parts.test), pq.read_table(root / "predictions.parquet")
    np.testing.assert_allclose(
        np.stack(table["probabilities"].to_pylist()), np.stack(before["probabilities"].to_pylist()), 1e-6
    )
    first, second, third = (member.classify.weight for member in model.members)
    assert not torch.equal(first, second) and not torch.equal(second, third)


def test_members_after_the_first_learn_from_its_validation_speakers(three, made_store):
    """What each was trained on shows in the statistics by which it standardizes."""
    wish, _, _, model = three
    rows = choose_rows(open_rows(made_store), wish)
    parts = split(rows, model.labels, SplitConfig())
    examples = Examples.from_rows(rows, model.labels)
    both = parts.train.union(parts.validation)
    for member, trained in zip(model.members, (parts.train, both, both), strict=True):
        mean_F, _ = examples.statistics(torch.from_numpy(rows.find(trained)))
        torch.testing.assert_close(member.standardize.mean_F.double(), mean_F, rtol=1e-5, atol=1e-5)


def test_a_network_that_is_trained_once_more_answers_instead_of_the_validated_one(three, made_store, tmp_path):
    """It is what the second of several members is; the temperature is that of the one that was validated."""
    wish, _, _, others = three
    again = dataclasses.replace(wish, members=1, train=dataclasses.replace(wish.train, refit=True))
    with training_here():
        scores = train(made_store, again, tmp_path / "run")
    assert "the network that answers learned from validation speakers too" in scores["description"]
    model = load_model(str(tmp_path / "run"))
    (only,) = model.members
    torch.testing.assert_close(only.state_dict(), others.members[1].state_dict())
    assert model.temperature == others.temperature and model.trained_on == others.trained_on


def test_members_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="--members must be 1 or more, got 0"):
        todo(members=0)
    why = "only the first network is validated, so it takes --schedule one-cycle"
    with pytest.raises(UserError, match=f"--members 2: {why}"):
        todo(members=2)
    with pytest.raises(UserError, match=f"--refit: {why}"):
        todo(refit=True)


@pytest.fixture(scope="module")
def heard(made_store, tmp_path_factory):
    """A run on one corpus, which it is, and another corpus."""
    root = str(tmp_path_factory.mktemp("heard") / "first")
    one, other = sorted(made_store.info()["counts"])[:2]
    with training_here():
        train(made_store, todo(corpus=(one,), labels=("happy", "sad"), epochs=2), root)
    return root, one, other


@pytest.mark.usefixtures("train_here")
def test_training_starts_from_a_run_that_heard_none_of_the_speakers(heard, made_store, tmp_path):
    first, _, other = heard
    wish = todo(corpus=(other,), start_from=first, learning_rate=1e-9)  # stays where it starts
    scores = train(made_store, wish, tmp_path / "second")
    assert f"starts from {first}" in scores["description"]
    before, after = load_model(first), load_model(str(tmp_path / "second"))
    old, new = before.members[0].state_dict(), after.members[0].state_dict()
    for name in old:
        if name.startswith(("classify", "standardize")):
            assert old[name].shape != new[name].shape or not torch.equal(old[name], new[name]), name
        else:
            torch.testing.assert_close(new[name], old[name], rtol=0, atol=1e-6)
    assert set(before.trained_on) < set(after.trained_on)


def test_a_start_that_cannot_be_is_refused(heard, made_store, tmp_path):
    first, one, other = heard
    root = tmp_path / "run"
    with pytest.raises(UserError, match=r"was trained on .* of the speakers that are tested or validate here, such as"):
        train(made_store, todo(corpus=(one,), start_from=first), root)
    with pytest.raises(UserError, match="holds no trained model"):
        train(made_store, todo(start_from=str(tmp_path / "none")), root)
    shutil.copytree(first, tmp_path / "first")
    config = tmp_path / "first" / "model" / "config.json"
    config.write_text(config.read_text().replace('"offset_s": 0.6', '"offset_s": 0.5'))
    with pytest.raises(UserError, match=r"is another kind of network .offset_s: 0.5, wanted 0.6"):
        train(made_store, todo(corpus=(other,), start_from=str(tmp_path / "first")), root)
    assert not root.exists()


def test_no_test_row_is_dropped(finished, made_store):
    """Three workers, who do not divide the clips, are in `test_cluster.py`."""
    _, scores = finished
    expected = split(open_rows(made_store), LabelSet(), SplitConfig())
    assert scores["num_test"] == len(expected.test)
    assert scores["timing"]["num_workers"] == 1


def test_a_finished_run_is_not_overwritten_and_an_unfinished_one_not_mixed(finished, made_store, tmp_path):
    root, _ = finished
    with pytest.raises(UserError, match="finished run"):
        train(made_store, todo(), root)
    for _ in range(2):  # the second time it goes on
        RunFolder(str(tmp_path)).claim(todo(epochs=2).identity(open_rows(made_store)))
    with pytest.raises(UserError, match="epochs: 2, wanted 3"):
        train(made_store, todo(epochs=3), tmp_path)


@pytest.mark.usefixtures("train_here")
def test_labels_and_corpora_are_chosen(made_store, tmp_path):
    wish = todo(corpus=("crema_d", "ravdess"), labels=("six", "calm=neutral"))
    scores = train(made_store, wish, tmp_path / "run")
    assert scores["labels"] == ["neutral", "happy", "sad", "angry", "fearful", "disgust"]
    assert set(scores["per_corpus"]) == {"crema_d", "ravdess"}
    with pytest.raises(UserError, match="--corpus emodb: not in the store, which holds crema_d, ravdess, savee, tess"):
        train(made_store, todo(corpus=("emodb",)), tmp_path / "other")


@pytest.mark.usefixtures("train_here")
def test_speakers_are_normalized_in_training_and_in_every_answer(made_frames, tmp_path, capsys):
    wish = todo(corpus=("tess", "savee"), labels=("happy", "sad", "angry"))
    wish = dataclasses.replace(wish, network=LogMelResNetSpec(width=4), speaker_norm=True)
    root = str(tmp_path / "run")
    scores = train(made_frames, wish, root)
    assert "normalized by speaker" in scores["description"]
    model = load_model(root)
    rows = choose_rows(open_rows(made_frames), wish)
    parts = split(rows, model.labels, SplitConfig())
    speakers = Speakers.of(rows.recipe.features, usual_speech(parts.train), listen(rows))
    raw = Examples.from_rows(parts.train, model.labels)
    usual = raw.statistics(torch.arange(len(raw)))
    for found in (speakers, model.normalizer({})):
        np.testing.assert_allclose(found.usual_2F, torch.stack(usual).numpy(), rtol=1e-5)
    assert set(speakers.known) == rows.values("speaker_id")
    examples = Examples.from_rows(parts.test, model.labels, speakers)
    before = pq.read_table(f"{root}/predictions.parquet")
    np.testing.assert_allclose(model.answer(examples), np.stack(before["probabilities"].to_pylist()), atol=1e-6)
    assert "fewer than 10 clips, too few to gain by normalization: 4 of 6, such as savee_dc" in capsys.readouterr().out
    scores = evaluate([model], made_frames, RunFolder(str(tmp_path / "again")))
    assert "normalized by speaker" in scores["description"]
    there = {row["utterance_id"]: row for row in pq.read_table(tmp_path / "again" / "predictions.parquet").to_pylist()}
    for row in before.to_pylist():
        np.testing.assert_allclose(there[row["utterance_id"]]["probabilities"], row["probabilities"], atol=1e-6)
    plain = plan_run(rows, dataclasses.replace(wish, speaker_norm=False), RunFolder(str(tmp_path / "plain")))
    assert [task.speakers for task in plain.tasks] == [None]
    assert dataclasses.replace(model, speaker_norm=False).normalizer({}) is None


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors"])
def test_a_damaged_model_is_refused(finished, tmp_path, damage):
    root, _ = finished
    shutil.copytree(f"{root}/model", tmp_path / "model")
    (tmp_path / "model" / damage).write_text("{")
    with pytest.raises(UserError, match="not a model that this version reads"):
        load_model(str(tmp_path))
    with pytest.raises(UserError, match="holds no trained model"):
        load_model(str(tmp_path / "elsewhere"))


def test_a_model_on_log_mel_answers_by_the_views_that_it_was_tested_with(tmp_path):
    torch.manual_seed(0)
    features, labels, spec = LogMel(), LabelSet(), LogMelResNetSpec(width=4)
    network = spec.build((None, features.n_mels), len(labels.names)).eval()
    keys, offsets = torch.arange(3), torch.tensor([0, 60, 100, 220])
    zeros = torch.zeros(3, dtype=torch.long)
    examples = Examples(10 * torch.randn(220, features.n_mels) - 50, offsets, zeros, keys, zeros, framed=True)
    model = Model([network], spec, features, labels, views=spec.views)
    save_model(model, str(tmp_path / "new"))
    loaded = load_model(str(tmp_path / "new"))
    assert loaded.views == spec.views
    answer = model.logits(examples)
    assert torch.equal(loaded.logits(examples), answer)
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    del config["views"]  # models of older versions were tested without
    (tmp_path / "new" / "config.json").write_text(json.dumps(config))
    as_it_is = load_model(str(tmp_path / "new")).logits(examples)
    assert torch.equal(as_it_is, predict_logits(network, examples)) and not torch.allclose(as_it_is, answer, atol=1e-3)
