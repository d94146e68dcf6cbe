import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ser_ray.base.errors import UserError
from ser_ray.experiment import evaluation, experiment, run
from ser_ray.experiment.experiment import Experiment
from ser_ray.experiment.protocols import SplitConfig
from ser_ray.experiment.splits import split
from ser_ray.features.settings import FeatureConfig  # GONE
from ser_ray.model import bundle
from ser_ray.model.examples import COLUMNS, Examples, predict_logits
from ser_ray.networks.models import ModelConfig, build  # GONE
from ser_ray.scores import metrics
from ser_ray.scores.run_folder import claim  # GONE
from ser_ray.scores.screen import show_scores
from ser_ray.speech.emotions import LabelSet
from ser_ray.training.frames import VIEWS  # GONE
from ser_ray.training.settings import TrainConfig
from ser_ray.training.worker_rows import speakers_of  # GONE

pytestmark = pytest.mark.usefixtures("local_ray")


def todo(**settings):
    names = {field.name for field in dataclasses.fields(TrainConfig)} & set(settings)
    train = TrainConfig(**{"epochs": 1, "num_workers": "1", **{name: settings.pop(name) for name in names}})
    return Experiment(train=train, model=ModelConfig("cnn1d"), **settings)


@pytest.fixture(scope="module")
def finished(made_store, tmp_path_factory):
    root = str(tmp_path_factory.mktemp("run") / "first")
    scores = run.run(made_store, todo(epochs=2), root, "python jobs/train.py", made_speech=True)
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
    page = Path(root, "report.html").read_text()
    assert "<img" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_no_tested_speaker_was_heard(finished):
    _, scores = finished
    for pair in ("train_test", "train_validation", "validation_test"):
        assert scores["leaks"][pair]["speakers"] == 0
        assert scores["leaks"][pair]["utterances"] == 0


def test_the_bundle_gives_the_same_probabilities(finished, made_store):
    root, _ = finished
    model = bundle.load(root)
    rows, chosen = experiment.choose_rows(made_store, todo())
    parts = split(rows, model.labels, SplitConfig())
    table = run.predict_rows(model, made_store, chosen[parts.test], None)
    before = pq.read_table(f"{root}/predictions.parquet")
    assert table.column("utterance_id").equals(before.column("utterance_id"))
    np.testing.assert_allclose(
        np.stack(table.column("probabilities").to_pylist()), np.stack(before.column("probabilities").to_pylist()), 1e-6
    )


def test_members_after_the_first_learn_from_its_validation_speakers_and_all_answer_together(made_store, tmp_path):
    wish = todo(members=3, epochs=2, monitor="validation_uar", schedule="one-cycle")
    root = str(tmp_path / "run")
    scores = run.run(made_store, wish, root, "")
    assert scores["best_epoch"] in (1, 2) and "3 networks" in scores["description"]
    with open(tmp_path / "run" / "history.csv") as stream:
        history = [(row["member"], row["epoch"], bool(row["validation_uar"])) for row in csv.DictReader(stream)]
    assert history == [(str(k), str(epoch), k == 0) for k in range(3) for epoch in (1, 2)]
    model = bundle.load(root)
    rows, chosen = experiment.choose_rows(made_store, wish)
    parts = split(rows, model.labels, SplitConfig())
    table = run.predict_rows(model, made_store, chosen[parts.test], None)
    before = pq.read_table(tmp_path / "run" / "predictions.parquet")
    np.testing.assert_allclose(
        np.stack(table["probabilities"].to_pylist()), np.stack(before["probabilities"].to_pylist()), 1e-6
    )
    # What each was trained on shows in the statistics by which it standardizes.
    examples = Examples.from_rows(made_store.rows(COLUMNS), model.labels)
    heard = np.union1d(parts.train, parts.validation)
    for member, trained in zip(model.network.members, (parts.train, heard, heard), strict=True):
        mean_F, _ = examples.statistics(torch.from_numpy(chosen[trained]))
        torch.testing.assert_close(member.standardize.mean_F.double(), mean_F, rtol=1e-5, atol=1e-5)
    first, second, third = (member.classify.weight for member in model.network.members)
    assert not torch.equal(first, second) and not torch.equal(second, third)
    with pytest.raises(UserError, match="--members must be 1 or more, got 0"):
        todo(members=0)
    with pytest.raises(UserError, match="--members 2: only the first is validated, so it takes --schedule one-cycle"):
        todo(members=2)


