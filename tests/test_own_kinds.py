"""A caller's own kind of features, network and corpus: defined here alone, from corpus to prediction."""

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import torch
from torch import nn

import ser_ray
from ser_ray.base.errors import UserError
from ser_ray.base.settings import between, check_settings
from ser_ray.experiment.experiment import Experiment
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.networks.modules.layers import Standardize
from ser_ray.scores.run_folder import RunFolder
from ser_ray.speech.utterance import Utterance
from ser_ray.store.pipeline import featurize
from ser_ray.training.settings import Compute, TrainConfig


@dataclass(frozen=True)
class Levels:
    """Levels of parts of a clip.

    Attributes:
        sample_rate: Of the analysed waveform, Hz.
        offset_s: Start of the window within the clip, seconds.
        duration_s: Length of the window, seconds.
        parts: How many levels.
    """

    name: ClassVar[str] = "levels"
    version: ClassVar[int] = 1
    augment: ClassVar[tuple[str, ...]] = ("none",)

    sample_rate: int = 16_000
    offset_s: float = 0.0
    duration_s: float | None = 4.0
    parts: int = between(12, 2, 100)

    def __post_init__(self):
        check_settings(self)

    def arrow_type(self):
        return pa.list_(pa.list_(pa.float32(), 2), self.parts)

    def kernel(self):
        return LevelsKernel(self.parts)


class LevelsKernel:
    def __init__(self, parts):
        self.parts = parts

    def to(self, device):
        return self

    def rows(self, waveform_T, utterance_id, augmentations, seed):
        parts = np.array_split(waveform_T, self.parts)
        levels = [[np.log10(np.square(part).mean() + 1e-9), np.abs(np.diff(part)).mean()] for part in parts]
        return [np.array(levels, np.float32) for _ in augmentations]


@dataclass(frozen=True)
class Two:
    """Two layers.

    Attributes:
        hidden: Hidden units.
    """

    name: ClassVar[str] = "two_layers"
    features: ClassVar[str] = "levels"
    training: ClassVar[dict] = {"epochs": 4, "batch_size": 16}
    space: ClassVar[dict] = {"hidden": (4, 8)}
    changes_frames: ClassVar[bool] = False
    views: ClassVar[tuple] = ()
    takes_speaker_norm: ClassVar[bool] = False

    hidden: int = between(8, 1, 100)

    def __post_init__(self):
        check_settings(self)

    def build(self, shape, num_classes):
        return TwoLayers(shape, self.hidden, num_classes)


class TwoLayers(nn.Module):
    def __init__(self, shape, hidden, num_classes):
        super().__init__()
        self.standardize = Standardize(*shape)
        self.first = nn.Linear(shape[0] * shape[1], hidden)
        self.classify = nn.Linear(hidden, num_classes)

    def forward(self, features, lengths_B=None):
        return self.classify(self.first(self.standardize(features).flatten(1)).tanh())


@pytest.fixture
def own(monkeypatch):
    """Both kinds, registered for one test."""
    monkeypatch.setattr("ser_ray.base.registry._SPECS", {})
    ser_ray.register(Levels)
    ser_ray.register(Two)
    return Levels, Two


