import librosa
import numpy as np
import pytest
import torch

from ser_ray.base.errors import UserError
from ser_ray.features.banks import mel_frequencies
from ser_ray.features.log_mel import LogMel
from ser_ray.model.examples import Examples
from ser_ray.model.views import Views, shift_pitch, stretch
from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
from ser_ray.training.frames import FrameAugment, mix, uniform
from ser_ray.training.settings import FrameAugmentConfig

CONFIG = LogMel()
NOTHING = dict(window_s=1.6, stretch=0, pitch=0, noise=0, gain=0, mask_s=0, mask_bands=0, mixup=0)


def augment(values, offsets, index, epoch=1, seed=0, **strengths):
    changes = FrameAugment(FrameAugmentConfig(**{**NOTHING, **strengths}), CONFIG, torch.full((64,), -50.0), seed)
    keys = torch.arange(len(offsets) - 1) + 1000
    zeros = torch.zeros_like(keys)
    examples = Examples(values, torch.tensor(offsets), zeros, keys, zeros, framed=True)
    return changes(examples, torch.tensor(index), epoch)


@pytest.fixture(scope="module")
def clips():
    """Three clips of 100, 37 and 260 frames."""
    offsets = [0, 100, 137, 397]
    return torch.randn(397, 64, generator=torch.Generator().manual_seed(0)) * 10 - 50, offsets


def tone(hz, seconds=2.0):
    """The log-mel spectrogram of a tone."""
    waveform = 0.1 * np.sin(2 * np.pi * hz * np.arange(int(16_000 * seconds)) / 16_000)
    (frames,) = CONFIG.kernel().rows(waveform.astype(np.float32), "tone", ["none"], 0)
    return torch.from_numpy(frames)


def test_without_changes_a_window_is_a_turn_of_the_clip(clips):
    values, offsets = clips
    for clip, window in enumerate(augment(values, offsets, [0, 1, 2], window_s=1.6)):
        own = values[offsets[clip] : offsets[clip + 1]]
        assert window.shape == (100, 64)
        assert (window.amax() <= own.amax() + 1e-4) and (window.amin() >= own.amin() - 1e-4)
        if len(own) <= 100:  # all of it is there, and what follows its end is its beginning
            assert torch.allclose(window[: len(own)].mean(0), own.mean(0), atol=1e-3)
            assert torch.allclose(window[len(own) :], window[: 100 - len(own)], atol=1e-3)


def test_changes_depend_on_seed_epoch_and_clip_only(clips):
    everything = dict(stretch=0.2, pitch=2, gain=6, mask_s=0.3, mask_bands=8)
    together = augment(*clips, [0, 1, 2], **everything)
    assert torch.equal(augment(*clips, [2, 1], **everything), together[[2, 1]])
    assert not torch.allclose(augment(*clips, [0], epoch=2, **everything)[0], together[0])
    assert not torch.allclose(augment(*clips, [0], seed=1, **everything)[0], together[0])


def test_stretch_changes_the_pace():
    """A ramp of one dB a frame has the slope of the drawn speed."""
    ramp = torch.arange(1000.0)[:, None].expand(-1, 64).contiguous()
    slopes = augment(ramp.repeat(200, 1), list(range(0, 200_001, 1000)), list(range(200)), stretch=0.25)
    slopes = slopes.diff(dim=1).median(1).values[:, 0]
    assert 0.8 <= slopes.min() < 0.85 and 1.2 < slopes.max() <= 1.2501


def test_pitch_moves_a_tone():
    frames = tone(1000)
    shifted = augment(frames.repeat(50, 1), list(range(0, 50 * len(frames) + 1, len(frames))), list(range(50)), pitch=4)
    centers = torch.tensor(mel_frequencies(64, 8000))
    heard = centers[shifted.mean(1).argmax(1)]
    step = centers[15] / centers[14]
    assert heard.min() > 1000 * 2 ** (-4 / 12) / step and heard.max() < 1000 * 2 ** (4 / 12) * step
    assert heard.min() < 900 and heard.max() > 1100


def test_noise_comes_at_the_drawn_ratio():
    """On a tone, which leaves most bands empty, the power that is added lies 5 to 35 dB below that of the tone."""
    frames = tone(1000)
    added = augment(
        frames.repeat(200, 1), list(range(0, 200 * len(frames) + 1, len(frames))), list(range(200)), noise=0.5
    )
    power = (10 ** (added / 10)).mean((1, 2)) / (10 ** (frames / 10)).mean() - 1
    noisy = power > 1e-4
    assert 0.4 < noisy.float().mean() < 0.6
    snr = -10 * power[noisy].log10()
    assert snr.min() > 4 and snr.max() < 37 and snr.max() - snr.min() > 20


