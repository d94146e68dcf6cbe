"""On a GPU clips go through an encoder together, padded where their lengths differ; each is as it is alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import torch
from test_encoders import speech, tiny_pipeline, with_transformers, write_wav2vec2, write_whisper

from ser_ray.features.encoder import Encoder
from ser_ray.features.kernels import padding
from ser_ray.features.kernels.encoder import EncoderKernel
from ser_ray.model import answers
from ser_ray.model.windows import Hearing, WindowConfig, as_file
from ser_ray.predict import ahead
from ser_ray.predict.inputs import find_pieces
from ser_ray.predict.voices import open_hearing
from ser_ray.speech.audio import AudioError

CLIPS = [(2.0, 1.0), (1.372, 0.01), (1.96, 0.1), (0.5, 1.0), (2.0, 0.01), (0.04, 1.0)]  # seconds, and how loud


def of_the_hub(kind):
    def write(folder, monkeypatch):
        import transformers

        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = getattr(transformers, f"{kind}Config")(conv_dim=(8,) * 7, num_conv_pos_embedding_groups=2, **sizes)
        getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
        transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
        return str(folder)

    return write


def of_torchaudio(factory, norm):
    def write(folder, monkeypatch):
        folder.mkdir()
        network = tiny_pipeline(monkeypatch, factory, "tiny.pth", norm)
        torch.save(network.state_dict(), folder / "tiny.pth")
        return str(folder / "tiny.pth")

    return write


KINDS = {
    "whisper": lambda folder, _: write_whisper(folder),
    "wav2vec2, group": lambda folder, _: write_wav2vec2(folder, "group"),
    "wav2vec2, layer": lambda folder, _: write_wav2vec2(folder, "layer"),
    "hubert": of_the_hub("Hubert"),
    "wavlm": of_the_hub("WavLM"),
    "wav2vec2 of torchaudio, group": of_torchaudio("wav2vec2_model", "group"),
    "wav2vec2 of torchaudio, layer": of_torchaudio("wav2vec2_model", "layer"),
    "wavlm of torchaudio, group": of_torchaudio("wavlm_model", "group"),
    "wavlm of torchaudio, layer": of_torchaudio("wavlm_model", "layer"),
}


@with_transformers
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_clip(kind, tmp_path, monkeypatch):
    """To 1e-4 of each state's scale, whatever is behind a clip; naive padding, for control, changes it by far more."""
    kernel = EncoderKernel(Encoder(KINDS[kind](tmp_path / "encoder", monkeypatch)))
    assert kernel.network.takes_lengths
    clips = [torch.tensor(speech(seconds, seed)) * gain for seed, (seconds, gain) in enumerate(CLIPS)]
    cut = [clip_T[: kernel._whole_frames(len(clip_T))] for clip_T in clips]
    with torch.inference_mode():
        alone_NSD = torch.cat([kernel._hear_together([clip_T]) for clip_T in cut])
        together_NSD = kernel._hear_together(cut)
        naive_NSD = kernel.pool(torch.nn.utils.rnn.pad_sequence(cut, batch_first=True))
        again_NSD = torch.cat([kernel._hear_together([clip_T]) for clip_T in cut])
    scale_NS1 = alone_NSD.square().mean(2, keepdim=True).sqrt()
    assert ((together_NSD - alone_NSD).abs() <= 1e-4 * scale_NS1).all()
    assert ((naive_NSD - alone_NSD).abs() > 1e-2 * scale_NS1)[3].any()
    assert torch.equal(again_NSD, alone_NSD)  # nothing of a padded batch is left behind


@with_transformers
def test_an_encoder_that_cannot_keep_padding_out_hears_clips_of_one_length(tmp_path, monkeypatch):
    """Several convolutions of data2vec-audio meet what is behind a clip."""
    kernel = EncoderKernel(Encoder(of_the_hub("Data2VecAudio")(tmp_path, monkeypatch)))
    assert not kernel.network.takes_lengths


