import os
import shutil
import signal
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from local_cluster import descendants

from ser_ray.base.errors import UserError
from ser_ray.base.workers import Workers, plan_workers
from ser_ray.experiment.protocols import SplitConfig
from ser_ray.experiment.splits import split
from ser_ray.features.arrays import decode_features, shape_of
from ser_ray.model.examples import Examples
from ser_ray.model.speakers import Speakers, listen
from ser_ray.networks.cnn1d import Cnn1dSpec
from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
from ser_ray.speech.emotions import LabelSet
from ser_ray.store.rows import open_rows
from ser_ray.training import fit, worker_rows
from ser_ray.training.frames import FrameAugment
from ser_ray.training.learner import Learner
from ser_ray.training.loop import Work
from ser_ray.training.settings import Compute, FrameAugmentConfig, TrainConfig
from ser_ray.training.task import Method, Place, Task

HERE = Workers(1, False, {"CPU": 4})

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(autouse=True)
def threads():
    """Training in this process sets how many threads it has."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def make_task(store, root, fold=0, network=None, **settings):
    rows, network = open_rows(store), network or Cnn1dSpec()
    parts = split(rows, LabelSet(), SplitConfig(fold=fold))
    changes = FrameAugmentConfig() if network.changes_frames else None
    method = Method(network, rows.recipe.features, parts.labels, TrainConfig.usual(network, **settings), changes)
    return Task(method, parts.train, parts.validation, str(root))


def train(
    store, root, on_epoch=lambda epoch: None, seen=None, in_process=False, compute=None, should_stop=None, **settings
):
    seen, shared = [] if seen is None else seen, None

    def note(epoch):
        seen.append(epoch["epoch"])
        on_epoch(epoch)

    if in_process:
        shared = worker_rows.share_rows(open_rows(store), LabelSet())
    place = Place(Compute(**{"num_workers": "1", **(compute or {})}), here=HERE if in_process else None)
    task = replace(make_task(store, root, **settings), should_stop=should_stop)
    fitted = fit.train(task, place, note, shared)
    epochs = [epoch["epoch"] for epoch in fitted.history]
    assert list(dict.fromkeys(seen)) == epochs[len(epochs) - len(set(seen)) :]
    return fitted


def weights(fitted):
    return torch.cat([tensor.flatten() for tensor in fitted.network.state_dict().values()])


@pytest.fixture(scope="module")
def whole(made_store, tmp_path_factory):
    """Four epochs that nothing disturbed."""
    return train(made_store, tmp_path_factory.mktemp("whole"), epochs=4, seed=3)


def test_training_in_this_process_is_the_same_as_by_a_worker_of_ray_train(made_store, whole, tmp_path):
    here = train(made_store, tmp_path / "here", in_process=True, epochs=4, seed=3)
    assert torch.equal(weights(here), weights(whole)) and here.best_epoch == whole.best_epoch
    for name in ("train_loss", "validation_uar", "learning_rate"):
        assert [epoch[name] for epoch in here.history] == [epoch[name] for epoch in whole.history]
    assert not (tmp_path / "here").exists()


def test_what_goes_wrong_in_showing_an_epoch_is_not_lost(made_store, tmp_path):
    def fail(epoch):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        train(made_store, tmp_path, fail, epochs=1)


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
    """It is the second network that it trains; the first, which is done, is not trained again."""
    ended, killed, seen = tmp_path / "ended", [], []

    def wait_after_the_second():  # in the worker, which would be done before it is killed
        with ended.open("a") as file:
            file.write(".")
        while len(ended.read_text()) == 2:
            time.sleep(0.05)
        return False

    def kill_after_the_second(epoch):
        seen.append((epoch["task"], epoch["epoch"]))
        if seen[-1] == (1, 2) and not killed:
            killed.extend(pid for pid, name in descendants(os.getpid()).items() if "RayTrainWorker" in name)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    tasks = [
        replace(make_task(made_store, tmp_path / str(k), epochs=epochs, seed=3), names={"task": k})
        for k, epochs in enumerate((1, 4))
    ]
    tasks[1] = replace(tasks[1], should_stop=wait_after_the_second)
    fitted = list(fit.train_many(tasks, Place(Compute("1")), kill_after_the_second))
    assert killed and [k for k, _ in fitted] == [0, 1] and torch.equal(weights(fitted[1][1]), weights(whole))
    again = [epoch for i, epoch in enumerate(seen) if epoch in seen[:i]]
    assert [*dict.fromkeys(seen)] == [(0, 1), *((1, epoch) for epoch in (1, 2, 3, 4))]
    assert again in ([], [(1, 3)]), "at most the epoch it was at is lost"


@pytest.mark.parametrize("in_process", [False, True])
def test_a_diverging_run_stops_and_says_so(made_store, tmp_path, in_process):
    kept = "$" if in_process else r" \(the last good checkpoint is kept\)$"
    with pytest.raises(UserError, match=f"NaN, infinite or above 100; lower --learning-rate{kept}"):
        train(made_store, tmp_path, in_process=in_process, epochs=3, learning_rate=1e30)


@pytest.mark.parametrize(
    "network",
    [(Cnn1dSpec(), False), (LogMelResNetSpec(width=4), False), (LogMelResNetSpec(width=4), True)],
    ids=lambda network: f"{network[0].name}-{network[1]}",
)
def test_streamed_rows_give_the_losses_of_rows_in_memory(made_store, made_frames, network, tmp_path):
    """In the order of the shards, without shuffling; the statistics that standardize them agree too."""
    spec, speaker_norm = network
    store = {"cnn1d": made_store, "log_mel_resnet": made_frames}[spec.name]
    task = make_task(store, tmp_path, network=spec, batch_size=16)
    rows, method = task.train, task.method
    speakers = None
    if speaker_norm:
        speakers = Speakers(worker_rows.usual_speech(rows), listen(open_rows(store)))
    in_memory = Examples.from_rows(rows, LabelSet(), speakers)
    dataset = worker_rows.stream_rows(worker_rows.find_places(rows), shuffle=False)

    def names_of(table):
        """Clips and their features, which tell a clip from its changed copies."""
        values, offsets = decode_features(table["features"])
        features = (values[start:end].tobytes() for start, end in pairwise(offsets))
        return list(zip(table["utterance_id"].to_pylist(), features, strict=True))

    streamed = dataset.iterator().iter_batches(batch_size=None, batch_format="pyarrow")
    names = [name for table in streamed for name in names_of(table)]
    wanted = names_of(rows.table(["utterance_id"]).append_column("features", rows.features()))
    assert sorted(names) == sorted(wanted) and len(names) > 16 and len(set(names)) == len(names)
    order = torch.tensor([wanted.index(name) for name in names])
    batches = -(-len(order) // 16)
    counts = torch.zeros(len(rows.corpora), 8, dtype=torch.long)
    counts.index_put_((in_memory.groups, in_memory.targets), torch.tensor(1), accumulate=True)
    assert torch.equal(torch.from_numpy(task.counts()), counts)
    work = Work(
        **{"method": method, "train": None, "validation": np.zeros(0, np.int64), "counts": task.counts()},
        **{"corpora": rows.corpora, "statistics": None, "speakers": speakers, "start": None, "threads": 1},
        **{"compile": False, "should_stop": None},
    )

    def losses(source):
        torch.manual_seed(0)
        model = spec.build(shape_of(method.features.arrow_type()), 8)
        model.standardize.set(*worker_rows.measure_rows(rows))
        augment = None
        if method.changes:
            augment = FrameAugment(method.changes, method.features, model.standardize.mean_F.clone(), 0)
        learner = Learner(model, method.config, counts, augment)
        return [learner.train_epoch(epoch, source(), batches) for epoch in (1, 2, 3)]

    there = losses(lambda: ((in_memory, index) for index in order.tensor_split(batches)))

    def buffers():
        return dataset.iterator().iter_batches(batch_size=worker_rows.BUFFER, batch_format="pyarrow")

    streamed = losses(lambda: worker_rows.stream_batches(buffers(), work, torch.device("cpu")))
    assert streamed == pytest.approx(there, rel=1e-6)
    mean_F, std_F = worker_rows.measure_rows(rows)
    values = Examples.from_rows(rows, LabelSet()).values.double()
    assert torch.allclose(mean_F, values.mean(0), atol=1e-6) and torch.allclose(std_F, values.std(0, correction=0))


def test_rows_beyond_the_memory_budget_are_streamed(made_store, tmp_path, capsys):
    fitted = train(made_store, tmp_path, epochs=2, compute={"memory_gb": 0.0, "num_workers": "2"})
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


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", fit.CXX)), reason="needs a C++ compiler")
def test_compiled_and_in_bfloat16_training_is_nearly_the_same(made_store, tmp_path):
    plain, bf16, compiled = (
        train(made_store, tmp_path / name, epochs=2, **how)
        for name, how in (
            ("plain", {"in_process": True}),
            ("bf16", {"in_process": True, "precision": "bf16"}),
            ("compiled", {"precision": "bf16", "compute": {"compile": True}}),
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
        train(made_store, tmp_path, epochs=1, compute={"compile": True})


def test_folds_of_other_labels_have_targets_of_their_own(made_store, tmp_path):
    """As those of leave-one-corpus-out: a class has another number in each."""
    first = make_task(made_store, tmp_path)
    labels = LabelSet(("neutral", "happy", "sad"))
    parts = split(open_rows(made_store), labels, SplitConfig())
    second = replace(first, method=replace(first.method, labels=labels), train=parts.train, validation=parts.validation)
    for start, task in zip(fit._deal([first, second], Place(Compute("1")), None, 1), (first, second), strict=True):
        (one,), targets = start.assignments, ray.get(start.examples)["targets"]
        emotions = task.train["emotion"].to_pylist()
        assert targets[one.work.train].tolist() == [task.method.labels.index(emotion) for emotion in emotions]


@pytest.mark.parametrize("how", ["members", "folds", "here"])
def test_several_that_train_on_shared_rows_end_as_each_alone(made_store, tmp_path, how):
    tasks = []
    for k in (0, 1):
        task = make_task(made_store, tmp_path / f"{how}-{k}", fold=k if how == "folds" else 0, epochs=2, seed=3 + k)
        if k and how != "folds":  # the second member learns from all, and nothing validates it
            task = replace(task, train=task.rows, validation=task.validation.take(np.zeros(0, int)))
        tasks.append(replace(task, names={"task": k}))
    at_once, shared = (2 if how == "folds" else 1), None
    place = Place(Compute("1"), share=at_once, here=HERE if how == "here" else None)
    if how == "here":
        shared = worker_rows.share_rows(tasks[0].rows.union(tasks[1].rows), LabelSet())
    told = []
    together = dict(fit.train_many(tasks, place, told.append, shared, at_once))
    assert [sorted(epoch["epoch"] for epoch in told if epoch["task"] == k) for k in (0, 1)] == [[1, 2], [1, 2]]
    for k, task in enumerate(tasks):  # on rows of its own, by as many threads
        alone = fit.train(task, Place(here=Workers(1, False, {"CPU": 4 / at_once})), told.append)
        assert torch.equal(weights(together[k]), weights(alone)) and together[k].best_epoch == alone.best_epoch
        for name in ("train_loss", "learning_rate", *(["validation_uar"] if len(task.validation) else [])):
            assert [epoch[name] for epoch in together[k].history] == [epoch[name] for epoch in alone.history]
    assert not torch.equal(weights(together[0]), weights(together[1]))