def test_training_starts_from_a_run_that_heard_none_of_the_speakers(made_store, tmp_path):
    first = str(tmp_path / "first")
    names = made_store.info()["counts"]
    one, other = sorted(names)[:2]
    run.run(made_store, todo(corpus=(one,), labels=("happy", "sad"), epochs=2), first, "")
    wish = todo(corpus=(other,), start_from=first, learning_rate=1e-9)  # stays where it starts
    scores = run.run(made_store, wish, str(tmp_path / "second"), "")
    assert f"starts from {first}" in scores["description"]
    before, after = bundle.load(first), bundle.load(str(tmp_path / "second"))
    old, new = before.network.state_dict(), after.network.state_dict()
    for name in old:
        if name.startswith(("classify", "standardize")):
            assert old[name].shape != new[name].shape or not torch.equal(old[name], new[name]), name
        else:
            torch.testing.assert_close(new[name], old[name], rtol=0, atol=1e-6)
    assert set(before.heard_speakers) < set(after.heard_speakers)
    with pytest.raises(UserError, match=r"was trained on .* of the speakers that are tested or validate here, such as"):
        run.run(made_store, todo(corpus=(one,), start_from=first), str(tmp_path / "third"), "")
    with pytest.raises(UserError, match="holds no trained model"):
        run.run(made_store, todo(start_from=str(tmp_path / "none")), str(tmp_path / "third"), "")
    config = tmp_path / "first" / "model" / "config.json"
    config.write_text(config.read_text().replace('"offset_s": 0.6', '"offset_s": 0.5'))
    with pytest.raises(UserError, match=r"is another kind of network .offset_s: 0.5, wanted 0.6"):
        run.run(made_store, todo(corpus=(other,), start_from=first), str(tmp_path / "third"), "")
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("workers", ["1", "3"])  # 3 do not divide the clips
def test_no_test_row_is_dropped(finished, made_store, tmp_path, workers):
    _, scores = finished  # by one worker
    if workers != "1":
        scores = run.run(made_store, todo(num_workers=workers), str(tmp_path / "run"), "")
    expected = split(made_store.rows(), LabelSet(), SplitConfig())
    assert scores["num_test"] == len(expected.test)
    assert scores["timing"]["num_workers"] == int(workers)


def test_a_finished_run_is_not_overwritten_and_an_unfinished_one_not_mixed(finished, made_store, tmp_path):
    root, _ = finished
    with pytest.raises(UserError, match="finished run"):
        run.run(made_store, todo(), root, "")
    for _ in range(2):  # the second time it goes on
        claim(str(tmp_path), todo(epochs=2).identity(made_store), "")
    with pytest.raises(UserError, match="epochs: 2, wanted 3"):
        run.run(made_store, todo(epochs=3), str(tmp_path), "")


def test_labels_and_corpora_are_chosen(made_store, tmp_path):
    wish = todo(corpus=("crema_d", "ravdess"), labels=("six", "calm=neutral"))
    scores = run.run(made_store, wish, str(tmp_path / "run"), "")
    assert scores["labels"] == ["neutral", "happy", "sad", "angry", "fearful", "disgust"]
    assert set(scores["per_corpus"]) == {"crema_d", "ravdess"}
    with pytest.raises(UserError, match="--corpus emodb: not in the store, which holds crema_d, ravdess, savee, tess"):
        run.run(made_store, todo(corpus=("emodb",)), str(tmp_path / "other"), "")


