"""Pretrained encoders as features, and a probe on them; the encoders are tiny and drawn by the tests."""

import importlib.util
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import soundfile as sf
import torch

import ser_ray
from ser_ray.base.errors import UserError
from ser_ray.experiment.experiment import Experiment
from ser_ray.features.arrays import decode_features
from ser_ray.features.encoder import Encoder
from ser_ray.features.kernels.encoder import EncoderKernel, load_kernel
from ser_ray.features.kernels.whisper import WhisperEncoder
from ser_ray.features.known_encoders import PIPELINES, Pipeline
from ser_ray.features.recipe import FeaturizeConfig, read_recipe
from ser_ray.features.spec import read_features, write_features
from ser_ray.model.encoders import locate_encoders
from ser_ray.model.examples import Examples
from ser_ray.model.speakers import LEAST_PART, USUAL_CLIPS, Known, Speakers, sums_of
from ser_ray.networks.probe import ProbeSpec
from ser_ray.scores.run_folder import RunFolder
from ser_ray.scores.screen import headline
from ser_ray.speech.audio import AudioError
from ser_ray.store.pipeline import _each_task, choose_device, featurize
from ser_ray.store.shards import METADATA
from ser_ray.store.sounds import unpack_sounds
from ser_ray.store.store import Store
from ser_ray.store.task import ShardWriter, read_in_task
from ser_ray.training.batches import Batcher
from ser_ray.training.settings import TrainConfig

WHISPER = {
    **{"model_type": "whisper", "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2},
    **{"encoder_ffn_dim": 32, "num_mel_bins": 80, "max_source_positions": 1500, "activation_function": "gelu"},
}
with_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="the extra `encoders` is not installed"
)