@pytest.fixture(scope="module")
def levels(local_ray, made, tmp_path_factory):
    """A store of own features."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ser_ray.base.registry._SPECS", {})
        ser_ray.register(Levels)
        config = FeaturizeConfig(Levels(parts=6))
        return featurize(ser_ray.discover(made), config, str(tmp_path_factory.mktemp("levels") / "store"))


@pytest.mark.usefixtures("train_here")
def test_own_features_and_members_of_an_own_network_go_the_whole_way(own, levels, tmp_path):
    store = levels
    features = pq.read_table(f"{store.root}/shards")["features"]
    assert features.type == pa.list_(pa.list_(pa.float32(), 2), 6) and len(features) == 96
    folder = RunFolder(str(tmp_path / "run"))
    train = TrainConfig.usual(Two, schedule="one-cycle", epochs=1)
    wish = Experiment(network=Two(hidden=5), train=train, members=2)
    scores = ser_ray.run(store, wish, folder)
    assert scores["config"]["model"] == {"model": "two_layers", "hidden": 5, "speaker_norm": False}
    model = ser_ray.load(folder.root)
    assert (model.network, model.features) == (Two(hidden=5), Levels(parts=6))
    again = ser_ray.evaluate([model], store, RunFolder(str(tmp_path / "again")))
    assert again["num_test"] > 0
    before = pq.read_table(f"{folder.root}/predictions.parquet").to_pylist()
    paths = dict(zip(*(store.table()[name].to_pylist() for name in ("utterance_id", "path")), strict=True))
    for row in before[:3]:
        answer = model.predict(paths[row["utterance_id"]]).iloc[0]
        assert answer["emotion"] == row["predicted"]
        np.testing.assert_allclose(answer["probabilities"], row["probabilities"], atol=1e-6)


@pytest.mark.usefixtures("local_ray", "train_here")
def test_own_kinds_have_flags_of_their_own(own, job, made, tmp_path):
    code, _, err = job("featurize", "--data", *made, "--features", "levels", "--parts", "5", "--store", "store")
    assert (code, err) == (0, ""), err
    wish = ("--model", "two_layers", "--store", "store", "--epochs", "1")
    code, _, err = job("train", *wish, "--hidden", "4", "--output", "run")
    assert (code, err) == (0, ""), err
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["network"]["hidden"] == 4
    code, _, err = job("train", *wish, "--hidden", "0")
    assert code == 2 and "--hidden must be 1 to 100, got 0" in err
    code, _, err = job("train", *wish, "--width", "8")
    assert code == 2 and "--width is for --model log_mel_resnet" in err


def test_folds_of_an_own_network_reach_workers(own, levels, tmp_path, monkeypatch):
    from ser_ray.experiment.crossval import cross_validate
    from ser_ray.experiment.protocols import SplitConfig

    monkeypatch.setattr("ser_ray.experiment.crossval._side_by_side", lambda compute: 1)  # `test_training.py` has two
    train = TrainConfig.usual(Two, epochs=1)
    wish = Experiment(network=Two(), train=train, split=SplitConfig(num_folds=2))
    scores = cross_validate(levels, wish, RunFolder(str(tmp_path / "run")), Compute(num_workers="1"))
    assert len(scores["folds"]) == 2


def test_a_model_that_names_what_nobody_registered_is_refused_and_nothing_is_imported(own, tmp_path, monkeypatch):
    from ser_ray.model.files import save_model
    from ser_ray.speech.emotions import LabelSet

    model = ser_ray.Model([Two().build((12, 2), 8)], Two(), Levels(), LabelSet())
    save_model(model, str(tmp_path / "model"))
    assert torch.equal(ser_ray.load(str(tmp_path)).members[0].first.weight, model.members[0].first.weight)
    monkeypatch.setattr("ser_ray.base.registry._SPECS", {})
    with pytest.raises(UserError, match="--model two_layers: no such model; choose from log_mel_resnet, cnn1d"):
        ser_ray.load(str(tmp_path))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("stranger", "stranger.Net", "stranger:Net"):
        config["network"] = {"model": name}
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=f"--model {name}: no such model"):
            ser_ray.load(str(tmp_path))


def test_a_name_that_is_taken_is_refused(own):
    ser_ray.register(Two)  # the same again is fine
    for name, says in (("two_layers", "registered already"), ("cnn1d", "there is a network cnn1d already")):
        with pytest.raises(UserError, match=says):
            ser_ray.register(type("Other", (), {"name": name, "build": None}))
    with pytest.raises(UserError, match="is no corpus"):
        ser_ray.register(object())


class Mine:
    """A corpus: `mine_<speaker>_<emotion>_<number>.wav`."""

    NAME = "mine"
    PUBLISHED_CLIPS: ClassVar[dict] = {"mine": 24}

    @staticmethod
    def parse(path):
        name = path.rpartition("/")[2]
        if not name.startswith("mine_"):
            return None
        _, speaker, emotion, number = name.removesuffix(".wav").split("_")
        if emotion not in ("happy", "sad"):
            raise ValueError(f"emotion {emotion} is not one of happy sad")
        return Utterance(
            f"mine/{name[:-4]}", "mine", f"mine_{speaker}", "female", emotion, "", f"mine_{number}", "speech", path
        )


@pytest.mark.usefixtures("local_ray", "train_here")
def test_an_own_corpus_is_found_by_its_names_and_trained_on(job, tmp_path, monkeypatch):
    monkeypatch.setattr("ser_ray.base.registry._SPECS", {})
    for i in range(24):
        noise = np.random.default_rng(i).normal(0, (0.02, 0.3)[i % 2], 16_000)
        sf.write(tmp_path / f"mine_{'abcdef'[i // 4]}_{('sad', 'happy')[i % 2]}_{i}.wav", noise, 16_000)
    sf.write(tmp_path / "mine_a_bored_1.wav", noise, 16_000)
    ser_ray.register(Mine)
    manifest = ser_ray.discover([str(tmp_path)])
    assert len(manifest.utterances) == 24
    assert [reject.reason for reject in manifest.rejects] == ["emotion bored is not one of happy sad"]
    code, _, err = job("train", "--data", tmp_path, "--model", "cnn1d", "--epochs", "1", "--output", "run")
    assert (code, err) == (0, ""), err
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["per_corpus"].keys() == {"mine"}
