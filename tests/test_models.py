import pytest
import torch

from ser_ray.base.errors import UserError
from ser_ray.experiment.flags import parse_experiment
from ser_ray.features.log_mel import LogMel
from ser_ray.model.examples import Examples
from ser_ray.model.model import Model
from ser_ray.networks.cnn1d import Cnn1dSpec
from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
from ser_ray.networks.modules.cnn1d import Cnn1d, _max_pool_same
from ser_ray.networks.spec import find_network
from ser_ray.speech.emotions import parse_labels


def test_cnn1d_is_the_recipe():
    network = Cnn1dSpec().build((162,), 8)
    assert sum(p.numel() for p in network.parameters()) == 886_504
    assert network.dense.in_features == 704
    assert network(torch.randn(3, 162)).shape == (3, 8)


def test_pooling_pads_as_tensorflow_same_does():
    x = torch.tensor([[[[1.0, 5.0, 2.0, 0.0, 3.0, 4.0]]]])  # length 6: one zero left, two right; windows at -1, 1, 3
    assert _max_pool_same(x).tolist() == [[[[5.0, 5.0, 4.0]]]]
    negative = torch.full((1, 1, 1, 5), -2.0)
    assert (_max_pool_same(negative) == -2).all()  # the padding never wins


def test_input_is_standardized_by_training_rows():
    network = Cnn1d(4, 2)
    rows = torch.tensor([[1.0, 10, 5, 0], [3.0, 30, 5, 0]])
    network.standardize.set(rows.mean(0), rows.std(0, correction=0))
    assert torch.allclose(network.standardize(rows), torch.tensor([[-1.0, -1, 0, 0], [1.0, 1, 0, 0]]))
    assert "standardize.mean_F" in network.state_dict()


def test_an_unknown_model_is_named():
    with pytest.raises(UserError, match=r"resnet99.*cnn1d"):
        find_network("resnet99")


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_a_clips_logits_do_not_depend_on_the_padding_beside_it(pooling):
    torch.manual_seed(0)
    network = LogMelResNetSpec(width=8, depth=2, pooling=pooling).build((None, 64), 8).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    lengths, clips = torch.tensor([1, 7, 50, 101, 188]), torch.randn(5, 188, 64)
    together = network(clips, lengths)
    alone = torch.cat([network(clips[i : i + 1, :n]) for i, n in enumerate(lengths.tolist())])
    assert torch.allclose(together, alone, atol=1e-5)


def test_what_is_the_same_in_all_of_a_clip_is_missing_from_the_second_channel():
    torch.manual_seed(0)
    network = LogMelResNetSpec(width=4).build((None, 16), 4).eval()
    heard = []
    network.stem.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    clips, colour = torch.randn(2, 40, 16), 3 * torch.randn(16)
    for clip in (clips, clips + colour):
        network(clip, torch.tensor([40, 25]))
    assert not torch.allclose(heard[0][:, 0], heard[1][:, 0], atol=1)
    assert torch.allclose(heard[0][:, 1], heard[1][:, 1], atol=1e-5)
    assert (heard[0][1, :, 25:] == 0).all()  # beyond the clip's own frames


def test_a_model_answers_by_the_mean_of_its_members():
    torch.manual_seed(0)
    spec = LogMelResNetSpec(width=4)
    members = [spec.build((None, 16), 4).eval() for _ in range(3)]
    clips, lengths = torch.randn(2, 40, 16), torch.tensor([40, 25])
    expected = sum(member(clips, lengths) for member in members) / 3
    zeros = torch.zeros(2, dtype=torch.long)
    frames = torch.cat([clip[:length] for clip, length in zip(clips, lengths, strict=True)])
    examples = Examples(frames, torch.tensor([0, 40, 65]), zeros, zeros, zeros, framed=True)
    model = Model(members, spec, LogMel(n_mels=16), parse_labels(["neutral", "happy", "sad", "angry"]))
    assert torch.allclose(model.logits(examples), expected, atol=1e-6)


def test_narrow_networks_train():
    """Strided 1 x 1 convolutions of few channels crashed in oneDNN's backward pass."""
    network = LogMelResNetSpec(width=8).build((None, 64), 8)
    network(torch.randn(8, 100, 64)).sum().backward()


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"width": 2}, "--width"), ({"dropout": 1.0}, "--dropout"), ({"pooling": "max"}, "--pooling max")],
)
def test_senseless_networks_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        LogMelResNetSpec(**settings)
    with pytest.raises(UserError, match="--width is for --model log_mel_resnet"):
        parse_experiment(["--model", "cnn1d", "--width", "64"], "Train.")