def test_gain_and_masks_stay_in_their_bounds(clips):
    values = torch.zeros(100 * 300, 64)
    offsets, index = list(range(0, 30_001, 100)), list(range(300))
    gains = augment(values, offsets, index, gain=6)
    assert torch.allclose(gains.std((1, 2)), torch.zeros(300)) and 5 < gains.max() <= 6 and -6 <= gains.min() < -5
    masked = augment(values, offsets, index, mask_s=0.3) == -50
    assert masked.all(2).sum(1).max() <= 2 * 20 and masked.any(2).sum(1).float().mean() > 10
    masked = augment(values, offsets, index, mask_bands=8) == -50
    assert masked.all(1).sum(1).max() <= 2 * 9 and masked.any(1).sum(1).float().mean() > 4


def test_mixup_mixes_labels_as_it_mixes_clips():
    x, target, weight = mix(torch.arange(4.0)[:, None, None].expand(4, 5, 6), torch.eye(4), torch.arange(1.0, 5), 0.5)
    assert torch.allclose(target.sum(1), torch.ones(4))
    assert torch.allclose(x[:, 0, 0], target @ torch.arange(4.0))
    assert torch.allclose(weight, target @ torch.arange(1.0, 5))
    assert (target.diag() >= 0.5).all()


def test_hashed_numbers_are_uniform_and_independent():
    numbers = uniform(torch.arange(1000)[:, None], 7, torch.arange(100))
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers, 20, 0, 1)
    assert ((counts - 5000) ** 2 / 5000).sum() < 45  # chi square, 19 degrees of freedom: 0.1 %
    for other in (numbers.roll(1, 0), numbers.roll(1, 1)):
        assert abs(torch.corrcoef(torch.stack([numbers.flatten(), other.flatten()]))[0, 1]) < 0.015


def test_bands_stand_where_librosa_puts_them():
    for bands, highest in ((64, 8000.0), (128, 11_025.0), (10, 900.0)):
        expected = librosa.mel_frequencies(bands + 2, fmin=0, fmax=highest)[1:-1]
        np.testing.assert_allclose(mel_frequencies(bands, highest), expected, rtol=1e-12)


@pytest.mark.parametrize("wrong", [{"noise": 1.5}, {"gain": -1}, {"window_s": 0}, {"mask_s": 2}, {"pitch": 100}])
def test_senseless_strengths_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong)).replace("_", "-")):
        FrameAugmentConfig(**wrong)


def test_an_answer_is_the_mean_over_copies_whatever_stands_beside_the_clip():
    torch.manual_seed(0)
    spec = LogMelResNetSpec(width=4)
    network = spec.build((None, CONFIG.n_mels), 4).eval()
    views = Views(network, CONFIG, spec.views)
    lengths, clips = torch.tensor([1, 40, 101]), 10 * torch.randn(3, 101, CONFIG.n_mels)
    together = views(clips, lengths)
    alone = torch.cat([views(clips[i : i + 1, :n], lengths[i : i + 1]) for i, n in enumerate(lengths.tolist())])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together, network(clips, lengths), atol=1e-2)
    listened = []
    network.register_forward_pre_hook(lambda _, inputs: listened.append(inputs[1].tolist()))
    views(clips, lengths)
    assert listened == [[1, 40, 101], [1, 46, 118], [1, 34, 86], [1, 40, 101], [1, 40, 101]]


def test_another_speed_is_linear_between_frames():
    ramp = torch.arange(50.0)[None, :, None].expand(1, 50, 3)
    slower, lengths = stretch(ramp, torch.tensor([50]), 0.8)
    assert lengths.tolist() == [62] and torch.allclose(slower[0, :, 0], 0.8 * torch.arange(62), atol=1e-4)


def test_a_higher_voice_has_its_peak_in_a_higher_band():
    centers = torch.tensor(mel_frequencies(CONFIG.n_mels, CONFIG.sample_rate / 2), dtype=torch.float32)
    clip = -((centers - 2000) / 500).square()[None, None].expand(1, 5, -1)
    higher = shift_pitch(clip, torch.tensor([1.5]), centers)
    assert centers[higher[0, 0].argmax()] == pytest.approx(3000, rel=0.05)
    assert torch.equal(shift_pitch(clip, torch.tensor([1.0]), centers), clip)
