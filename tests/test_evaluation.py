"""A saved model on data that leave nothing to test."""

import pytest
from ser_ray.features.settings import FeatureConfig
from ser_ray.model.bundle import Bundle
from ser_ray.networks.models import ModelConfig, build

from ser_ray.base.errors import UserError
from ser_ray.experiment import evaluation
from ser_ray.speech.emotions import LabelSet

pytestmark = pytest.mark.usefixtures("local_ray")


def model_of(labels, heard=()):
    """Return an untrained model of these labels that claims to have heard some speakers."""
    features = FeatureConfig.for_kind("summary")
    network = build(ModelConfig("cnn1d"), 162, len(labels.names)).eval()
    return Bundle(network, ModelConfig("cnn1d"), features, labels, heard_speakers=tuple(heard))


def refused(store, model, tmp_path):
    with pytest.raises(UserError) as error:
        evaluation.evaluate([model], store, str(tmp_path / "run"), "")
    return str(error.value)


def test_emotions_that_the_model_does_not_know_are_named_and_no_speaker_blamed(made_store, tmp_path, monkeypatch):
    rows = made_store.rows()
    shown = [emotion in ("happy", "sad") for emotion in rows["emotion"].to_pylist()]
    monkeypatch.setattr(type(made_store), "rows", lambda *_, **__: rows.filter(shown))
    labels = LabelSet(("neutral", "angry"), (("calm", "neutral"),))
    said = refused(made_store, model_of(labels), tmp_path)
    clips = sum(shown) // len(set(rows["augmentation"].to_pylist()))
    assert f"{clips} clips, emotion not among the model's labels" in said
    assert "the model knows neutral, calm, angry, the data show happy, sad" in said
    assert "choose --data with emotions that the model knows" in said and "speaker" not in said and "\n" not in said


def test_all_that_left_clips_out_is_named_with_its_count(made_store, tmp_path):
    speakers = set(made_store.rows()["speaker_id"].to_pylist())
    said = refused(made_store, model_of(LabelSet(("happy", "sad")), speakers), tmp_path)
    assert "clips, emotion not among the model's labels; " in said and "clips, speaker heard in training; " in said
    assert "with emotions that the model knows and with speakers that the model has not heard" in said


def test_speakers_are_blamed_where_they_alone_are_the_reason(made_store, tmp_path):
    speakers = set(made_store.rows()["speaker_id"].to_pylist())
    said = refused(made_store, model_of(LabelSet(), speakers), tmp_path)
    assert said == (
        "no clip is left to test on: 96 clips, speaker heard in training; choose --data with speakers that the model "
        "has not heard"
    )
