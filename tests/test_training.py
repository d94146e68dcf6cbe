import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from local_cluster import descendants

from ser_ray.base.errors import UserError
from ser_ray.base.workers import Workers, plan_workers
from ser_ray.experiment.splits import SplitConfig, split
from ser_ray.features.settings import FeatureConfig
from ser_ray.model.examples import COLUMNS, Examples
from ser_ray.networks.models import ModelConfig, build
from ser_ray.speech.emotions import LabelSet
from ser_ray.training import worker_rows as training_data
from ser_ray.training.fit import CXX, fit
from ser_ray.training.frames import FrameAugment, FrameAugmentConfig
from ser_ray.training.learner import Learner, TrainConfig
from ser_ray.training.worker_rows import corpora_of, speakers_of, stream_rows

pytestmark = pytest.mark.usefixtures("local_ray")


def train(store, root, on_epoch=lambda epoch: None, seen=None, in_process=False, **settings):
    config = TrainConfig(**{"num_workers": "1", **settings})
    parts = split(store.rows(), LabelSet(), SplitConfig())
    seen = [] if seen is None else seen

    def note(epoch):
        seen.append(epoch["epoch"])
        on_epoch(epoch)

    what = store, parts, LabelSet(), ModelConfig("cnn1d"), config, FrameAugmentConfig(), str(root), note
    if in_process:
        shared = training_data.share_rows(store, np.arange(store.rows().num_rows), LabelSet())
        threads = torch.get_num_threads()
        try:
            fitted = fit(*what, shared=shared, here=Workers(1, False, {"CPU": 4}))
        finally:
            torch.set_num_threads(threads)
    else:
        fitted = fit(*what)
    epochs = [epoch["epoch"] for epoch in fitted.history]
    assert list(dict.fromkeys(seen)) == epochs[len(epochs) - len(set(seen)) :]
    return fitted


def weights(fitted):
    return torch.cat([tensor.flatten() for tensor in fitted.network.state_dict().values()])


def test_training_in_this_process_is_the_same_as_by_a_worker_of_ray_train(made_store, tmp_path):
    here = train(made_store, tmp_path / "here", in_process=True, epochs=2, seed=3)
    with pytest.raises(UserError, match=r"lower --learning-rate$"):
        train(made_store, tmp_path / "diverging", in_process=True, epochs=3, learning_rate=1e30)
    there = train(made_store, tmp_path / "there", epochs=2, seed=3)
    assert torch.equal(weights(here), weights(there)) and here.best_epoch == there.best_epoch
    for name in ("train_loss", "validation_uar", "learning_rate"):
        assert [epoch[name] for epoch in here.history] == [epoch[name] for epoch in there.history]
    assert not (tmp_path / "here").exists()


def test_what_goes_wrong_in_showing_an_epoch_is_not_lost(made_store, tmp_path):
    def fail(epoch):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        train(made_store, tmp_path, fail, epochs=1)


@pytest.fixture(scope="module")
def whole(made_store, tmp_path_factory):
    """Four epochs that nothing disturbed."""
    return train(made_store, tmp_path_factory.mktemp("whole"), epochs=4, seed=3)


