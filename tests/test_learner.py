"""Training without Ray: steps, epochs, and what is kept of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ser_ray.base.errors import UserError
from ser_ray.features.log_mel import LogMel
from ser_ray.model.examples import FRAMES, Examples, predict_logits
from ser_ray.networks.cnn1d import Cnn1dSpec
from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
from ser_ray.training.batches import MAX_RARITY, deal_batches, loss_weights
from ser_ray.training.frames import FrameAugment
from ser_ray.training.learner import Learner, best_epoch, is_over
from ser_ray.training.settings import Compute, FrameAugmentConfig, TrainConfig
from ser_ray.training.step import Group

BANDS, CLASSES = 16, 4


def make_clips(count=24, seed=0):
    """Clips of 20 to 60 frames; the class is told by the loudest bands."""
    draw = np.random.default_rng(seed)
    targets = torch.from_numpy(draw.integers(0, CLASSES, count))
    clips = [torch.from_numpy(draw.normal(-40, 5, (draw.integers(20, 60), BANDS))).float() for _ in range(count)]
    for clip, target in zip(clips, targets.tolist(), strict=True):
        clip[:, 4 * target : 4 * target + 4] += 10
    offsets = torch.tensor([0, *np.cumsum([len(clip) for clip in clips])])
    keys = torch.from_numpy(draw.integers(-(2**62), 2**62, count))
    return Examples(torch.cat(clips), offsets, targets, keys, torch.zeros_like(keys), framed=True)


def make_learner(clips, config=None, network=None, **options):
    config = config or TrainConfig.usual(LogMelResNetSpec, epochs=6, batch_size=8, seed=5)
    torch.manual_seed(config.seed)
    network = network or LogMelResNetSpec(width=4).build((None, BANDS), CLASSES)
    network.standardize.set(*clips.statistics(torch.arange(len(clips))))
    features = LogMel(n_mels=BANDS)
    changes = FrameAugmentConfig(window_s=0.5, mask_s=0.1, mask_bands=2)
    augment = FrameAugment(changes, features, network.standardize.mean_F.clone(), config.seed)
    counts = torch.stack([torch.bincount(clips.targets[clips.groups == g], minlength=CLASSES) for g in (0, 1)])
    return Learner(network, config, counts, **{"augment": augment, **options})


def train(learner, clips, *epochs):
    """Train and return the losses."""
    losses = []
    for epoch in epochs:
        batches = deal_batches(torch.arange(len(clips)), learner.config, epoch, learner.group.rank, learner.group.world)
        losses.append(learner.train_epoch(epoch, ((clips, index) for index in batches), len(batches)))
    return losses


def weights(network):
    return torch.cat([tensor.flatten().double() for tensor in network.state_dict().values()])


def test_it_learns_what_can_be_learned():
    clips = make_clips(64)
    learner = make_learner(clips, TrainConfig.usual(LogMelResNetSpec, epochs=12, batch_size=8, ema=0.9))
    train(learner, clips, *range(1, 13))
    assert learner.validate(make_clips(64, seed=1))["validation_uar"] > 0.8  # by chance 0.25


@pytest.mark.parametrize("spec", [LogMelResNetSpec(width=4), Cnn1dSpec()], ids=lambda spec: spec.name)
def test_what_goes_on_from_a_checkpoint_ends_as_what_was_never_stopped(spec, tmp_path):
    clips, shape, options = make_clips(), (None, BANDS), {}
    if spec.name == "cnn1d":
        clips = replace(clips, values=torch.randn(24, BANDS), offsets=torch.arange(25), framed=False)
        shape, options = (BANDS,), {"augment": None}

    def fresh():
        torch.manual_seed(1)
        network = spec.build(shape, CLASSES)
        return make_learner(clips, TrainConfig.usual(spec, epochs=4, batch_size=8), network, **options)

    whole, first, second = fresh(), fresh(), fresh()
    losses = [(train(whole, clips, epoch), whole.validate(clips)) for epoch in range(1, 5)]
    for epoch in (1, 2):
        train(first, clips, epoch)
        first.validate(clips)
    tensors, rest = first.state()
    safetensors.torch.save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "state")
    second.load_state(safetensors.torch.load_file(tmp_path / "state"), json.loads(json.dumps(rest)))
    assert [(train(second, clips, epoch), second.validate(clips)) for epoch in (3, 4)] == losses[2:]
    assert torch.equal(weights(second.step.network), weights(whole.step.network))
    assert torch.equal(weights(second.averaged), weights(whole.averaged))


def test_the_loss_of_five_steps_is_pinned():
    clips = make_clips(40)
    learner = make_learner(clips, TrainConfig.usual(LogMelResNetSpec, epochs=2, batch_size=8, seed=0))
    (loss,) = train(learner, clips, 1)
    assert learner.step.count == 5
    assert loss == pytest.approx(1.517285, rel=1e-4)


class Frozen(nn.Module):
    """A network whose batch normalization stays as it is."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.network = LogMelResNetSpec(width=4, dropout=0.0).build((None, BANDS), CLASSES).double()
        self.standardize = self.network.standardize

    def forward(self, *args):
        return self.network(*args)

    def train(self, mode=True):
        return super().train(False)