def write_whisper(folder: Path, seed: int = 0, prefix: str = "model.encoder.", **settings) -> str:
    """A folder of a tiny Whisper."""
    torch.manual_seed(seed)
    settings = {**WHISPER, **settings}
    network = WhisperEncoder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    weights = {f"{prefix}{name}": tensor.half() for name, tensor in network.state_dict().items()}
    weights["model.decoder.embed_tokens.weight"] = torch.zeros(4, 4)
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return write_whisper(tmp_path_factory.mktemp("encoders") / "whisper")


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise that swells, full scale 1."""
    draw = np.random.default_rng(seed)
    count = round(seconds * 16_000)
    return (draw.normal(0, 0.1, count) * np.linspace(0.1, 1, count)).astype(np.float32)


def rows_of(kernel, *clips):
    return [kernel.rows(clip, "a/b", ("none",), 0)[0] for clip in clips]


def test_an_encoder_is_known_by_its_weights_wherever_they_lie(whisper, tmp_path):
    encoder = Encoder(whisper)
    assert (encoder.num_states, encoder.width, encoder.library) == (3, 16, "") and len(encoder.digest) == 64
    assert encoder.arrow_type() == pa.list_(pa.list_(pa.float16(), 32), 3)
    moved = Encoder(shutil.copytree(whisper, tmp_path / "moved"))
    other = Encoder(write_whisper(tmp_path / "other", seed=1))
    assert moved == encoder and moved.encoder != encoder.encoder
    prints = [FeaturizeConfig(features).fingerprint() for features in (encoder, moved, other)]
    assert prints[0] == prints[1] != prints[2]
    assert FeaturizeConfig(Encoder(whisper, duration_s=2.0)).fingerprint() != prints[0]
    settings = json.loads(json.dumps(FeaturizeConfig(moved).settings()))
    shutil.rmtree(tmp_path / "moved")
    assert read_recipe(settings).features == encoder  # which needs no folder
    load_kernel.cache_clear()  # an earlier test may have loaded one of the same weights
    lost = r"the encoder moved is not on this machine; it was \S+moved; bring it there, .* or name its new place by"
    with pytest.raises(UserError, match=lost):
        read_recipe(settings).features.kernel()
    write_whisper(tmp_path / "moved", seed=1)
    with pytest.raises(UserError, match="holds another encoder than these features were made by"):
        read_recipe(settings).features.kernel()


def test_weights_are_read_for_their_digest_once_and_not_by_each_worker(whisper, tmp_path, monkeypatch):
    encoder = Encoder(shutil.copytree(whisper, tmp_path / "copy"))
    sent = pickle.loads(pickle.dumps(encoder))
    monkeypatch.setattr("ser_ray.features.encoder_files.hashlib.file_digest", lambda *_: pytest.fail("read again"))
    EncoderKernel(sent)
    monkeypatch.undo()
    write_whisper(tmp_path / "copy", seed=1)  # as on a node that has another encoder there
    with pytest.raises(UserError, match="copy holds another encoder than these features were made by"):
        EncoderKernel(sent)


def test_a_clip_is_the_same_alone_after_others_and_in_any_order(whisper):
    kernel = Encoder(whisper).kernel()
    clips = [speech(seconds, seed) * gain for seed, (seconds, gain) in enumerate([(0.5, 1), (5, 0.01), (1.37, 0.1)])]
    alone = [rows_of(kernel, clip)[0] for clip in clips]
    for row, again in zip(alone, reversed(rows_of(kernel, *reversed(clips))), strict=True):
        assert row.shape == (3, 32) and row.dtype == np.float32 and np.isfinite(row).all()
        assert np.array_equal(row, again)
    assert Encoder(whisper).kernel() is kernel  # which is loaded once
    changed = kernel.rows(clips[0], "a/b", ("none", "noise", "stretch+pitch"), 0)
    assert len(changed) == 3 and not np.allclose(changed[0], changed[1], atol=1e-4)


def test_edges_of_what_an_encoder_hears(whisper):
    kernel = Encoder(whisper, duration_s=30.0).kernel()
    for clip in (speech(0.025), np.zeros(16_000, np.float32), speech(30)):
        assert np.isfinite(rows_of(kernel, clip)[0]).all()
    with pytest.raises(AudioError, match=r"too short for the encoder: 0\.025 s"):
        rows_of(kernel, speech(1)[:399])
    with pytest.raises(AudioError, match=r"too long for the encoder: 31\.0 s, and it takes 30 s"):
        rows_of(kernel, speech(31))
    with pytest.raises(UserError, match="--duration-s must be at most 30 for this encoder, got 31"):
        Encoder(whisper, duration_s=31.0)
    with pytest.raises(UserError, match="--duration-s must be at most 30 for this encoder, got None"):
        Encoder(whisper, duration_s=None)
    with pytest.raises(UserError, match="--sample-rate must be 16000"):
        Encoder(whisper, sample_rate=8_000)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def change(**values):
    def write(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return write


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        ("config.json", Path.unlink, "config.json is missing; bring it there"),
        ("config.json", lambda p: p.write_text("{"), "config.json: Expecting"),
        ("config.json", change(model_type="vit"), "config.json is of vit; choose Whisper, wav2vec2"),
        ("config.json", lambda p: p.write_text('{"d_model": 16}'), "config.json is of no known model; choose Whisper"),
        ("config.json", lambda p: p.write_text('{"model_type": "whisper"}'), "config.json lacks 'encoder_layers'"),
        ("config.json", change(encoder_layers=3), r"the weights lack layers\.2\.\S+, \S+, \S+ and 12 more"),
        ("config.json", change(encoder_ffn_dim=31), r"the weights lack layers\.0\.fc1\.weight"),
        ("config.json", change(activation_function="relu"), "activation relu is not Whisper's gelu"),
        ("model.safetensors", Path.unlink, "the weights are missing; bring model.safetensors or pytorch_model.bin"),
        (
            "model.safetensors",
            cut_short,
            r"model\.safetensors has \d+ of \d+ bytes; bring model.safetensors there again",
        ),
        (
            "model.safetensors",
            lambda p: p.write_bytes(b"version https://git-lfs.github.com"),
            "no safetensors file, or cut",
        ),
        ("model.safetensors", lambda p: p.write_bytes(b""), "no safetensors file, or cut short"),
    ],
)
def test_a_folder_that_cannot_be_used_says_what_to_bring(whisper, tmp_path, name, spoil, says):
    folder = Path(shutil.copytree(whisper, tmp_path / "spoilt"))
    spoil(folder / name)
    with pytest.raises(UserError, match=says) as raised:
        Encoder(str(folder)).kernel()
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_a_name_is_a_folder_or_in_the_hubs_cache(whisper, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match="--encoder openai/whisper-base: there is no such folder on this machine; bring"
    ):
        Encoder("openai/whisper-base")
    with pytest.raises(UserError, match="is a file; name the folder that holds it"):
        Encoder(f"{whisper}/config.json")
    with pytest.raises(
        UserError, match="--encoder WAVLM_HUGE: there is none of this name; torchaudio has WAV2VEC2_BASE"
    ):
        Encoder("WAVLM_HUGE")
    cached = tmp_path / "models--openai--whisper-base"
    shutil.copytree(whisper, cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Whisper\n")
    encoder = Encoder("openai/whisper-base")
    assert encoder == Encoder(whisper) == Encoder("openai/whisper-base@abc")
    assert (encoder.model, encoder.revision, encoder.licence) == ("openai/whisper-base", "abc", "apache-2.0")
    with pytest.raises(UserError, match="--encoder openai/whisper-base@v2: there is no such folder"):
        Encoder("openai/whisper-base@v2")
    (cached / "refs" / "v2").write_text("abc")
    assert Encoder("openai/whisper-base@v2").revision == "abc"


def test_weights_alone_are_read_from_a_pickle(whisper, tmp_path):
    folder = Path(shutil.copytree(whisper, tmp_path / "bin"))
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    same = rows_of(Encoder(str(folder)).kernel(), speech(1))[0]
    np.testing.assert_array_equal(same, rows_of(Encoder(whisper).kernel(), speech(1))[0])

    class Payload:
        def __reduce__(self):
            return Path.touch, (tmp_path / "run",)

    for data in (pickle.dumps({"x": Payload()}), pickle.dumps([Payload()] * 1000), b"nothing " * 1000):
        (folder / "pytorch_model.bin").write_bytes(data.ljust(2000, b" "))
        with pytest.raises(UserError, match=r"pytorch_model\.bin"):
            Encoder(str(folder)).kernel()
    assert not (tmp_path / "run").exists()


@with_transformers
@pytest.mark.parametrize("prefix", ["", "encoder.", "model.encoder."])
def test_whisper_is_what_the_library_makes_of_a_full_window(tmp_path, prefix):
    """The library pads to its window; a clip that fills one needs no padding."""
    import transformers

    folder = write_whisper(tmp_path / "full", prefix=prefix, max_source_positions=100)
    config = transformers.WhisperConfig(**WHISPER | {"max_source_positions": 100}, decoder_layers=0)
    library = transformers.models.whisper.modeling_whisper.WhisperEncoder(config).eval()
    weights = safetensors.torch.load_file(f"{folder}/model.safetensors")
    own = {name.removeprefix(prefix): t.float() for name, t in weights.items() if "decoder" not in name}
    library.load_state_dict(own)
    kernel = Encoder(folder, duration_s=2.0).kernel()
    clip = speech(2.0)
    mel = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=2)(clip, sampling_rate=16_000)
    frames = torch.tensor(np.asarray(mel["input_features"]))
    np.testing.assert_allclose(kernel.network.log_mel(torch.tensor(clip)[None]), frames, atol=1e-4)
    with torch.inference_mode():
        states = library(frames, output_hidden_states=True).hidden_states
        found = kernel.network(torch.tensor(clip)[None])
    np.testing.assert_allclose(found[0], states[1], atol=1e-4)
    np.testing.assert_allclose(found[2], states[2], atol=1e-4)  # after the final normalization
    row, last = rows_of(kernel, clip)[0], found[2][0]
    np.testing.assert_array_equal(row[2], torch.cat([last.mean(0), last.std(0, correction=0)]).half().float())


def write_wav2vec2(folder: Path, norm: str, do_normalize: bool = True, **settings) -> str:
    """A folder of a tiny wav2vec2 as the library writes it."""
    import transformers

    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        conv_dim=(8,) * 7,
        **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
        **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, **settings},
    )
    transformers.Wav2Vec2Model(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(folder)
    return str(folder)


@with_transformers
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_wav2vec2_is_what_the_library_makes_of_the_clip_alone(tmp_path, norm):
    import transformers

    folder = write_wav2vec2(tmp_path / norm, norm)
    encoder = Encoder(folder)
    assert (encoder.num_states, encoder.width) == (3, 16) and encoder.library.startswith("transformers 5.")
    kernel, clip = encoder.kernel(), speech(1.3)
    library = transformers.Wav2Vec2Model.from_pretrained(folder).eval()
    heard = clip[: 400 + (len(clip) - 400) // 320 * 320]  # whole frames
    inputs = transformers.Wav2Vec2FeatureExtractor()(heard, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        states = torch.cat(library(inputs.input_values, output_hidden_states=True).hidden_states)
    wanted = torch.cat([states.mean(1), states.std(1, correction=0)], 1)
    row = rows_of(kernel, clip)[0]
    np.testing.assert_allclose(row, wanted, atol=1e-4, rtol=6e-4)  # a row has half precision
    np.testing.assert_allclose(rows_of(kernel, 0.1 * clip)[0], row, atol=1e-2)
    np.testing.assert_array_equal(rows_of(kernel, heard)[0], row)
    assert np.array_equal(rows_of(kernel, speech(4, 1), np.zeros(16_000, np.float32), clip)[2], row)
    with pytest.raises(AudioError, match="too short for the encoder"):
        rows_of(kernel, clip[:399])
    assert rows_of(kernel, clip[:400])[0].shape == (3, 32)


CLIPS = [(0.5, 0.01), (5.0, 1.0), (1.372, 0.01), (1.378, 1.0), (2.0, 0.1), (5.0, 0.01)]  # seconds, and how loud


@with_transformers
@pytest.mark.parametrize("kind", ["group", "layer", "whisper"])
def test_a_clip_is_the_same_alone_in_a_batch_and_in_any_order(tmp_path, kind):
    """To 1e-4 of each state's scale; padding, for control, changes it by far more where time is normalized."""
    write = write_whisper if kind == "whisper" else write_wav2vec2
    kernel = Encoder(write(tmp_path / kind) if kind == "whisper" else write(tmp_path / kind, kind)).kernel()
    clips = [torch.tensor(speech(seconds, seed)) * gain for seed, (seconds, gain) in enumerate(CLIPS)]
    cut = [clip_T[: kernel._whole_frames(len(clip_T))] for clip_T in clips]
    assert len({len(clip_T) for clip_T in cut}) == 4  # which go through it in as many batches

    def hear(waveforms):
        with torch.inference_mode():
            return kernel._hear(waveforms)

    alone = [hear([clip_T])[0] for clip_T in cut]
    order = [3, 5, 0, 2, 1, 4]
    back = dict(zip(order, hear([cut[place] for place in order]), strict=True))
    with torch.inference_mode():
        padded_BT = torch.nn.utils.rnn.pad_sequence(cut, batch_first=True)
        naive = kernel.pool(padded_BT)  # of which nothing is told which samples are a clip's own
    for place, (row_SD, together_SD) in enumerate(zip(alone, hear(cut), strict=True)):
        scale_S = row_SD.square().mean(1, keepdim=True).sqrt()
        assert ((together_SD - row_SD).abs() <= 1e-4 * scale_S).all()
        assert ((back[place] - row_SD).abs() <= 1e-4 * scale_S).all()
        if kind == "group" and len(cut[place]) < padded_BT.shape[1]:
            assert ((naive[place] - row_SD).abs() > 1e-2 * scale_S).any()