def test_an_interrupted_run_ends_as_an_undisturbed_one(made_store, whole, tmp_path):
    train(made_store, tmp_path / "parts", epochs=2, seed=3)
    parts = train(made_store, tmp_path / "parts", epochs=4, seed=3)
    assert [epoch["epoch"] for epoch in parts.history] == [1, 2, 3, 4]
    for name in ("train_loss", "validation_loss", "validation_uar", "learning_rate"):
        assert [epoch[name] for epoch in parts.history] == [epoch[name] for epoch in whole.history]
    assert parts.best_epoch == whole.best_epoch
    assert torch.equal(weights(parts), weights(whole))
    assert whole.history[-1]["train_loss"] < whole.history[0]["train_loss"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_a_killed_worker_is_replaced_and_the_run_ends_as_an_undisturbed_one(made_store, whole, tmp_path):
    killed = []

    def kill_after_the_second(epoch):
        if epoch["epoch"] == 2 and not killed:
            killed.extend(pid for pid, name in descendants(os.getpid()).items() if "RayTrainWorker" in name)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    seen = []
    disturbed = train(made_store, tmp_path / "disturbed", kill_after_the_second, seen, epochs=4, seed=3)
    assert killed and torch.equal(weights(disturbed), weights(whole))
    again = [epoch for i, epoch in enumerate(seen) if epoch in seen[:i]]
    assert [*dict.fromkeys(seen)] == [1, 2, 3, 4] and again in ([], [3]), "at most the epoch it was at is lost"


def test_a_diverging_run_stops_and_says_so(made_store, tmp_path):
    with pytest.raises(UserError, match="NaN, infinite or above 100; lower --learning-rate"):
        train(made_store, tmp_path, epochs=3, learning_rate=1e30)


@pytest.mark.parametrize(
    "network",
    [ModelConfig("cnn1d"), ModelConfig(width=4), ModelConfig(width=4, speaker_norm=True)],
    ids=lambda config: f"{config.model}-{config.speaker_norm}",
)
def test_streamed_rows_give_the_losses_of_rows_in_memory(made_store, made_frames, network):
    """In the order of the shards, without shuffling; the statistics that standardize them agree too."""
    store = {"cnn1d": made_store, "log_mel_resnet": made_frames}[network.model]
    parts, corpora = split(store.rows(), LabelSet(), SplitConfig()), corpora_of(store)
    rows = store.rows(COLUMNS).take(parts.train)
    speakers = speakers_of(store, network, parts.train, np.arange(store.rows().num_rows))
    in_memory = Examples.from_rows(rows, LabelSet(), corpora, speakers)
    dataset = stream_rows(store, parts.train, shuffle=False)
    names = [(row["utterance_id"], row["augmentation"]) for row in dataset.iter_rows()]
    wanted = list(zip(rows["utterance_id"].to_pylist(), rows["augmentation"].to_pylist(), strict=True))
    assert sorted(names) == sorted(wanted) and len(names) > 16
    order = torch.tensor([wanted.index(name) for name in names])
    batches = -(-len(order) // 16)
    features, config = FeatureConfig(**store.info()["features"]), TrainConfig.for_model(network.model, batch_size=16)
    counts = torch.zeros(len(corpora), 8, dtype=torch.long)
    counts.index_put_((in_memory.groups, in_memory.targets), torch.tensor(1), accumulate=True)

    def losses(source):
        torch.manual_seed(0)
        model = build(network, features.num_features, 8)
        model.standardize.set(*training_data.statistics(store, parts.train))
        augment = None
        if features.kind == "log_mel":
            augment = FrameAugment(FrameAugmentConfig(), features, model.standardize.mean_F.clone(), 0)
        learner = Learner(model, config, counts, augment, 0.2 if augment else 0.0)
        return [learner.train_epoch(epoch, source(), batches) for epoch in (1, 2, 3)]

    there = losses(lambda: ((in_memory, index) for index in order.tensor_split(batches)))

    def buffers():
        return dataset.iterator().iter_batches(batch_size=training_data.BUFFER, batch_format="pyarrow")

    what = LabelSet(), corpora, 16, torch.device("cpu"), None, speakers
    streamed = losses(lambda: training_data.batches(buffers(), *what))
    assert streamed == pytest.approx(there, rel=1e-6)
    mean_F, std_F = training_data.statistics(store, parts.train)
    values = Examples.from_rows(rows, LabelSet()).values.double()
    assert torch.allclose(mean_F, values.mean(0), atol=1e-6) and torch.allclose(std_F, values.std(0, correction=0))


def test_rows_beyond_the_memory_budget_are_streamed(made_store, tmp_path, capsys):
    fitted = train(made_store, tmp_path, epochs=2, memory_gb=0.0, num_workers="2")
    assert "more than --memory-gb, so they are streamed" in capsys.readouterr().out
    assert len(fitted.history) == 2 and fitted.history[1]["train_loss"] < fitted.history[0]["train_loss"]


def test_workers_fit_the_cluster():
    assert plan_workers("auto", "auto").resources == {"CPU": 4}
    assert plan_workers("2", "cpu").resources == {"CPU": 2}
    assert plan_workers("4", "cpu", others=0.5).resources == {"CPU": 0.875}
    assert plan_workers("1:3", "cpu").count == (1, 3)
    for wish, device, reason in (
        *(("9", "cpu", "9 CPUs are needed and this cluster has 4"), ("1", "cuda", "1 GPU is needed")),
        *(("two", "cpu", "--num-workers two"), ("3:1", "cpu", "MIN:MAX"), ("0", "cpu", "a number from 1")),
    ):
        with pytest.raises(UserError, match=reason):
            plan_workers(wish, device)


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", CXX)), reason="needs a C++ compiler")
def test_compiled_and_in_bfloat16_training_is_nearly_the_same(made_store, tmp_path):
    plain, bf16, compiled = (
        train(made_store, tmp_path / name, epochs=2, **how)
        for name, how in (
            ("plain", {"in_process": True}),
            ("bf16", {"in_process": True, "precision": "bf16"}),
            ("compiled", {"precision": "bf16", "compile": True}),
        )
    )
    for one, *others in zip(plain.history, bf16.history, compiled.history, strict=True):
        losses = [epoch["train_loss"] for epoch in (one, *others)]
        assert len(set(losses)) == 3  # compiled code rounds in fewer places
        assert losses[1:] == pytest.approx([losses[0]] * 2, rel=0.05)
    assert compiled.network.state_dict().keys() == plain.network.state_dict().keys()


def test_compiling_without_a_compiler_is_refused(made_store, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="--compile needs a C\\+\\+ compiler"):
        train(made_store, tmp_path, epochs=1, compile=True)