def test_batches_are_of_nearly_one_length_on_a_gpu_and_of_one_elsewhere(tmp_path, monkeypatch):
    kernel = EncoderKernel(Encoder(write_whisper(tmp_path)))
    whole, batches = kernel._hear_together, []

    def hear(waveforms):
        batches.append([len(waveform_T) // 320 for waveform_T in waveforms])
        return whole(waveforms)

    monkeypatch.setattr(kernel, "_hear_together", hear)
    clips = [(speech(frames / 50, frames), str(frames)) for frames in (50, 100, 98, 20, 100, 96)]
    alone = kernel.rows_of_clips(clips, ("none",), 0)
    assert batches == [[100, 100], [98], [96], [50], [20]]
    batches.clear()
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    monkeypatch.setattr(torch, "tensor", lambda values, **_: torch.as_tensor(values))
    kernel.device = "cuda"  # by name alone
    together = kernel.rows_of_clips(clips, ("none",), 0)
    assert batches == [[100, 100, 98, 96, 50], [20]]  # of the first less than an eighth is padding
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one[0], other[0], atol=2e-3)


def test_a_batch_holds_what_memory_allows_and_little_padding():
    assert padding.count_alike([10, 10, 9, 9, 5], most=1000, padded=1 / 8) == 4
    assert padding.count_alike([10, 10, 9, 9, 5], most=30, padded=1 / 8) == 3
    assert padding.count_alike([10, 10, 9], most=1000, padded=0.0) == 2
    assert padding.count_alike([10, 10], most=5, padded=0.0) == 1


def test_windows_of_a_recording_go_through_an_encoder_on_a_gpu_in_batches(tmp_path, monkeypatch):
    """With a stand-in, which is on the CPU; the last window is shorter, and one is silent."""
    features = Encoder(write_whisper(tmp_path))
    kernel, sizes = EncoderKernel(features), []
    whole = kernel.rows_of_clips
    monkeypatch.setattr(answers, "_kernel", lambda *_: kernel)
    monkeypatch.setattr(kernel, "rows_of_clips", lambda clips, *more: sizes.append(len(clips)) or whole(clips, *more))
    sound_T = speech(19.5)
    sound_T[16_000:32_000] = 0
    hearing = Hearing(as_file(sound_T, 16_000), WindowConfig(1.0), features)
    alone = list(answers._features(features, hearing, "cpu"))
    assert sizes == [1] * 19
    sizes.clear()
    together = list(answers._features(features, hearing, "cuda"))
    assert sizes == [16, 3]
    assert [place for place, _ in together] == [place for place, _ in alone] == [0, *range(2, 20)]
    for (_, one), (_, other) in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)
    monkeypatch.setattr(kernel, "rows_of_clips", lambda clips, *_: [ValueError("no number")] * len(clips))
    with pytest.raises(ValueError, match="no number"):
        list(answers._features(features, hearing, "cuda"))


def test_short_recordings_go_through_an_encoder_on_a_gpu_together(tmp_path, monkeypatch):
    """With a stand-in, which is on the CPU; one of them is no sound, one is silent, and one too large to wait for."""
    features = Encoder(write_whisper(tmp_path / "encoder"))
    kernel, sizes = EncoderKernel(features), []
    whole = kernel.rows_of_clips
    monkeypatch.setattr(answers, "_kernel", lambda *_: kernel)
    monkeypatch.setattr(kernel, "rows_of_clips", lambda clips, *more: sizes.append(len(clips)) or whole(clips, *more))
    sounds = [speech(1.5), speech(2.5, 1), np.zeros(8_000, np.float32), speech(1.2, 2), speech(7, 3), speech(0.8, 4)]
    for number, sound_T in enumerate(sounds):
        sf.write(tmp_path / f"{number}.wav", sound_T, 16_000, subtype="FLOAT")
    (tmp_path / "0a.wav").write_text("no sound")
    monkeypatch.setattr(ahead, "SHORT_BYTES", 300_000)
    monkeypatch.setattr(ahead, "WINDOWS", 5)
    pieces = find_pieces([str(tmp_path / "*.wav")])
    models = [SimpleNamespace(place=SimpleNamespace(type="cuda"))]
    opening = ahead.Ahead(SimpleNamespace(features=[features], models=models), WindowConfig(1.0), pieces)
    found = {}
    for piece in pieces:
        try:
            hearing, file = opening.open(piece)
        except AudioError:
            found[piece.path] = "refused"
            continue
        with file:
            found[piece.path] = list(answers._features(features, hearing, "cuda"))
            alone = list(answers._features(features, open_hearing(piece, WindowConfig(1.0), features)[0], "cpu"))
        assert [place for place, _ in found[piece.path]] == [place for place, _ in alone]
        for (_, one), (_, other) in zip(found[piece.path], alone, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-3)
    assert [type(rows) for rows in found.values()] == [list, str, *[list] * 5]
    assert [size for size in sizes if size > 1] == [2 + 3, 0 + 2, 7]  # windows; those heard alone are of one each