def _train_as_rank(rank, world, folder):
    torch.set_num_threads(1)
    clips = make_clips(48)
    clips.values = clips.values.double()
    group = Group(rank, world)
    if world > 1:
        store = torch.distributed.FileStore(f"{folder}/meet", world)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
        group = Group(rank, world, DistributedDataParallel)
    config = TrainConfig.usual(LogMelResNetSpec, epochs=5, batch_size=12 // world, weight_decay=0.1)
    learner = make_learner(clips, config, Frozen(), augment=None, group=group)
    train(learner, clips, *range(1, 6))
    assert learner.step.count == 20
    result = {"weights": weights(learner.step.network)}
    if rank:  # what each rank knows of the statistics of batch normalization is its own
        for buffer in learner.averaged.buffers():
            buffer.add_(1)
    scores = learner.validate(clips, torch.arange(41))
    result["scores"] = torch.tensor([*scores.values()])
    safetensors.torch.save_file(result, f"{folder}/{world}-{rank}")
    if world > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()  # its threads must not outlive the interpreter


def test_two_workers_do_what_one_does_with_the_summed_batch(tmp_path):
    _train_as_rank(0, 1, tmp_path)
    torch.multiprocessing.spawn(_train_as_rank, (2, tmp_path), nprocs=2)
    one, first, second = (safetensors.torch.load_file(tmp_path / name) for name in ("1-0", "2-0", "2-1"))
    assert torch.allclose(one["weights"], first["weights"], rtol=1e-9, atol=1e-11)
    assert torch.allclose(one["scores"], first["scores"], rtol=1e-5) and torch.equal(first["scores"], second["scores"])


def test_examples_are_taken_shared_and_measured():
    clips = make_clips()
    some = clips.take(torch.tensor([7, 0, 3]))
    for here, there in enumerate((7, 0, 3)):
        assert torch.equal(some.batch(torch.tensor([here]))[0], clips.batch(torch.tensor([there]))[0])
    assert torch.equal(some.keys, clips.keys[[7, 0, 3]])
    again = Examples.from_arrays(clips.arrays())
    assert vars(again).keys() == vars(clips).keys() and again.framed is clips.framed is some.framed is True
    assert all(torch.equal(getattr(again, name), getattr(clips, name)) for name in vars(clips).keys() - {"framed"})
    mean_F, std_F = clips.statistics(torch.arange(len(clips)))
    assert torch.allclose(mean_F, clips.values.double().mean(0))
    assert torch.allclose(std_F, clips.values.double().std(0, correction=0))


def test_answers_come_in_order_from_batches_of_few_frames(monkeypatch):
    clips = make_clips(30)
    network = make_learner(clips).step.network
    alone_NC = torch.cat([predict_logits(network, clips, torch.tensor([i])) for i in range(len(clips))])
    sizes = []
    network.register_forward_hook(lambda module, given, answer: sizes.append(tuple(given[0].shape[:2])))
    monkeypatch.setitem(FRAMES, "cpu", 160)
    assert torch.allclose(predict_logits(network, clips), alone_NC, atol=1e-5)
    assert sum(count for count, _ in sizes) == len(clips) and {frames for _, frames in sizes} == {32, 64}
    assert all(count * frames <= 160 for count, frames in sizes)
    sizes.clear()
    monkeypatch.setitem(FRAMES, "cpu", 1)  # a long clip is answered all the same
    assert torch.allclose(predict_logits(network, clips), alone_NC, atol=1e-5) and len(sizes) == len(clips)


def test_rare_classes_weigh_more_where_asked():
    clips = make_clips(40)
    clips.targets = torch.tensor([0] * 30 + [1] * 10)
    alike, balanced = (make_learner(clips, TrainConfig(balance=balance)).batcher.weight_GC for balance in (0.0, 1.0))
    assert torch.allclose(alike[0, :2], torch.ones(2))
    assert balanced[0, 1] / balanced[0, 0] == pytest.approx(3)
    assert balanced[0, clips.targets].mean() == pytest.approx(1)


def test_weights_keep_the_corpus_from_telling_the_emotion():
    clips = make_clips(60)
    clips.targets = torch.tensor([0] * 30 + [1] * 10 + [1] * 15 + [2] * 5)
    clips.groups = torch.tensor([0] * 40 + [1] * 20)
    by_corpus, by_all = (
        make_learner(clips, TrainConfig(balance=1.0, balance_by=by)).batcher.weight_GC[clips.groups, clips.targets]
        for by in ("corpus", "all")
    )
    for group, classes in ((0, (0, 1)), (1, (1, 2))):
        totals = [by_corpus[(clips.groups == group) & (clips.targets == c)].sum() for c in classes]
        assert totals[0] == pytest.approx(totals[1])
        assert by_corpus[clips.groups == group].mean() == pytest.approx(1)
    totals = [by_all[clips.targets == c].sum() for c in (0, 1, 2)]
    assert totals == pytest.approx([20, 20, 20])
    stray = loss_weights(torch.tensor([[1000, 1]]), 1.0, "corpus")
    assert stray[0, 1] / stray[0, 0] == pytest.approx(MAX_RARITY)


def test_ranks_share_an_epoch():
    rows, config = torch.arange(100, 123), TrainConfig(batch_size=4)
    whole = torch.cat(deal_batches(rows, config, 1))
    assert sorted(whole.tolist()) == list(range(100, 123))
    dealt = [deal_batches(rows, config, 1, rank, 3) for rank in range(3)]
    assert [[len(batch) for batch in batches] for batches in dealt] == [[4, 4]] * 3
    assert set(torch.cat([batch for batches in dealt for batch in batches]).tolist()) == set(range(100, 123))
    assert torch.equal(torch.cat(dealt[1])[:7], whole[1::3][:7])
    assert not torch.equal(torch.cat(deal_batches(rows, config, 2)), whole)
    for count in (2, 3, 5, 33):  # batch statistics need several clips
        assert min(map(len, deal_batches(rows[:count], replace(config, batch_size=2), 1))) >= 2


def test_one_cycle_rises_and_falls():
    learner = make_learner(make_clips(), TrainConfig.usual(LogMelResNetSpec, learning_rate=1.0))
    rates = []
    for progress in np.linspace(0, 1, 101):
        learner.step.pace(progress)
        rates.append(learner.step.optimizer.param_groups[0]["lr"])
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=101, pct_start=26 / 101, final_div_factor=1e9
    )
    expected = []
    for _ in range(101):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step() if len(expected) < 101 else None
    np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_training_is_over_when_it_should_be():
    def history(*values, name):
        return [{name: value} for value in values]

    config = TrainConfig(epochs=5, patience=2)
    losses = history(3.0, 2.0, 2.5, 2.1, name="validation_loss")
    assert [is_over(losses[:n], config) for n in range(5)] == [False, False, False, False, True]
    assert best_epoch(losses, "validation_loss") == 2
    scores = history(0.3, 0.5, 0.5, name="validation_uar")
    assert best_epoch(scores, "validation_uar") == 2
    unvalidated = history(3.0, 2.0, name="train_loss")
    assert best_epoch(unvalidated, "validation_loss") == 2 and best_epoch([], "validation_loss") == 0
    assert not is_over(unvalidated * 2, config) and is_over(unvalidated * 3, config)
    assert is_over(scores * 2, TrainConfig(epochs=6, patience=50, monitor="validation_uar"))


@pytest.mark.parametrize(
    "settings",
    [
        *({"epochs": 0}, {"learning_rate": 0.0}, {"batch_size": -1}, {"schedule": "cosine"}),
        *({"monitor": "loss"}, {"ema": 1.0}, {"label_smoothing": -0.1}),
    ],
)
def test_senseless_settings_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings)).replace("_", "-")):
        TrainConfig(**settings)


def test_a_senseless_device_is_refused():
    with pytest.raises(UserError, match="device"):
        Compute(device="tpu")
