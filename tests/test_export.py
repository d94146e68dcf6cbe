"""A trained run as one file: it answers as the model does, where neither ser_ray nor torch can be imported."""

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import soundfile as sf
import torch
import yaml
from test_encoders import write_whisper

from ser_ray.base.errors import UserError
from ser_ray.export.export import ExportConfig, export_runs
from ser_ray.export.hearing import Ears
from ser_ray.export.moments import read_moments
from ser_ray.export.proof import LEAST_RANGE, RESAMPLED, TOLERANCE, Proof, answer_first, make_sounds, pad_sounds
from ser_ray.export.quantize import find_worse
from ser_ray.features.arrays import shape_of
from ser_ray.features.encoder import Encoder
from ser_ray.features.log_mel import LogMel
from ser_ray.features.summary import Summary
from ser_ray.features.waveform import Waveform
from ser_ray.model.answers import answer_windows
from ser_ray.model.files import load_model, save_model
from ser_ray.model.model import Model
from ser_ray.model.together import Together
from ser_ray.model.windows import Hearing, WindowConfig, as_file
from ser_ray.networks.cnn1d import Cnn1dSpec
from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
from ser_ray.networks.probe import ProbeSpec
from ser_ray.speech.emotions import LabelSet

onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
RATE = 16_000
ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ser_ray", "torch", "torchaudio", "ray"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Absent())
"""
FACTS = {
    **{"protocol": "speaker-independent", "fold": 0, "description": "Four speakers are tested.", "num_test": 20},
    **{"uar": 0.5, "accuracy": 0.55, "macro_f1": 0.5, "notes": [], "made_speech": False},
    "interval": {"uar": [0.4, 0.6], "accuracy": [0.45, 0.65]},
    "per_corpus": {"ravdess": {"num_test": 20, "uar": 0.5, "accuracy": 0.55, "interval": {"uar": [0.4, 0.6]}}},
    "trained_corpora": ["ravdess", "tess", "mine"],
    "sample_rates": [24414, 48000],
}


def a_run(root: Path, seed: int = 0, **changes) -> str:
    """Write an untrained model whose answers are far apart."""
    features = changes.pop("features", LogMel())
    torch.manual_seed(seed)
    spec = Cnn1dSpec() if isinstance(features, Summary) else LogMelResNetSpec(width=4)
    labels = changes.pop("labels", LabelSet())
    network = spec.build(shape_of(features.arrow_type()), len(labels.names)).eval()
    network.standardize.mean_F.fill_(-40.0)
    network.standardize.std_F.fill_(20.0)
    trained = {"temperature": 0.03, "trained_on": ("ravdess_01", "tess_oaf"), "facts": FACTS}
    save_model(Model([network], spec, features, labels, **{**trained, **changes}), str(root / "model"))
    return str(root)


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """A folder with a run of two emotions, and two views, and the same as ONNX in its model folder."""
    root = tmp_path_factory.mktemp("exported")
    two = LabelSet(("happy", "sad"))
    facts = {**FACTS, "confusion_matrix": [[6, 2], [3, 9]]}
    a_run(root / "run", labels=two, views=((0.85, 0.0), (1.0, -1.5)), facts=facts)
    export_runs([str(root / "run")], str(root / "run" / "model" / "model.onnx"))
    return root


def run_alone(code: str, folder: Path) -> str:
    """Run code where ser_ray and torch cannot be imported; returns what it prints."""
    done = subprocess.run([sys.executable, "-c", ALONE + code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_file_answers_as_the_model_does_where_ser_ray_and_torch_cannot_be_imported(exported):
    model, sounds = load_model(str(exported / "run")), make_sounds(RATE)[:8]
    padded, lengths = pad_sounds(sounds)
    np.savez(exported / "sounds.npz", padded=padded, lengths=lengths)
    code = """
import numpy as np, onnxruntime
try:
    import torch
    raise SystemExit("torch is here")
except ImportError:
    given = np.load("sounds.npz")
