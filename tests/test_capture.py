"""Steps that are captured: what a CUDA graph sees of them, tried on the CPU by what records and replays like one."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from test_learner import BANDS, CLASSES, make_clips, make_learner, weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ser_ray.features.log_mel import LogMel
from ser_ray.features.summary import Summary
from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
from ser_ray.training import step as steps
from ser_ray.training.batches import deal_batches
from ser_ray.training.capture import WARM_UP, Captured
from ser_ray.training.loop import _why_not_captured
from ser_ray.training.optimizer import TensorAdamW
from ser_ray.training.settings import FrameAugmentConfig, TrainConfig
from ser_ray.training.step import Group

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Tape(TorchDispatchMode):
    """Records operations with the tensors and numbers that they were given, as a CUDA graph does kernels."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing. It waits")
        given = operation(*args, **(kwargs or {}))
        self.operations.append((operation, args, kwargs or {}, given))
        return given

    def replay(self):
        """Do all of it again, on the memory that it was done on; what was new then is written where it was."""
        for operation, args, kwargs, given in self.operations:
            again = operation(*args, **kwargs)
            for old, new in zip(tree_leaves(given), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapeRecorder:
    """In place of CUDA graphs. Recording on a tape takes the step, so that the first replay only gives its loss."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def run(self, step, watch):
        return step()

    def record(self, step):
        with Tape() as tape:
            loss = step()
        self.recorded += 1
        fresh = True

        def replay():
            nonlocal fresh
            if not fresh:
                with torch.no_grad():
                    tape.replay()
                self.replayed += 1
            fresh = False
            return loss

        return replay


class Plainly(TapeRecorder):
    """Takes every step as usual, from the buffers that a graph would read."""

    def record(self, step):
        self.recorded += 1
        return step


@pytest.fixture
def by_tensors(monkeypatch):
    """Steps on the CPU as they are on a GPU: what differs between them stands in tensors."""
    monkeypatch.setattr(steps, "BY_TENSORS", ("cpu",))


def train(learner, clips, *epochs):
    losses = []
    for epoch in epochs:
        batches = deal_batches(torch.arange(len(clips), device=clips.targets.device), learner.config, epoch)
        losses.append(learner.train_epoch(epoch, ((clips, index) for index in batches), len(batches)))
    return losses


def configure(**changes):
    return TrainConfig.usual(LogMelResNetSpec, **{"epochs": 6, "batch_size": 8, "seed": 5, **changes})


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_steps_from_static_buffers_are_the_usual_ones_to_the_bit(precision):
    """43 clips come in batches of eight and of seven."""
    clips, config = make_clips(43), configure(precision=precision)
    usual, buffered = make_learner(clips, config), make_learner(clips, config)
    recorder = Plainly()
    buffered.take = Captured(buffered.take, recorder)
    assert train(usual, clips, 1, 2, 3, 4) == train(buffered, clips, 1, 2, 3, 4)
    assert recorder.recorded == 2 and not buffered.refusal
    assert torch.equal(weights(usual.averaged), weights(buffered.averaged))


@pytest.mark.parametrize(
    "changes", [{}, {"schedule": "plateau", "ema": 0.0}, {"precision": "bf16"}], ids=["one-cycle", "plateau", "bf16"]
)
def test_a_recorded_step_follows_epoch_draws_learning_rate_momentum_and_decay(by_tensors, changes):
    clips, config = make_clips(43), configure(**changes)
    usual, recorded = make_learner(clips, config), make_learner(clips, config)
    recorder = TapeRecorder()
    recorded.take = Captured(recorded.take, recorder)
    losses = []
    for learner in (usual, recorded):
        losses.append([])
        for epoch in (1, 2, 3, 4):
            losses[-1] += [*train(learner, clips, epoch), *learner.validate(clips).values()]
    assert recorder.recorded == 2 and recorder.replayed == 4 * 6 - 2 * (WARM_UP + 1)
    assert losses[0] == losses[1]
    assert torch.equal(weights(usual.step.network), weights(recorded.step.network))
    assert torch.equal(weights(usual.averaged), weights(recorded.averaged))


def test_what_goes_on_from_a_checkpoint_is_recorded_anew(by_tensors, tmp_path):
    clips, config = make_clips(40), configure(epochs=4)
    whole, first, second = (make_learner(clips, config) for _ in range(3))
    for learner in (whole, first, second):
        learner.take = Captured(learner.take, TapeRecorder())
    losses = train(whole, clips, 1, 2, 3, 4)
    train(first, clips, 1, 2)
    tensors, rest = first.state()
    safetensors.torch.save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "state")
    second.load_state(safetensors.torch.load_file(tmp_path / "state"), json.loads(json.dumps(rest)))
    assert train(second, clips, 3, 4) == losses[2:]
    assert torch.equal(weights(second.averaged), weights(whole.averaged))


def test_a_step_that_waits_for_the_device_is_taken_as_usual_and_says_so(by_tensors):
    clips = make_clips(40)
    usual, waiting = make_learner(clips, configure()), make_learner(clips, configure())
    for learner in (usual, waiting):
        learner.step.running.register_forward_hook(lambda module, given, logits: logits * float(logits.new_ones(())))
    waiting.take = Captured(waiting.take, TapeRecorder())
    assert train(usual, clips, 1)[0] == pytest.approx(train(waiting, clips, 1)[0], rel=0.1)
    assert waiting.refusal == "operation not permitted when stream is capturing"
    assert waiting.step.count == usual.step.count == 5


def test_a_mistake_in_a_step_is_none_of_recording():
    clips = make_clips(40)
    learner = make_learner(clips, configure())

    def fail(*args):
        raise RuntimeError("shapes do not match")

    learner.take = Captured(fail, TapeRecorder())
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(learner, clips, 1)


def test_what_is_not_captured_on_a_gpu_has_a_reason():
    def why(world=1, **work):
        method = SimpleNamespace(features=work.pop("features", LogMel()), changes=work.pop("changes", None))
        return _why_not_captured(SimpleNamespace(method=method, train=work.get("train", [0])), Group(0, world))

    assert why(changes=FrameAugmentConfig()) == why(features=Summary()) == ""
    assert why() == "clips differ in length" and why(train=None) == "rows are streamed"
    assert why(world=2) == "several workers share each step"


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_numbers_in_tensors_make_the_steps_of_torch(decay):
    torch.manual_seed(0)
    theirs = [torch.randn(5, 7, requires_grad=True), torch.randn(7, requires_grad=True)]
    ours = [tensor.detach().clone().requires_grad_() for tensor in theirs]
    groups = [
        [{"params": [w], "weight_decay": d} for w, d in zip(ws, (decay, 0.0), strict=True)] for ws in (theirs, ours)
    ]
    reference, tried = torch.optim.AdamW(groups[0], lr=1e-2, fused=True), TensorAdamW(groups[1], 1e-2)
    for i in range(20):
        rate, momentum = 1e-2 / (1 + i), 0.95 - 0.005 * i
        for optimizer, tensors in ((reference, theirs), (tried, ours)):
            for group in optimizer.param_groups:
                group["lr"], group["betas"] = rate, (momentum, 0.999)
            optimizer.zero_grad()
            sum((w.sin() * (i + 1)).square().sum() for w in tensors).backward()
        tried.pace()
        reference.step()
        tried.step()
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(theirs, ours, strict=True))
    tried.load_state_dict(reference.state_dict())  # a training goes on elsewhere
    assert all(
        torch.equal(tried.state[b]["exp_avg"], reference.state[a]["exp_avg"]) for a, b in zip(theirs, ours, strict=True)
    )


@pytest.fixture
def exactly(monkeypatch):
    """Convolutions that give the same each time, in full float32: else two trainings differ whether captured or not."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on_gpu(clips, **changes):
    return make_learner(clips, configure(**changes), LogMelResNetSpec(width=8).build((None, BANDS), CLASSES).cuda())


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("precision", "close"), [("float32", 1e-4), ("bf16", 3e-2)])
def test_a_captured_training_agrees_with_one_that_is_not(exactly, precision, close):
    clips = make_clips(203).to(torch.device("cuda"))
    usual, captured = (on_gpu(clips, precision=precision, batch_size=16) for _ in range(2))
    captured.step.network.load_state_dict(usual.step.network.state_dict())
    captured.averaged.load_state_dict(usual.averaged.state_dict())
    captured.take = Captured(captured.take)
    losses = [train(learner, clips, 1, 2, 3) for learner in (usual, captured)]
    assert losses[1] == pytest.approx(losses[0], rel=close)
    assert not captured.refusal and all(size.replay for size in captured.take._sizes.values())
    scores = [learner.validate(clips) for learner in (usual, captured)]
    assert scores[1]["validation_loss"] == pytest.approx(scores[0]["validation_loss"], rel=10 * close)