def test_speakers_are_normalized_in_training_and_in_every_answer(made_frames, tmp_path, capsys):
    wish = todo(corpus=("tess", "savee"), labels=("happy", "sad", "angry"))
    wish = dataclasses.replace(wish, model=ModelConfig(width=4, speaker_norm=True))
    root = str(tmp_path / "run")
    scores = run.run(made_frames, wish, root, "")
    assert "normalized by speaker" in scores["description"]
    model = bundle.load(root)
    found, chosen = experiment.choose_rows(made_frames, wish)
    parts = split(found, model.labels, SplitConfig())
    speakers = speakers_of(made_frames, model.model, chosen[parts.train], chosen)
    raw = Examples.from_rows(made_frames.take(chosen[parts.train], COLUMNS), model.labels)
    usual = raw.statistics(torch.arange(len(raw)))
    for found in (speakers, model.normalizer({})):
        np.testing.assert_allclose(found.usual_2F, torch.stack(usual).numpy(), rtol=1e-5)
    assert set(speakers.heard) == set(made_frames.rows()["speaker_id"].take(chosen).to_pylist())
    examples = Examples.from_rows(made_frames.take(chosen[parts.test], COLUMNS), model.labels, speakers=speakers)
    logits_NC = bundle.answer(model, examples)
    before = pq.read_table(f"{root}/predictions.parquet")
    np.testing.assert_allclose(
        bundle.probabilities(model, logits_NC).numpy(), np.stack(before["probabilities"].to_pylist()), atol=1e-6
    )
    assert "fewer than 10 clips, too few to gain by normalization: 4 of 6, such as savee_dc" in capsys.readouterr().out
    scores = evaluation.evaluate([model], made_frames, str(tmp_path / "again"), "")
    assert "normalized by speaker" in scores["description"]
    there = {row["utterance_id"]: row for row in pq.read_table(tmp_path / "again" / "predictions.parquet").to_pylist()}
    for row in before.to_pylist():
        np.testing.assert_allclose(there[row["utterance_id"]]["probabilities"], row["probabilities"], atol=1e-6)
    assert speakers_of(made_frames, ModelConfig(), chosen, chosen) is None


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors"])
def test_a_damaged_bundle_is_refused(finished, tmp_path, damage):
    import shutil

    root, _ = finished
    shutil.copytree(f"{root}/model", tmp_path / "model")
    (tmp_path / "model" / damage).write_text("{")
    with pytest.raises(UserError, match="not a model that this version reads"):
        bundle.load(str(tmp_path))
    with pytest.raises(UserError, match="holds no trained model"):
        bundle.load(str(tmp_path / "elsewhere"))


def test_a_model_on_log_mel_answers_by_the_views_that_it_was_tested_with(tmp_path):
    torch.manual_seed(0)
    features, labels = FeatureConfig.for_kind("log_mel"), LabelSet()
    network = build(ModelConfig(width=4), features.n_mels, len(labels.names)).eval()
    keys, offsets = torch.arange(3), torch.tensor([0, 60, 100, 220])
    zeros = torch.zeros(3, dtype=torch.long)
    examples = Examples(10 * torch.randn(220, features.n_mels) - 50, offsets, zeros, keys, zeros)
    model = bundle.Bundle(network, ModelConfig(width=4), features, labels, views=VIEWS)
    model.save(str(tmp_path / "new"))
    loaded = bundle.load(str(tmp_path / "new"))
    assert loaded.views == VIEWS
    answer = bundle.answer(model, examples)
    assert torch.equal(bundle.answer(loaded, examples), answer)
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    del config["views"]  # models of older versions were tested without
    (tmp_path / "new" / "config.json").write_text(json.dumps(config))
    as_it_is = bundle.answer(bundle.load(str(tmp_path / "new")), examples)
    assert torch.equal(as_it_is, predict_logits(network, examples)) and not torch.allclose(as_it_is, answer, atol=1e-3)