def test_memory_that_is_too_small_halves_the_batch_and_the_job_goes_on(whisper, monkeypatch):
    """A stand-in for a GPU, which tells so by this error."""
    kernel = EncoderKernel(Encoder(whisper))
    whole, sizes = kernel.pool, []

    def pool(waveform_BT, lengths_B):
        sizes.append(len(waveform_BT))
        if len(waveform_BT) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(waveform_BT, lengths_B)

    monkeypatch.setattr(kernel, "pool", pool)
    clips = [(speech(1, seed), str(seed)) for seed in range(7)]
    rows = kernel.rows_of_clips(clips, ("none",), 0)
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    for (clip, _), row in zip(clips, rows, strict=True):
        assert_same(row[0], rows_of(Encoder(whisper).kernel(), clip)[0])
    monkeypatch.setattr(kernel, "pool", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("all full")))
    with pytest.raises(torch.OutOfMemoryError):
        kernel.rows_of_clips(clips[:2], ("none",), 0)


def test_an_encoder_takes_gpus_where_there_are_any_and_nothing_else_does(whisper, monkeypatch):
    monkeypatch.setattr("ser_ray.store.pipeline.count_resources", lambda: (4, 1))
    recipes = FeaturizeConfig(Encoder(whisper)), FeaturizeConfig()
    assert [choose_device("auto", recipe) for recipe in recipes] == ["cuda", "cpu"]
    assert [choose_device(device, recipes[0]) for device in ("cpu", "cuda")] == ["cpu", "cuda"]
    monkeypatch.setattr("ser_ray.store.pipeline.count_resources", lambda: (4, 0))
    assert choose_device("auto", recipes[0]) == "cpu"