@pytest.mark.gpu
@needs_gpu
def test_a_network_that_waits_for_the_gpu_trains_on_uncaptured():
    clips = make_clips(160).to(torch.device("cuda"))
    waiting = on_gpu(clips)
    waiting.step.running.register_forward_hook(lambda module, given, logits: logits * float(logits.new_ones(())))
    waiting.take = Captured(waiting.take)
    losses = train(waiting, clips, 1, 2)
    assert waiting.refusal and all(torch.tensor(losses).isfinite())


@pytest.mark.gpu
@needs_gpu
def test_a_capture_that_fails_leaves_training_as_it_was(exactly):
    """What the first steps do not show is found when it is recorded."""
    clips = make_clips(160).to(torch.device("cuda"))
    learner, usual = on_gpu(clips, precision="float32"), on_gpu(clips, precision="float32")
    learner.step.network.load_state_dict(usual.step.network.state_dict())
    learner.averaged.load_state_dict(usual.averaged.state_dict())

    def fail(take, *args):
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        return take(*args)

    learner.take = Captured(partial(fail, learner.take))
    losses = [train(one, clips, 1, 2) for one in (usual, learner)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert "not permitted when stream is capturing" in learner.refusal


@pytest.mark.gpu
@needs_gpu
def test_answers_on_the_gpu_are_those_of_the_cpu():
    from ser_ray.model.examples import predict_logits

    clips = make_clips(100)
    network = make_learner(clips).step.network
    there = torch.softmax(predict_logits(network.cuda(), clips.to(torch.device("cuda"))), 1).cpu()
    here = torch.softmax(predict_logits(network.cpu(), clips), 1)
    assert torch.allclose(there, here, atol=1e-4)


@pytest.mark.gpu
@needs_gpu
def test_an_encoder_gives_on_the_gpu_the_states_that_it_gives_on_the_cpu(tmp_path):
    from test_encoders import speech, write_whisper

    from ser_ray.features.encoder import Encoder
    from ser_ray.features.kernels.encoder import EncoderKernel

    encoder = Encoder(write_whisper(tmp_path / "whisper"))
    clips = [(speech(seconds, seed), str(seed)) for seed, seconds in enumerate((0.5, 2.0, 4.0, 1.9, 3.96, 0.5))]
    here, there = (EncoderKernel(encoder).to(device).rows_of_clips(clips, ("none",), 0) for device in ("cpu", "cuda"))
    for (one,), (other,) in zip(here, there, strict=True):  # a GPU has its encoder in bfloat16, and pads clips
        assert np.linalg.norm(one - other) < 0.03 * np.linalg.norm(one)


STEPS = ["tests", "speed", "fold", "encoder", "predict", "folds"]


def check_gpu(folder, python):
    script = Path(__file__).parents[1] / "benchmarks" / "speed" / "gpu.sh"
    env = {**os.environ, "PYTHON": str(python)}
    return subprocess.run(["bash", script, folder, *STEPS], capture_output=True, text=True, env=env)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_its_checks_say_so_and_run_nothing(tmp_path):
    done = check_gpu(tmp_path / "checks", sys.executable)
    assert done.returncode == 2 and done.stdout.count("no GPU") == 6
    assert [path.name for path in (tmp_path / "checks").iterdir()] == ["table.txt"]


@pytest.mark.parametrize(("fails", "code"), [("nothing", 0), ("benchmarks/speed/train.py", 1)])
def test_the_checks_of_a_gpu_end_in_one_table(tmp_path, fails, code):
    """With a stand-in for Python that finds a GPU, and fails at one step."""
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/bin/sh\necho "UAR 50%, 3 passed"\n[ "$1" != "{fails}" ]\n')
    stand_in.chmod(0o755)
    done = check_gpu(tmp_path / "checks", stand_in)
    assert done.returncode == code, done.stdout
    table = [line.split() for line in (tmp_path / "checks" / "table.txt").read_text().splitlines()[1:]]
    assert [words[0] for words in table] == STEPS
    assert [words[1] for words in table] == ["ok", "code" if code else "ok", "ok", "ok", "ok", "ok"]
