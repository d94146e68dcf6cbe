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
from ser_ray.networks.modules.cnn1d import Cnn1d
from ser_ray.speech.emotions import LabelSet
from ser_ray.store.rows import open_rows
from ser_ray.training import fit, worker_rows
from ser_ray.training.frames import FrameAugment
from ser_ray.training.learner import Learner
from ser_ray.training.loop import Work
from ser_ray.training.settings import Compute, FrameAugmentConfig, TrainConfig
from ser_ray.training.task import Method, Place, Task

HERE = Workers(1, False, {"CPU": 2})
BY_WORKER = Place(Compute("1"), share=2)  # of Ray Train, with as many threads

pytestmark = pytest.mark.usefixtures("local_ray")
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


@pytest.fixture(autouse=True)
def threads():
    """Training in this process sets how many threads it has."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def make_task(store, root, fold=0, network=None, copies=False, **settings):
    rows, network = open_rows(store), network or Cnn1dSpec()
    rows = rows if copies else rows.take(rows.among("augmentation", ["none"]))
    parts = split(rows, LabelSet(), SplitConfig(fold=fold))
    changes = FrameAugmentConfig() if network.changes_frames else None
    method = Method(network, rows.recipe.features, parts.labels, TrainConfig.usual(network, **settings), changes)
    return Task(method, parts.train, parts.validation, str(root))


def name_tasks(*tasks):
    return [replace(task, names={"task": k}) for k, task in enumerate(tasks)]


def train_here(store, root, compile=False, **settings):
    return fit.train(make_task(store, root, **settings), Place(Compute(compile=compile), here=HERE), [].append)


def weights(fitted):
    return torch.cat([tensor.flatten() for tensor in fitted.network.state_dict().values()])


@pytest.fixture(scope="module")
def tasks(made_store, tmp_path_factory):
    """Four trainings on shared rows.

    A whole one; one of another fold; a second member, which learns from all and which nothing validates; and the first
    two epochs of the whole one.
    """
    root = tmp_path_factory.mktemp("tasks")
    whole, half = (make_task(made_store, root / f"epochs-{epochs}", epochs=epochs, seed=3) for epochs in (4, 2))
    fold, member = (make_task(made_store, root / f"fold-{k}", fold=k, epochs=2, seed=4) for k in (1, 0))
    member = replace(member, train=member.rows, validation=member.validation.take(np.zeros(0, int)))
    return name_tasks(whole, fold, member, half)


@pytest.fixture(scope="module")
def by_workers(tasks):
    """What two workers of Ray Train give, each of which does two of the trainings in turn, and what they told."""
    told = []
    return dict(fit.train_many(tasks, BY_WORKER, told.append, at_once=2)), told


@pytest.fixture(scope="module")
def whole(by_workers):
    """Four epochs that nothing disturbed."""
    return by_workers[0][0]


def assert_same(one, other, validated=True):
    assert torch.equal(weights(one), weights(other)) and one.best_epoch == other.best_epoch
    for name in ("train_loss", "learning_rate", *(("validation_loss", "validation_uar") if validated else ())):
        assert [epoch[name] for epoch in one.history] == [epoch[name] for epoch in other.history]


@pytest.mark.parametrize("number", [0, 1, 2], ids=["whole", "fold", "member"])
def test_training_in_this_process_is_the_same_as_by_a_worker_of_ray_train(by_workers, tasks, tmp_path, number):
    """On rows of its own, and without a checkpoint."""
    fitted, told = by_workers
    here = fit.train(replace(tasks[number], root=str(tmp_path / "here")), Place(here=HERE), [].append)
    assert_same(here, fitted[number], validated=number != 2)
    assert not (tmp_path / "here").exists()
    epochs = [epoch["epoch"] for epoch in told if epoch["task"] == number]
    assert epochs == [epoch["epoch"] for epoch in here.history] == list(range(1, 3 if number else 5))


def test_several_that_train_in_this_process_on_shared_rows_end_as_each_alone(by_workers, tasks, tmp_path):
    pair = [replace(task, root=str(tmp_path)) for task in tasks[1:3]]
    shared, told = worker_rows.share_rows(pair[0].rows.union(pair[1].rows), LabelSet()), []
    (_, fold), (_, member) = fit.train_many(pair, Place(here=HERE), told.append, shared)
    assert [(epoch["task"], epoch["epoch"]) for epoch in told] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert_same(fold, by_workers[0][1])
    assert_same(member, by_workers[0][2], validated=False)
    assert not torch.equal(weights(fold), weights(member))


@pytest.fixture(scope="module")
def gone_on(by_workers, tasks, made_store, tmp_path_factory):
    """What the training of two epochs comes to where it goes on to four, and the failure to show one of another."""
    told = []

    def show(epoch):
        told.append(epoch)
        if epoch["task"] == 1:
            raise BrokenPipeError

    other = make_task(made_store, tmp_path_factory.mktemp("shown"), epochs=1)
    todo = name_tasks(replace(tasks[0], root=tasks[3].root), other)
    trainings = fit.train_many(todo, BY_WORKER, show)
    _, fitted = next(trainings)
    with pytest.raises(Exception) as failure:
        next(trainings)
    return fitted, told, failure


def test_an_interrupted_run_ends_as_an_undisturbed_one(gone_on, whole):
    fitted, told, _ = gone_on
    assert [epoch["epoch"] for epoch in told if epoch["task"] == 0] == [3, 4]
    assert [epoch["epoch"] for epoch in fitted.history] == [1, 2, 3, 4]
    assert_same(fitted, whole)
    assert whole.history[-1]["train_loss"] < whole.history[0]["train_loss"]


def test_what_goes_wrong_in_showing_an_epoch_is_not_lost(gone_on):
    assert isinstance(gone_on[2].value, BrokenPipeError)


@pytest.fixture(scope="module")
def replaced(made_store, tmp_path_factory):
    """What comes of trainings whose worker is killed in the second of them, while the third diverges.

    Returns:
        What the first two give, of which epochs was told, whom the kill hit, and why it ended.
    """
    root, killed, seen = tmp_path_factory.mktemp("replaced"), [], []
    ended = root / "ended"

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

    first, second = (make_task(made_store, root / str(epochs), epochs=epochs, seed=3) for epochs in (1, 4))
    second = replace(second, should_stop=wait_after_the_second)
    third = make_task(made_store, root / "diverges", epochs=3, learning_rate=1e30)
    trainings = fit.train_many(name_tasks(first, second, third), BY_WORKER, kill_after_the_second)
    fitted = [next(trainings), next(trainings)]
    with pytest.raises(UserError) as diverged:
        next(trainings)
    return fitted, seen, killed, str(diverged.value)


@needs_proc
def test_a_killed_worker_is_replaced_and_the_run_ends_as_an_undisturbed_one(replaced, whole):
    """It is the second network that it trains; the first, which is done, is not trained again."""
    fitted, seen, killed, _ = replaced
    assert killed and [k for k, _ in fitted] == [0, 1] and torch.equal(weights(fitted[1][1]), weights(whole))
    again = [epoch for i, epoch in enumerate(seen) if epoch in seen[:i]]
    assert [*dict.fromkeys(seen)] == [(0, 1), *((1, epoch) for epoch in (1, 2, 3, 4))]
    assert again in ([], [(1, 3)]), "at most the epoch it was at is lost"


@pytest.mark.parametrize("in_process", [pytest.param(False, marks=needs_proc), True])
def test_a_diverging_run_stops_and_says_so(made_store, tmp_path, request, in_process):
    says = "the loss became NaN, infinite or above 100; lower --learning-rate"
    if in_process:
        with pytest.raises(UserError, match=f"^{says}$"):
            train_here(made_store, tmp_path, epochs=3, learning_rate=1e30)
    else:
        assert request.getfixturevalue("replaced")[3] == f"{says} (the last good checkpoint is kept)"


@pytest.mark.parametrize(
    "network",
    [(Cnn1dSpec(), False), (LogMelResNetSpec(width=4), False), (LogMelResNetSpec(width=4), True)],
    ids=lambda network: f"{network[0].name}-{network[1]}",
)
def test_streamed_rows_give_the_losses_of_rows_in_memory(made_store, made_frames, network, tmp_path):
    """In the order of the shards, without shuffling; the statistics that standardize them agree too."""
    spec, speaker_norm = network
    store = {"cnn1d": made_store, "log_mel_resnet": made_frames}[spec.name]
    task = make_task(store, tmp_path, network=spec, copies=True, batch_size=16)
    rows, method = task.train, task.method
    speakers = None
    if speaker_norm:
        speakers = Speakers.of(rows.recipe.features, worker_rows.usual_speech(rows), listen(open_rows(store)))
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
    place, told = Place(Compute("2", memory_gb=0.0)), []
    fitted = fit.train(make_task(made_store, tmp_path, copies=True, epochs=2), place, told.append)
    assert [epoch["epoch"] for epoch in told] == [1, 2]
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
def test_compiled_and_in_bfloat16_training_is_nearly_the_same(made_store, tmp_path, monkeypatch):
    monkeypatch.setattr(Cnn1d, "CHANNELS", (16,))  # each layer takes its time to compile
    monkeypatch.setattr(Cnn1d, "DROPOUTS", (0.0,))
    plain, bf16, compiled = (
        train_here(made_store, tmp_path, epochs=2, **how)
        for how in ({}, {"precision": "bf16"}, {"precision": "bf16", "compile": True})
    )
    for one, *others in zip(plain.history, bf16.history, compiled.history, strict=True):
        losses = [epoch["train_loss"] for epoch in (one, *others)]
        assert len(set(losses)) == 3  # compiled code rounds in fewer places
        assert losses[1:] == pytest.approx([losses[0]] * 2, rel=0.05)
    assert compiled.network.state_dict().keys() == plain.network.state_dict().keys()


def test_compiling_without_a_compiler_is_refused(made_store, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="--compile needs a C\\+\\+ compiler"):
        fit.train(make_task(made_store, tmp_path, epochs=1), Place(Compute("1", compile=True)), [].append)


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