def test_bfloat16_is_near_enough(whisper):
    """As GPUs compute it: to 1e-2 of each state's scale, which a CPU can tell, too."""
    kernel, clip = EncoderKernel(Encoder(whisper)), speech(2)
    wanted = rows_of(kernel, clip)[0]
    kernel.bf16 = True
    found = rows_of(kernel, clip)[0]
    scale_S = np.sqrt(np.square(wanted).mean(1, keepdims=True))
    assert np.abs(found - wanted).max() > 0
    assert np.all(np.sqrt(np.square(found - wanted).mean(1)) <= 1e-2 * scale_S[:, 0])


@with_transformers
def test_older_checkpoints_are_read_and_strange_ones_refused(tmp_path):
    folder = Path(write_wav2vec2(tmp_path / "old", "group"))
    kernel = Encoder(str(folder)).kernel()
    row = rows_of(kernel, speech(1))[0]
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    older = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    named = {}
    for name, tensor in weights.items():
        for new, old in older.items():
            name = name.replace(new, old)
        named[f"wav2vec2.{name}"] = tensor
    named["quantizer.codevectors"] = torch.zeros(2, 2)
    (folder / "model.safetensors").unlink()
    torch.save(named, folder / "pytorch_model.bin")
    np.testing.assert_allclose(rows_of(Encoder(str(folder)).kernel(), speech(1))[0], row, atol=1e-6)
    lost = [name for name in named if "feed_forward" in name]
    torch.save({name: tensor for name, tensor in named.items() if name not in lost}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"the weights lack \S*feed_forward.* and 5 more, or have another shape"):
        Encoder(str(folder)).kernel()
    torch.save({name: tensor[..., :1] for name, tensor in named.items()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="or have another shape than the encoder's; bring"):
        Encoder(str(folder)).kernel()
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config\.json is missing; bring it there"):
        Encoder(str(folder))


@with_transformers
@pytest.mark.parametrize("kind", ["Hubert", "WavLM", "Data2VecAudio"])
def test_the_other_families_are_heard_too(tmp_path, kind):
    """Clips of one length go through them together; the last is as it is alone."""
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = getattr(transformers, f"{kind}Config")(conv_dim=(8,) * 7, num_conv_pos_embedding_groups=2, **sizes)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    kernel = Encoder(str(tmp_path)).kernel()
    row = rows_of(kernel, speech(1))[0]
    assert row.shape == (3, 32) and np.isfinite(row).all()
    together = kernel.rows_of_clips([(speech(1, 1), "b"), (speech(2), "c"), (speech(1), "a")], ("none",), 0)
    assert_same(together[2][0], row)


def assert_same(found, wanted):
    """Two rows, to 1e-4 of each state's scale; they have half precision, whose steps are larger."""
    scale_S = np.sqrt(np.square(wanted).mean(1, keepdims=True))
    assert np.all(np.abs(found - wanted) <= 1e-4 * scale_S + 1e-3 * np.abs(wanted))


TINY = {  # of torchaudio's encoders
    "extractor_conv_layer_config": [(8, 10, 5), *[(8, 3, 2)] * 4, *[(8, 2, 2)] * 2],
    **{"extractor_conv_bias": False, "encoder_embed_dim": 16, "encoder_projection_dropout": 0.0},
    **{"encoder_pos_conv_kernel": 16, "encoder_pos_conv_groups": 2, "encoder_num_layers": 2, "encoder_num_heads": 2},
    **{"encoder_attention_dropout": 0.0, "encoder_ff_interm_features": 32, "encoder_ff_interm_dropout": 0.0},
    **{"encoder_dropout": 0.0, "encoder_layer_drop": 0.1, "aux_num_out": None},
}


def tiny_pipeline(monkeypatch, factory: str, file: str, norm: str) -> torch.nn.Module:
    """Make `WAVLM_BASE_PLUS` stand for a tiny encoder; returns that."""
    from torchaudio import models

    wavlm = {"encoder_num_buckets": 8, "encoder_max_distance": 16} if factory == "wavlm_model" else {}
    settings = {**TINY, **wavlm, "extractor_mode": f"{norm}_norm", "encoder_layer_norm_first": norm == "layer"}
    monkeypatch.setitem(PIPELINES, "WAVLM_BASE_PLUS", Pipeline(file, factory, 2, 16, norm == "layer", settings))
    torch.manual_seed(0)
    return getattr(models, factory)(**settings).eval()


@pytest.mark.parametrize(
    ("factory", "norm"),
    [("wav2vec2_model", "group"), ("wav2vec2_model", "layer"), ("wavlm_model", "group"), ("wavlm_model", "layer")],
)
def test_names_of_torchaudio_are_found_in_folders_and_in_torch_hubs_cache(tmp_path, monkeypatch, factory, norm):
    network = tiny_pipeline(monkeypatch, factory, "tiny.pth", norm)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    with pytest.raises(UserError, match=rf"--encoder WAVLM_BASE_PLUS: bring tiny\.pth into {cache}, or into a folder"):
        Encoder("WAVLM_BASE_PLUS")
    cache.mkdir(parents=True)
    torch.save(network.state_dict(), cache / "tiny.pth")
    encoder = Encoder("WAVLM_BASE_PLUS")
    assert (encoder.num_states, encoder.width, encoder.model, encoder.licence) == (2, 16, "WAVLM_BASE_PLUS", "MIT")
    assert encoder.library.startswith("torchaudio ") and "the output of each layer" in encoder.origin()
    kernel, clip = encoder.kernel(), torch.tensor(speech(1.3))
    heard = clip[: 400 + (len(clip) - 400) // 320 * 320][None]
    with torch.inference_mode():
        heard = torch.nn.functional.layer_norm(heard, heard.shape) if norm == "layer" else heard
        states = torch.cat(network.extract_features(heard)[0])
    wanted = torch.cat([states.mean(1), states.std(1, correction=0)], 1).numpy()
    assert_same(rows_of(kernel, clip.numpy())[0], wanted)
    together = kernel.rows_of_clips([(speech(1.3, 1), "b"), (clip.numpy(), "a")], ("none",), 0)
    assert_same(together[1][0], wanted)
    folder = tmp_path / "folder"
    shutil.copytree(cache, folder)
    assert Encoder(str(folder)) == Encoder(str(folder / "tiny.pth")) == encoder
    shutil.rmtree(cache)
    monkeypatch.setenv("SER_RAY_ENCODERS", f"{tmp_path / 'none'}:{folder}")
    assert Encoder("WAVLM_BASE_PLUS").encoder == str(folder / "tiny.pth")
    assert encoder.locate().encoder == str(folder / "tiny.pth")  # as a model does whose encoder has moved
    for spoil in (cut_short, lambda p: torch.save({"x": torch.zeros(2000)}, p)):
        spoil(folder / "tiny.pth")
        with pytest.raises(UserError, match=r"tiny\.pth is damaged, or holds more|the weights lack \S+, \S+, \S+ and"):
            Encoder("WAVLM_BASE_PLUS").kernel()


def test_names_of_torchaudio_stand_for_what_it_builds_itself():
    import torchaudio

    for name, pipeline in PIPELINES.items():
        bundle = getattr(torchaudio.pipelines, name)
        assert (bundle._path, bundle._normalize_waveform) == (pipeline.file, pipeline.normalizes)
        with torch.device("meta"):
            own = getattr(torchaudio.models, pipeline.factory)()
            published = torchaudio.pipelines._wav2vec2.utils._get_model(bundle._model_type, bundle._params)
        shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (own, published)]
        assert shapes[0] == shapes[1] and not {key for key, _ in own.named_buffers()} - shapes[0].keys()
        assert len(own.encoder.transformer.layers) == pipeline.layers
        assert own.encoder.transformer.layer_norm.normalized_shape == (pipeline.width,)


@with_transformers
def test_w2v_bert_hears_filter_banks_as_its_library_makes_them(tmp_path):
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.Wav2Vec2BertConfig(**sizes, feature_projection_input_dim=160, conv_depthwise_kernel_size=3)
    library = transformers.Wav2Vec2BertModel(config).eval()
    library.save_pretrained(tmp_path)
    banks = transformers.SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80, stride=2, padding_value=1)
    banks.save_pretrained(tmp_path)
    kernel, clip = Encoder(str(tmp_path)).kernel(), speech(1.3)
    heard = banks(clip[: 560 + (len(clip) - 560) // 320 * 320], sampling_rate=16_000, return_tensors="pt")
    assert heard["attention_mask"].all()  # whole frames leave nothing to hide
    with torch.inference_mode():
        states = torch.cat(library(heard["input_features"], output_hidden_states=True).hidden_states)
    wanted = torch.cat([states.mean(1), states.std(1, correction=0)], 1).numpy()
    assert_same(rows_of(kernel, clip)[0], wanted)
    together = kernel.rows_of_clips([(speech(1.3, 1), "b"), (clip, "a"), (speech(2), "c")], ("none",), 0)
    assert_same(together[1][0], wanted)
    with pytest.raises(AudioError, match=r"too short for the encoder: 0\.035 s, and one frame of it takes 0\.035 s"):
        rows_of(kernel, clip[:559])


def test_without_the_library_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "wavlm", "num_hidden_layers": 2, "hidden_size": 8}')
    (tmp_path / "preprocessor_config.json").write_text("{}")
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    missing = importlib.metadata.PackageNotFoundError("transformers")
    monkeypatch.setattr("ser_ray.features.encoder_files.version", lambda name: (_ for _ in ()).throw(missing))
    with pytest.raises(UserError, match=r"wavlm needs the library transformers: pip install .*\[encoders\]"):
        Encoder(str(tmp_path))


def test_clips_of_one_shape_are_mixed_where_the_network_asks_for_it():
    draw = torch.Generator().manual_seed(0)
    values, targets = torch.randn(6, 3, 4, generator=draw), torch.arange(6) % 2
    examples = Examples(values, torch.arange(7), targets, torch.arange(6), torch.zeros(6, dtype=torch.long), False)
    index, weights = torch.arange(6), torch.ones(1, 2)
    plain = Batcher(weights, None)(examples, index, 1)
    assert torch.equal(plain.features, values)
    torch.manual_seed(0)
    mixed = Batcher(weights, None, mixup=0.4)(examples, index, 1)
    part = (mixed.target_BC - plain.target_BC).abs()[:, 0]
    assert 0 < part.max() <= 0.5 and torch.allclose(mixed.target_BC.sum(1), torch.ones(6))
    wanted = values + part[:, None, None] * (values.roll(1, 0) - values)
    assert torch.allclose(mixed.features, wanted, atol=1e-6)


def test_speakers_of_few_clips_of_one_shape_are_brought_to_the_usual(whisper):
    draw = np.random.default_rng(0)
    usual = np.stack([np.full((3, 32), 5.0), np.full((3, 32), 0.1)]).astype(np.float32)
    clips = draw.normal(4, 0.02, (20, 3, 32)).astype(np.float32)
    speakers = Speakers.of(Encoder(whisper), usual, {"a": Known(20, sums_of(clips))})
    values = speakers.normalize(clips, np.arange(21), ["a"] * 20)
    mean = (20 * clips.mean(0) + USUAL_CLIPS * 5.0) / (20 + USUAL_CLIPS)
    square = (20 * np.square(clips.astype(float)).mean(0) + USUAL_CLIPS * (25 + 0.01)) / (20 + USUAL_CLIPS)
    np.testing.assert_allclose(values, (clips - mean) / np.sqrt(square - mean**2) * 0.1 + 5, atol=1e-4)
    np.testing.assert_array_equal(speakers.normalize(clips, np.arange(21), ["b"] * 20), clips)
    same = np.full((100_000, 1, 1), 5.0)
    flat = Speakers(np.array([[[5.0]], [[0.1]]]), {"a": Known(len(same), sums_of(same))}, framed=False)
    np.testing.assert_allclose(flat.scale_and_shift("a")[0], 1 / LEAST_PART, rtol=0.2)


@pytest.fixture(scope="module")
def heard(whisper, local_ray, made, tmp_path_factory):
    """A finished store of what the tiny Whisper makes of the made speech."""
    root = str(tmp_path_factory.mktemp("heard") / "store")
    return featurize(ser_ray.discover(made), FeaturizeConfig(Encoder(whisper)), root)


@pytest.mark.usefixtures("train_here")
@pytest.mark.parametrize("speaker_norm", [False, True])
def test_from_sound_to_answers_by_an_encoder(whisper, heard, tmp_path, monkeypatch, speaker_norm):
    store = heard
    assert pq.read_table(f"{store.root}/shards")["features"].type == pa.list_(pa.list_(pa.float16(), 32), 3)
    told = store.info()["features"]
    assert told["digest"] == Encoder(whisper).digest and told["licence"] and "of each layer" in told["states"]
    wish = Experiment(
        network=ProbeSpec(hidden=8), train=TrainConfig.usual(ProbeSpec, epochs=3), speaker_norm=speaker_norm
    )
    folder = RunFolder(str(tmp_path / "run"))
    scores = ser_ray.run(store, wish, folder)
    assert scores["config"]["model"]["mixup"] == 0.4
    model = ser_ray.load(folder.root)
    assert (model.features, model.network) == (Encoder(whisper), ProbeSpec(hidden=8))
    before = pq.read_table(f"{folder.root}/predictions.parquet").to_pylist()
    again = ser_ray.evaluate([model], store, RunFolder(str(tmp_path / "again")))
    assert again["num_test"] == scores["num_test"] and (speaker_norm or again["uar"] == pytest.approx(scores["uar"]))
    paths = dict(zip(*(store.table()[name].to_pylist() for name in ("utterance_id", "path")), strict=True))
    answer = model.predict(paths[before[0]["utterance_id"]]).iloc[0]
    if not speaker_norm:
        np.testing.assert_allclose(answer["probabilities"], before[0]["probabilities"], atol=1e-5)
    moved = shutil.move(shutil.copytree(whisper, tmp_path / "first"), tmp_path / "second")
    far = replace(model, features=replace(model.features, encoder=str(tmp_path / "first")))
    with pytest.raises(UserError, match=r"the encoder \S+ is not on this machine; it was \S+first; bring it there"):
        locate_encoders([far])
    (here,) = locate_encoders([far], [moved])
    assert here.features == model.features and here.features.encoder == str(moved)
    monkeypatch.setenv("SER_RAY_ENCODERS", str(tmp_path / "third"))
    shutil.move(moved, tmp_path / "third" / "first")
    assert locate_encoders([far])[0].features.encoder == str(tmp_path / "third" / "first")
    assert f"licence: {model.features.licence}" in Path(folder.root, "model", "README.md").read_text()
    sf.write(tmp_path / "click.wav", speech(1)[:300], 16_000)
    with pytest.raises(UserError, match=r"click\.wav: "):
        model.predict(str(tmp_path / "click.wav"))


@pytest.mark.usefixtures("local_ray")
def test_clips_too_short_for_an_encoder_are_rejects_and_the_same_whoever_reads_them(whisper, tmp_path):
    """The second store is made as with a GPU: one worker reads, another has the encoder and computes in batches."""
    rows = ["path,emotion,speaker_id"]
    for number, seconds in enumerate((0.5, 1.0, 1.0, 0.02, 1.005, 2.0, 0.5)):
        sf.write(tmp_path / f"{number}.wav", speech(seconds, number), 16_000)
        rows.append(f"{number}.wav,{'sad' if number % 2 else 'happy'},anna")
    (tmp_path / "own.csv").write_text("\n".join(rows))
    manifest = ser_ray.discover([str(tmp_path / "own.csv")])
    config = FeaturizeConfig(Encoder(whisper), ("none", "noise"))
    store = featurize(manifest, config, str(tmp_path / "store"))
    (reject,) = store.rejects()
    assert reject.reason == "too short for the encoder: 0.020 s, and one frame of it takes 0.025 s"
    assert store.info()["counts"]["own"] == {"found": 7, "featurized": 6, "rejected": 1, "duplicates": 0}
    other = Store(str(tmp_path / "apart"))
    other.claim(config)
    (task,) = _each_task(manifest.utterances, [len(manifest.utterances)])
    read = read_in_task(task, (other, config))
    assert [sound.problem for sound in unpack_sounds(read["sounds"][0].values)] == [""] * 7
    outcome = ShardWriter(other, config, "cpu").write(manifest.utterances, unpack_sounds(read["sounds"][0].values))
    assert (outcome["clips"], outcome["rejected"], outcome["error"]) == (7, 1, "")
    columns = [*METADATA, "features"]
    one, two = (each.table(columns) for each in (store, other))
    assert one.select(METADATA).equals(two.select(METADATA))
    for row, again in zip(*(decode_features(table["features"])[0] for table in (one, two)), strict=True):
        assert_same(again, row)
    assert [each.reason for each in other.rejects()] == [reject.reason]


@pytest.mark.parametrize(
    ("settings", "card", "heard"),
    [
        ({"_name_or_path": "openai/whisper-base"}, "license: apache-2.0", ()),
        ({"_name_or_path": "amiriparian/ExHuBERT"}, "", ("crema_d", "ravdess", "savee", "tess")),
        ({"id2label": {"0": "angry", "1": "happy", "2": "sad"}}, "", ("crema_d", "ravdess", "savee", "tess")),
        ({"id2label": {"0": "arousal", "1": "dominance", "2": "valence"}}, "", ()),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, "datasets:\n- narad/ravdess", ("ravdess",)),
        ({}, "datasets: common_voice\nlicense: [mit, other]", ()),
        ({}, "a: [", ()),
    ],
)
def test_encoders_that_have_heard_the_corpora_are_known(tmp_path, settings, card, heard):
    folder = write_whisper(tmp_path / "whisper", **settings)
    Path(folder, "README.md").write_text(f"---\n{card}\n---\n")
    encoder = Encoder(folder)
    assert encoder.heard == heard and bool(encoder.heard_by) == bool(heard)
    assert read_features(json.loads(json.dumps(write_features(encoder)))).heard == heard