session = onnxruntime.InferenceSession("run/model/model.onnx")
together = session.run(None, {"waveform": given["padded"], "lengths": given["lengths"]})[0]
each = [session.run(None, {"waveform": x[None, :n], "lengths": np.array([n])})[0][0] for x, n in zip(*given.values())]
np.savez("answers.npz", together=together, each=each)
"""
    run_alone(code, exported)
    answers = np.load(exported / "answers.npz")
    wanted = [answer_first(Together.of([model]), sound, RATE) for sound in sounds]
    assert np.ptp(wanted, axis=0).max() > 0.05
    for name in ("together", "each"):
        np.testing.assert_allclose(answers[name], wanted, atol=1e-4)
    ten_seconds = [i for i, sound in enumerate(sounds) if len(sound) <= 10 * RATE]
    for i in ten_seconds[:3]:
        told = model.predict(sounds[i], sample_rate=RATE)["probabilities"].iloc[0]
        np.testing.assert_allclose(answers["each"][i], told, atol=1e-4)


def test_the_file_says_what_it_is_and_how_it_was_proved(exported):
    session = onnxruntime.InferenceSession(exported / "run" / "model" / "model.onnx")
    told = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert told["labels"] == ["happy", "sad"] and told["sample_rate"] == RATE and told["longest_s"] == 30
    assert told["corpora"] == ["mine", "ravdess", "tess"] and told["num_speakers"] == 2 and told["ser_ray"]
    assert len(told["speakers_sha256"]) == 64 and len(told["models"][0]) == 12
    (scores,) = told["scores"]
    assert scores["protocol"] == "speaker-independent" and scores["interval"]["uar"] == [0.4, 0.6]
    proof = told["proof"]
    assert proof["clips"] >= 20 and proof["seconds"] == [0.3, 30] and proof["batches"] == [1, 4]
    assert proof["probabilities"] <= 1e-4 and proof["logits"] <= 1e-3 and proof["varies"] > 0.05
    assert [i.name for i in session.get_inputs()] == ["waveform", "lengths"]
    assert not any(isinstance(size, int) for i in session.get_inputs() for size in i.shape)


def test_longer_sound_is_answered_by_its_first_thirty_seconds(exported):
    session = onnxruntime.InferenceSession(exported / "run" / "model" / "model.onnx")
    sound = np.resize(make_sounds(RATE)[13], 31 * RATE)
    whole, first = (
        session.run(None, {"waveform": part[None], "lengths": np.array([len(part)])})[0]
        for part in (sound, sound[: 30 * RATE])
    )
    np.testing.assert_allclose(whole, first, atol=1e-6)


def test_the_example_on_the_card_runs_by_onnxruntime_soundfile_and_numpy_alone(exported):
    folder = exported / "run" / "model"
    card = (folder / "README.md").read_text()
    (example,) = [block.partition("\n")[2] for block in card.split("```")[1::2] if block.startswith("python\n")]
    assert len(example.splitlines()) == 10
    sound = make_sounds(RATE)[4]
    sf.write(folder / "clip.wav", sound, RATE, subtype="FLOAT")
    told = json.loads(run_alone(example, folder).replace("'", '"'))
    wanted = answer_first(Together.of([load_model(str(folder))]), sound, RATE)
    assert list(told) == ["happy", "sad"] and np.allclose(list(told.values()), wanted, atol=1e-3)


def test_the_card_says_for_people_and_for_the_hub_what_the_model_is(exported):
    card = (exported / "run" / "model" / "README.md").read_text()
    _, head, text = card.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["language"] == ["en"] and metadata["license"] == "other"
    assert metadata["datasets"] == ["mine", "ravdess", "tess"] and "recall" in metadata["metrics"]
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.5 and "speaker-independent (fold 0)" in result["metrics"][0]["name"]
    for told in (
        *("| ravdess | 20 | 50.0% (40.0% to 60.0%) |", "CC BY-NC-ND 4.0", "English", "24414, 48000 Hz"),
        *("happy is recognized in 75% of 8 clips; it is taken for sad in 25%", "Regulation (EU) 2024/1689"),
        *("Article 5 (1) (f)", "workplace", "| mine | unknown here |"),
    ):
        assert told in text, told
    hub = pytest.importorskip("huggingface_hub")
    read = hub.ModelCard(card)
    assert read.data.eval_results[0].metric_value == 0.5 and read.data.license == "other"


def test_a_model_of_made_speech_claims_no_language(tmp_path):
    a_run(tmp_path, facts={**FACTS, "made_speech": True, "notes": ["These scores are for made speech."]})
    card = (tmp_path / "model" / "README.md").read_text()
    assert "language:" not in card and "**These scores are for made speech.**" in card and "nobody speaks" in card


def test_a_cross_validated_run_answers_by_all_its_folds_and_one_speakers_moments(job, tmp_path):
    a_run(tmp_path / "cv" / "fold-0")
    a_run(tmp_path / "cv" / "fold-1", seed=1, speaker_norm=True, temperature=0.06)
    for folder in ("cv/fold-0", "cv/fold-1", "cv"):
        (tmp_path / folder / "metrics.json").write_text(json.dumps(FACTS))
    sound = np.concatenate(make_sounds(RATE)[8:12])
    sf.write(tmp_path / "voice.wav", sound, RATE, subtype="FLOAT")
    words = ("export", "--run", "cv", "--output", "model.onnx")
    code, _, err = job(*words)
    assert code == 2 and "give --speaker-moments FILE" in err and err.count("\n") == 1
    code, out, err = job(*words, "--speaker-moments", "voice.wav")
    assert (code, err) == (0, ""), err
    assert "2 models answer together here" in out
    models = [load_model(f"cv/fold-{fold}") for fold in range(2)]
    together, known = Together.of(models), read_moments("voice.wav", models[0].features)
    session, clip = onnxruntime.InferenceSession("model.onnx"), make_sounds(RATE)[5]
    answer = session.run(None, {"waveform": clip[None], "lengths": np.array([len(clip)])})[0][0]
    np.testing.assert_allclose(answer, answer_first(together, clip, RATE, {models[0].features: known}), atol=1e-4)
    assert not np.allclose(answer, answer_first(together, clip, RATE), atol=1e-3)
    frames = known.sums_2F / known.frames
    moments = {"frames": known.frames, "mean": frames[0], "std": np.sqrt(frames[1] - frames[0] ** 2)}
    Path("moments.json").write_text(json.dumps(moments, default=np.ndarray.tolist))
    np.testing.assert_allclose(read_moments("moments.json", models[0].features).sums_2F, known.sums_2F, rtol=1e-6)


def test_torch_alone_answers_by_a_pt2_file_and_the_notebooks_network_hears_its_window(tmp_path):
    run = a_run(tmp_path / "run", features=Summary(), temperature=0.05)
    facts = export_runs([run], str(tmp_path / "model.pt2"))
    assert facts["sample_rate"] == 22_050 and facts["proof"]["probabilities"] <= 1e-4
    extra = {"ser_ray.json": ""}
    graph = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module(check_guards=False)
    assert json.loads(extra["ser_ray.json"])["proof"] == json.loads(json.dumps(facts["proof"]))
    sound = make_sounds(22_050)[12]
    given = graph(torch.from_numpy(sound)[None], torch.tensor([len(sound)]))[0]
    wanted = load_model(run).predict(sound, sample_rate=22_050)["probabilities"].iloc[0]
    np.testing.assert_allclose(given[0], wanted, atol=1e-4)


@pytest.fixture(scope="session")
def page(exported, tmp_path_factory):
    """The address of the demo page with the exported file beside it."""
    demo = Path(__file__).parent.parent / "docs" / "demo"
    if not (demo / "runtime").exists():
        pytest.skip("what the page runs on is not there: bash docs/demo/fetch.sh")
    folder = tmp_path_factory.mktemp("page") / "demo"
    shutil.copytree(demo, folder)
    shutil.copy(exported / "run" / "model" / "model.onnx", folder / "model.onnx")
    handler = partial(QuietHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_the_page_answers_a_recording_in_a_browser_as_the_model_does(exported, page, browser, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    def wait(state):
        reached = "return document.body.dataset.state"
        WebDriverWait(browser, 120).until(lambda it: it.execute_script(reached) in (state, "failed"))
        assert browser.execute_script(reached) == state, browser.find_element("id", "state").text

    sound = np.concatenate([make_sounds(RATE)[9][: 4 * RATE], np.zeros(4 * RATE), make_sounds(RATE)[10][: 3 * RATE]])
    sf.write(tmp_path / "clip.wav", sound, RATE)
    browser.get(page)
    wait("ready")
    browser.find_element("id", "file").send_keys(str(tmp_path / "clip.wav"))
    wait("done")
    answers = browser.execute_script("return globalThis.answers")
    model = load_model(str(exported / "run"))
    with (tmp_path / "clip.wav").open("rb") as file:
        wanted = answer_windows([model], Hearing(file, WindowConfig(window_s=4), model.features))
    assert [(one["start"], one["end"]) for one in answers] == [(0, 4), (4, 8), (8, 11)]
    assert answers[1]["probabilities"] is None and np.isnan(wanted[1]).all()
    for place in (0, 2):
        np.testing.assert_allclose(answers[place]["probabilities"], wanted[place], atol=1e-3)
    assert abs(wanted[0] - wanted[2]).max() > 0.01
    drawn = [box.get_attribute("title") for box in browser.find_elements("css selector", "#timeline .window")]
    assert drawn[1] == "0:04.0 to 0:08.0: silent" and "happy" in drawn[0] and len(drawn) == 3
    browser.find_element("id", "record").click()
    WebDriverWait(browser, 30).until(lambda it: it.find_element("id", "record").text.startswith("■"))
    time.sleep(1.5)  # the beeps of a browser's own microphone
    browser.find_element("id", "record").click()
    WebDriverWait(browser, 60).until(lambda it: it.execute_script("return globalThis.answers")[0]["end"] < 4)
    assert browser.get_log("browser") == []


def a_probe(root: Path) -> Model:
    """Write a run whose model is an untrained probe on a tiny Whisper."""
    encoder = Encoder(write_whisper(root / "whisper"))
    torch.manual_seed(0)
    network = ProbeSpec(hidden=8).build(shape_of(encoder.arrow_type()), 8).eval()
    sounds, kernel = make_sounds(RATE)[:9], encoder.kernel()
    rows = torch.stack([torch.from_numpy(kernel.rows(sound, "", ("none",), 0)[0]) for sound in sounds])
    network.standardize.set(rows.mean(0), rows.std(0))
    model = Model([network], ProbeSpec(hidden=8), encoder, LabelSet(), facts=FACTS)
    save_model(model, str(root / "run" / "model"))
    return model


def test_a_probe_goes_with_its_encoder_inside(tmp_path):
    model, sounds = a_probe(tmp_path), make_sounds(RATE)[2:5]
    facts = export_runs([str(tmp_path / "run")], str(tmp_path / "model.onnx"))
    assert facts["proof"]["batches"] == (1,) and facts["proof"]["varies"] > 0.1 and "int8" not in facts
    assert (tmp_path / "run" / "model" / "README.md").read_text().count("- encoder: ") == 1
    (tmp_path / "whisper").rename(tmp_path / "elsewhere")  # the file needs neither folder
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for sound in sounds:
        answer = session.run(None, {"waveform": sound[None], "lengths": np.array([len(sound)])})[0][0]
        np.testing.assert_allclose(answer, answer_first(Together.of([model]), sound, RATE), atol=1e-4)


def write_answers(run: Path, data: Path) -> None:
    """Write clips of two actors, named as RAVDESS does, and what a run says that it answered of them."""
    sounds, answered = make_sounds(RATE), {"01": [], "02": []}
    for place in range(16):
        actor, emotion = ("01", "02")[place // 8], place % 8
        name = f"03-01-{emotion + 1:02}-01-01-01-{actor}"
        (data / f"Actor_{actor}").mkdir(parents=True, exist_ok=True)
        sf.write(data / f"Actor_{actor}" / f"{name}.wav", np.resize(sounds[place], RATE), RATE)
        told = {"utterance_id": f"ravdess/{name}", "corpus": "ravdess", "speaker_id": f"ravdess_{actor}"}
        said = {"predicted": "calm", "probabilities": [0.125] * 8}
        truth = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")[emotion]
        answered[actor].append({**told, "gender": "male", "intensity": "normal", "emotion": truth, **said})
    for name, actor in (("validation", "01"), ("predictions", "02")):
        pq.write_table(pa.Table.from_pylist(answered[actor]), run / f"{name}.parquet")
    (run / "metrics.json").write_text(json.dumps(FACTS))


def test_an_encoder_in_int8_is_judged_by_validation_speakers_and_kept(tmp_path, job):
    a_probe(tmp_path)
    write_answers(tmp_path / "run", tmp_path / "data")
    next((tmp_path / "data" / "Actor_02").iterdir()).unlink()  # a tested clip that is lost
    words = ("export", "--run", "run", "--output", "model.onnx", "--int8")
    code, _, err = job(*words)
    assert code == 2 and "give --data and the folders that hold their clips" in err and err.count("\n") == 1
    code, out, err = job(*words, "--data", "data")
    assert (code, err) == (0, ""), err
    assert "8 of 8 validation clips of 1 speakers: UAR" in out and "7 of 8 tested clips" in out
    file = onnx.load("model.onnx")
    told = json.loads({prop.key: prop.value for prop in file.metadata_props}["int8"])
    assert told["validation"]["clips"] == 8 and 0 < told["validation"]["probabilities"] < 0.05
    assert all(value > 0 for name in ("bytes", "ms") for value in told[name])
    count = Counter(node.op_type for node in file.graph.node)
    assert count["MatMulInteger"] == told["maps"] == 12 and count["Conv"] == 2  # six maps of each layer
    assert count["MatMul"] == 1 + 4 + 2  # mel bands, attention of two layers, and the probe stay float32


@pytest.mark.parametrize(
    ("uar", "ece", "says"),
    [
        ((0.6, 0.596), (0.05, 0.059), ""),
        ((0.6, 0.594), (0.05, 0.01), "its UAR on 90 validation clips goes from 60.0% to 59.4% (at most 0.5 points"),
        ((0.6, 0.7), (0.05, 0.061), "its ECE on 90 validation clips goes from 5.0% to 6.1% (at most 1 points"),
        ((0.6, float("nan")), (0.05, 0.05), "its UAR"),
    ],
)
def test_int8_that_answers_worse_is_not_kept(uar, ece, says):
    told = find_worse({"clips": 90, "uar": uar, "ece": ece})
    assert says in told and bool(says) == bool(told)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_sound_of_another_rate_is_resampled_nearly_as_the_product_does(rate):
    ears, kernel = Ears(LogMel(), rate).eval(), LogMel().kernel()
    for sound in make_sounds(rate)[2:8]:
        with as_file(sound, rate) as file:
            ((_, resampled),) = Hearing(file, WindowConfig(window_s=30), LogMel()).sounds(RATE)
        with torch.inference_mode():
            waveform, lengths = ears.resample(torch.from_numpy(sound)[None], torch.tensor([len(sound)]))
            frames, counts = ears(torch.from_numpy(sound)[None], torch.tensor([len(sound)]))
        assert int(lengths) == len(resampled)
        distance = np.square(waveform[0, : len(resampled)].numpy() - resampled).mean() / np.square(resampled).mean()
        assert 10 * np.log10(distance) < -60
        wanted = kernel.rows(resampled, "", ("none",), 0)[0]
        assert int(counts) == len(wanted) and np.abs(frames[0, : len(wanted)].numpy() - wanted).mean() < 0.01


def test_a_file_takes_another_rate_and_answers_nearly_as_the_product_does(tmp_path):
    run = a_run(tmp_path / "run")
    facts = export_runs([run], str(tmp_path / "model.onnx"), ExportConfig(input_rate=48_000))
    proof = facts["proof"]
    assert facts["sample_rate"] == 48_000 and proof["tolerance"] == RESAMPLED
    assert 1e-7 < proof["probabilities"] < 1e-3 and proof["varies"] > 0.05
    session, sound = onnxruntime.InferenceSession(tmp_path / "model.onnx"), make_sounds(48_000)[4]
    answer = session.run(None, {"waveform": sound[None], "lengths": np.array([len(sound)])})[0][0]
    wanted = load_model(run).predict(sound, sample_rate=48_000)["probabilities"].iloc[0]
    np.testing.assert_allclose(answer, wanted, atol=1e-3)


def test_a_file_that_fails_its_proof_is_not_left_behind(tmp_path, job, monkeypatch):
    monkeypatch.setattr("ser_ray.export.proof.TOLERANCE", {"probabilities": 0.0, "logits": 0.0})
    code, _, err = job("export", "--run", a_run(tmp_path / "run"), "--output", "out/model.pt2")
    assert code == 2 and "model.pt2 is not written: its probabilities differ from those of Model.predict" in err
    assert err.count("\n") == 1 and not list(tmp_path.rglob("*.pt2"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"probabilities": 2e-4}, "its probabilities differ"),
        ({"logits": float("nan")}, "its logits differ"),
        ({"varies": LEAST_RANGE / 2}, "which proves nothing"),
    ],
)
def test_a_proof_fails_where_answers_differ_and_where_they_never_vary(change, says):
    proof = Proof(24, (0.3, 30.0), (1, 4), 1e-6, 1e-5, 0.3, TOLERANCE)
    assert says in replace(proof, **change).failure() and (says or replace(proof, **change).failure() == "")


@pytest.mark.parametrize(
    ("features", "flags", "says"),
    [
        (Summary(chroma_tuning=None), (), "tuned to each clip (--chroma-tuning None) cannot be exported"),
        (LogMel(), ("--output", "model.tflite"), "choose a file that ends in .onnx or .pt2"),
        (LogMel(), ("--speaker-moments", "voice.wav"), "this one does without"),
        (LogMel(), ("--input-rate", "12"), "--input-rate must be 1000 to 384000"),
        (LogMel(), ("--output", "there.onnx"), "there.onnx is there already"),
        (LogMel(), ("--int8", "--data", "data"), "--int8 is for encoders: networks on log_mel answer no faster"),
        (LogMel(), ("--int8", "--output", "model.pt2"), "--int8 writes ONNX"),
        (LogMel(), ("--data", "data"), "--data is for --int8"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(features, flags, says, job, tmp_path):
    a_run(tmp_path / "run", features=features)
    (tmp_path / "there.onnx").touch()
    flags = flags if "--output" in flags else ("--output", "model.onnx", *flags)
    code, _, err = job("export", "--run", "run", *flags)
    assert code == 2 and says in err and err.count("\n") == 1, err


def test_features_without_a_graph_are_refused():
    with pytest.raises(UserError, match="features of the kind waveform cannot be exported"):
        Ears(Waveform(), RATE)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_truncated_or_tampered_model_is_one_line_and_nothing_is_executed(name, job, tmp_path):
    a_run(tmp_path / "run")
    file = tmp_path / "run" / "model" / name
    whole = file.read_bytes()
    tampered = {"empty": b"", "half": whole[: len(whole) // 2], "noise": bytes(reversed(whole))}
    if name == "config.json":
        content = json.loads(whole)
        tampered |= {
            "list": b"[]",
            "no labels": json.dumps({**content, "labels": {}}).encode(),
            "odd views": json.dumps({**content, "views": [["fast", {}]]}).encode(),
            "many": json.dumps({**content, "members": 3}).encode(),
            "other network": json.dumps({**content, "network": {"model": "os.system"}}).encode(),
            "wide": json.dumps({**content, "network": {**content["network"], "width": 8}}).encode(),
        }
    else:
        weights = safetensors.numpy.load(whole)
        lost = {name: array for name, array in weights.items() if name != "classify.weight"}
        tampered |= {"lost": safetensors.numpy.save(lost)}
    for how, data in tampered.items():
        file.write_bytes(data)
        code, _, err = job("export", "--run", "run", "--output", "model.onnx")
        assert code == 2 and err.count("\n") == 1 and "is not a model that this version reads" in err, (how, err)
    assert not (tmp_path / "model.onnx").exists()