@pytest.mark.usefixtures("local_ray", "train_here")
def test_scores_on_what_the_encoder_has_heard_are_labelled_leaky(made, tmp_path, capfd):
    folder = write_whisper(tmp_path / "whisper", _name_or_path="amiriparian/ExHuBERT")
    store = featurize(ser_ray.discover(made), FeaturizeConfig(Encoder(folder)), str(tmp_path / "store"))
    wish = Experiment(network=ProbeSpec(hidden=8), train=TrainConfig.usual(ProbeSpec, epochs=1))
    scores = ser_ray.run(store, wish, RunFolder(str(tmp_path / "run")))
    assert scores["leaks"]["leaky"] and scores["leaks"]["encoder"] in scores["notes"]
    assert scores["leaks"]["encoder"].startswith("The encoder amiriparian/ExHuBERT was trained on ")
    assert headline(scores).startswith("LEAKY encoder: UAR")
    assert "LEAKY: The encoder amiriparian/ExHuBERT" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.usefixtures("local_ray", "train_here")
def test_the_flags_of_an_encoder_and_what_they_refuse(whisper, made, job, tmp_path):
    code, _, err = job("featurize", "--data", *made, "--features", "encoder")
    assert code == 2 and err.startswith("--encoder is missing: name a speech encoder (Whisper, "), err
    code, _, err = job("train", "--data", *made, "--model", "probe", "--encoder", "nowhere")
    assert code == 2 and err.count("\n") == 1 and "--encoder nowhere: there is no such folder" in err
    code, _, err = job("train", "--data", *made, "--model", "cnn1d", "--mixup", "0.2")
    assert code == 2 and "--mixup is for --model probe" in err
    code, _, err = job("featurize", "--data", *made, "--features", "encoder", "--encoder", whisper)
    assert (code, err) == (0, ""), err
    wish = ("--data", *made, "--model", "probe", "--encoder", whisper, "--epochs", "1")
    code, _, err = job("train", *wish, "--output", "run")
    assert (code, err) == (0, ""), err
    assert len(list((tmp_path / "stores").iterdir())) == 1  # the store was found again
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert read_features(config["features"]) == Encoder(whisper)
    assert json.loads(json.dumps(write_features(Encoder(whisper)))) == config["features"]
    code, _, err = job("evaluate", "--run", "run", "--data", *made, "--output", "again")
    assert (code, err) == (0, "") or "all of these clips were trained on" in err or "no clip is left" in err
    code, out, _ = job("train", "--model", "probe", "--help")
    assert code == 0 and "--encoder" in out and "--digest" not in out
