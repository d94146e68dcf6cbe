"""Answers for any recordings: a call with two speakers, hours of tape, folders with odd files in them."""

import dataclasses
import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import torch
from sound_files import voice

from ser_ray.base.errors import UserError
from ser_ray.features.arrays import shape_of
from ser_ray.features.log_mel import LogMel
from ser_ray.features.summary import Summary
from ser_ray.model import model as models
from ser_ray.model.answers import answer_windows
from ser_ray.model.files import load_model, save_model
from ser_ray.model.model import Model
from ser_ray.model.together import open_models
from ser_ray.model.views import Views
from ser_ray.model.windows import Hearing, WindowConfig, as_file
from ser_ray.networks.cnn1d import Cnn1dSpec
from ser_ray.networks.log_mel_resnet import LogMelResNetSpec
from ser_ray.predict import predict as predicting
from ser_ray.predict.inputs import find_pieces
from ser_ray.predict.output import Output
from ser_ray.predict.predict import predict_recordings
from ser_ray.predict.task import PredictConfig
from ser_ray.speech.audio import decode
from ser_ray.speech.emotions import LabelSet
from ser_ray.store.rows import open_rows

RATE = 16_000


def a_model(features=None, seed=0, **facts) -> Model:
    """Return an untrained model whose answers are far apart."""
    features = features or LogMel()
    torch.manual_seed(seed)
    spec = Cnn1dSpec() if isinstance(features, Summary) else LogMelResNetSpec(width=4)
    network = spec.build(shape_of(features.arrow_type()), 8).eval()
    return Model([network], spec, features, LabelSet(), temperature=0.2, facts=facts)


@pytest.fixture
def run(tmp_path) -> str:
    save_model(a_model(), str(tmp_path / "run" / "model"))
    return str(tmp_path / "run")


def write(path: Path, sound: np.ndarray, rate: int = RATE, **how) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, sound, rate, **how)
    return str(path)


def speech(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Return a voice whose pitch and loudness wander, so that no window is like another."""
    drift = 1 + 0.5 * np.sin(np.arange(int(seconds * rate)) / rate * (0.3 + 0.1 * seed))
    noise = np.random.default_rng(seed).standard_normal(int(seconds * rate)) * 0.02 * drift
    return (voice(seconds, rate) * drift + noise).astype(np.float32) * 0.5


def read(root) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    windows = pq.read_table(f"{root}/windows").to_pandas().sort_values(["file", "channel", "start"])
    recordings = pq.read_table(f"{root}/recordings.parquet").to_pandas()
    return windows.reset_index(drop=True), recordings, json.loads(Path(root, "predict.json").read_text())


def answer(run, output, *inputs, **settings) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    abstain = {"abstain_below": settings.pop("abstain_below", 0.0)}
    besides = settings.pop("besides", None)
    config = PredictConfig(WindowConfig(**settings), **abstain)
    predict_recordings(open_models([run]), list(map(str, inputs)), config, Output(str(output)), besides=besides)
    return read(output)


def test_clips_of_a_store_are_answered_as_the_store_is(made_frames, run, tmp_path):
    rows = open_rows(made_frames)
    rows = rows.take(np.arange(0, len(rows), 16))
    expected = load_model(run).predict_rows(rows)
    paths = expected["path"].to_pylist()
    windows, recordings, content = answer(run, tmp_path / "out", *paths)
    found = dict(zip(windows["file"], windows["probabilities"], strict=True))
    for path, probabilities in zip(paths, expected["probabilities"].to_pylist(), strict=True):
        np.testing.assert_allclose(found[path], probabilities, atol=1e-5)
    assert list(recordings["file"]) == paths and content["recordings"]["windows"] == len(paths)


def test_the_first_window_begins_where_the_features_say_and_is_what_was_trained_on(tmp_path):
    model = a_model(Summary())
    path = write(tmp_path / "clip.wav", speech(5.4, 44_100), 44_100)
    window = model.predict(path)
    assert list(window["start"]) == [0.6, 3.1] and window["end"].iloc[-1] == 5.4
    for start, end, probabilities in zip(window["start"], window["end"], window["probabilities"], strict=True):
        with open(path, "rb") as file:
            clip = decode(file, sample_rate=22_050, offset_s=start, duration_s=round(end - start, 3))
        assert len(clip.waveform_T) / 22_050 == pytest.approx(end - start, abs=1e-3)
        again = model.predict(np.concatenate([np.zeros(13_230, np.float32), clip.waveform_T]), sample_rate=22_050)
        np.testing.assert_allclose(again["probabilities"].iloc[0], probabilities, atol=1e-4)


@pytest.mark.parametrize("form", ["wav", "mp3", "flac", "ogg"])
def test_a_long_recording_read_in_blocks_is_answered_as_if_decoded_whole(form, tmp_path, monkeypatch):
    monkeypatch.setattr("ser_ray.speech.recording._BLOCK", 30_000)
    model = a_model()
    path = write(tmp_path / f"tape.{form}", speech(33.3))
    whole, rate = sf.read(path, dtype="float32")
    windows = model.predict(path)
    assert list(windows["start"]) == [0, 10, 20, 30] and windows["end"].iloc[-1] == len(whole) / rate
    for start, end, probabilities in zip(windows["start"], windows["end"], windows["probabilities"], strict=True):
        part = model.predict(whole[int(start * rate) : round(end * rate)], sample_rate=rate)
        np.testing.assert_allclose(part["probabilities"].iloc[0], probabilities, atol=1e-4)


def test_hours_of_tape_take_no_more_memory_than_a_few_windows(tmp_path):
    path = tmp_path / "tape.wav"
    with sf.SoundFile(path, "w", 8000, 1) as file:  # an hour
        for k in range(60):
            file.write(speech(60, 8000, k))
    tracemalloc.start()
    with open(path, "rb") as file:
        hearing = Hearing(file, WindowConfig(window_s=5), LogMel())
        count = sum(len(sound_T) == 80_000 for _, sound_T in hearing.sounds(16_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == len(hearing.windows) == 720 and hearing.seconds == 3600
    assert peak < 40e6  # as floats it would take 115 MB


def test_two_people_on_two_channels_of_a_call_are_heard_each_on_their_own(run, tmp_path):
    call = np.zeros((40 * RATE, 2), np.float32)
    call[: 10 * RATE, 0], call[30 * RATE :, 1] = speech(10), speech(10, seed=3)
    call += 1e-5 * np.random.default_rng(0).standard_normal(call.shape)  # the line's hiss
    path = write(tmp_path / "call.wav", call, subtype="FLOAT")
    windows, recordings, content = answer(run, tmp_path / "out", path, window_s=5.0, channels="separate")
    heard = windows[windows["emotion"].notna()]
    assert [*zip(heard["channel"], heard["start"], strict=True)] == [(1, 0.0), (1, 5.0), (2, 30.0), (2, 35.0)]
    silent = windows[windows["emotion"].isna()]
    assert silent["probability"].isna().all() and silent["probabilities"].isna().all() and len(silent) == 12
    assert list(recordings["channel"]) == [1, 2] and list(recordings["answered_s"]) == [10, 10]
    assert content["recordings"]["silent_s"] == 60 and content["recordings"]["silent_windows"] == 12
    whole, _, _ = answer(run, tmp_path / "mean", path, window_s=5.0)
    assert set(whole["channel"]) == {0} and list(whole["start"][whole["emotion"].notna()]) == [0, 5, 30, 35]
    second, _, _ = answer(run, tmp_path / "second", path, window_s=5.0, channels="2")
    pd.testing.assert_frame_equal(second, windows[windows["channel"] == 2].reset_index(drop=True))


def test_clips_of_two_real_actors_stand_at_their_places_in_a_call(run, real, tmp_path):
    """By turns, one actor a channel: each turn is answered as the clip by itself is, and the rest is silent."""
    actors = [
        sorted(folder.glob("*.flac"))[:3] for folder in sorted((real / "corpora" / "ravdess").glob("Actor_*"))[:2]
    ]
    sounds = [sf.read(path, dtype="float32") for pair in zip(*actors, strict=True) for path in pair]
    (rate,), length = {rate for _, rate in sounds}, max(len(sound_T) for sound_T, _ in sounds)
    call_TC = np.zeros((6 * length, 2), np.float32)
    for turn, (sound_T, _) in enumerate(sounds):
        call_TC[turn * length : turn * length + len(sound_T), turn % 2] = sound_T
    path, turn_s = write(tmp_path / "call.wav", call_TC, rate, subtype="FLOAT"), length / rate
    windows, _, content = answer(run, tmp_path / "out", path, window_s=turn_s, hop_s=turn_s, channels="separate")
    heard = windows[windows["probability"].notna()].sort_values("start")
    assert [*heard["channel"]] == [1, 2] * 3 and content["recordings"]["silent_windows"] == 6
    np.testing.assert_allclose(heard["start"], np.arange(6) * turn_s, atol=0.01)
    for turn, found in enumerate(heard["probabilities"]):
        alone = call_TC[turn * length : (turn + 1) * length, turn % 2]
        (expected,) = load_model(run).predict(alone, sample_rate=rate)["probabilities"]
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.usefixtures("local_ray")
def test_odd_real_files_are_answered_or_silent(run, real, tmp_path):
    paths = sorted((real / "oddities").rglob("*.wav"))
    _, recordings, content = answer(run, tmp_path / "out", *paths)
    assert [*recordings["file"]] == list(map(str, paths)) and content["recordings"]["rejected"] == 0
    by_stem = recordings.assign(stem=[Path(name).stem for name in recordings["file"]]).set_index("stem")
    assert pd.isna(by_stem.loc["1076_MTI_SAD_XX", "emotion"]) and by_stem.loc["1076_MTI_SAD_XX", "answered_s"] == 0
    assert by_stem.loc["OAF_food_fear", "sample_rate"] == 96_000


def test_seconds_add_up_and_a_recording_says_how_much_of_it_is_which_emotion(run, tmp_path):
    sound = np.concatenate([speech(21.3), np.zeros(8 * RATE, np.float32), speech(6.1, seed=5)])
    path = write(tmp_path / "a.wav", sound)
    for number, how in enumerate(({}, {"window_s": 4.0}, {"window_s": 4.0, "hop_s": 1.5}, {"window_s": 60.0})):
        windows, recordings, _ = answer(run, tmp_path / f"out{number}", path, **how)
        (whole,) = recordings.to_dict("records")
        assert whole["seconds"] == len(sound) / RATE
        assert whole["answered_s"] + whole["silent_s"] == pytest.approx(whole["seconds"])
        assert windows["start"].iloc[0] == 0 and windows["end"].iloc[-1] == whole["seconds"]
        assert sum(whole["shares"]) == pytest.approx(1)
        heard = np.stack(windows["probabilities"].dropna())
        expected = np.exp(np.log(heard).mean(0))
        np.testing.assert_allclose(whole["probabilities"], expected / expected.sum(), atol=1e-9)
    assert whole["windows"] == 1


def test_a_recording_of_silence_is_answered_as_silent_and_a_short_one_is_one_window(run, tmp_path):
    write(tmp_path / "in" / "silent.wav", np.zeros(3 * RATE))
    write(tmp_path / "in" / "short.wav", speech(0.3))
    windows, recordings, content = answer(run, tmp_path / "out", tmp_path / "in")
    assert list(windows["emotion"].notna()) == [True, False] and list(windows["end"]) == [0.3, 3.0]
    assert content["recordings"] | {"found": 2, "answered": 1, "silent": 1, "rejected": 0} == content["recordings"]
    assert recordings["emotion"].isna().sum() == 1


def test_what_the_model_is_unsure_of_has_no_emotion_but_its_probabilities(run, tmp_path):
    path = write(tmp_path / "a.wav", speech(25))
    sure, _, _ = answer(run, tmp_path / "sure", path)
    limit = float(sure["probability"].median())
    windows, _, content = answer(run, tmp_path / "out", path, abstain_below=limit)
    assert list(windows["emotion"].isna()) == list(sure["probability"] < limit)
    assert windows["probabilities"].notna().all() and 0 < content["recordings"]["abstained_windows"] < len(windows)


def test_one_bad_recording_among_good_ones_is_one_line_and_the_rest_is_answered(run, job, tmp_path):
    folder = tmp_path / "in"
    write(folder / "deep" / "good.flac", speech(2))
    good = Path(write(folder / "cut.wav", speech(2))).read_bytes()
    (folder / "cut.wav").write_bytes(good[: len(good) // 2])
    (folder / "page.mp3").write_text("<!doctype html><html><body>not found</body></html>" * 9)
    (folder / "empty.wav").touch()
    write(folder / "loud.wav", np.full(RATE, np.nan, np.float32), subtype="FLOAT")
    code, out, err = job("predict", "--run", run, "--input", "in", "--output", "out", "--csv")
    assert (code, err) == (0, ""), err
    rejects = pq.read_table("out/rejects").to_pylist()
    reasons = {Path(reject["file"]).name: reject["reason"] for reject in rejects}
    assert set(reasons) == {"cut.wav", "page.mp3", "empty.wav", "loud.wav"}
    assert "truncated" in reasons["cut.wav"] and "web page" in reasons["page.mp3"] and "NaN" in reasons["loud.wav"]
    assert out.count("Rejected: ") == 4
    windows, _, content = read("out")
    assert [Path(name).name for name in windows["file"]] == ["good.flac"]
    assert content["recordings"] | {"found": 5, "answered": 1, "rejected": 4} == content["recordings"]
    table = pd.read_csv("out/windows.csv")
    np.testing.assert_allclose(table[list(LabelSet().names)].iloc[0], windows["probabilities"][0])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["nowhere.wav"], "nothing is there"),
        (["none/*.wav"], "matches nothing"),
        (["hollow"], "1 zip archive: unpack it"),
        (["hollow/*"], "none is a recording"),
        (["no_path.csv"], "the column path is missing"),
        (["blank.csv"], "lists no recording"),
    ],
)
def test_an_input_that_is_no_recording_is_refused_in_one_line(given, says, run, job, tmp_path):
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "clips.zip").write_bytes(b"PK")
    (tmp_path / "no_path.csv").write_text("emotion,speaker\nhappy,anna\n")
    (tmp_path / "blank.csv").write_text("path,start\n,\n")
    code, _, err = job("predict", "--run", run, "--input", *given, "--output", "out")
    assert code == 2 and says in err and err.count("\n") == 1 and not Path("out").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--channels", "left"], "choose mean, separate, or the number"),
        (["--hop-s", "20"], "--hop-s must be at most --window-s"),
        (["--window-s", "0"], "--window-s must be 0.1 to 3600"),
        (["--abstain-below", "7"], "--abstain-below must be 0 to 1"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused_in_one_line(flags, says, run, job, tmp_path):
    path = write(tmp_path / "a.wav", speech(1))
    code, _, err = job("predict", "--run", run, "--input", path, "--output", "out", *flags)
    assert code == 2 and says in err and err.count("\n") == 1


def test_a_pattern_a_file_without_suffix_and_a_folder_name_each_recording_once(tmp_path):
    for name in ("a/1.wav", "a/b/2.WAV", "a/b/3.flac", "c/4.wav"):
        write(tmp_path / name, speech(0.6))
    (tmp_path / "a" / "notes.txt").touch()
    sf.write(tmp_path / "plain", speech(0.6), RATE, format="WAV")
    root = str(tmp_path)

    def names(*inputs):
        return [piece.path.removeprefix(f"{root}/") for piece in find_pieces(inputs)]

    assert names(f"{root}/a") == ["a/1.wav", "a/b/2.WAV", "a/b/3.flac"]
    assert names(f"{root}/**/*.wav") == ["a/1.wav", "c/4.wav"]
    assert names(f"{root}/*/b", f"{root}/a/*") == ["a/b/2.WAV", "a/b/3.flac", "a/1.wav"]
    assert names(f"{root}/plain", f"{root}/plain") == ["plain"]
    assert [piece.path for piece in find_pieces([f"file://{root}/a/*.wav"])] == [f"file://{root}/a/1.wav"]


def test_a_table_names_parts_of_recordings(run, tmp_path):
    sound = speech(20)
    write(tmp_path / "tape.wav", sound)
    rows = ["File,Start,End", "tape.wav,2,5.5", "tape.wav,0:00:10,", ",,", "tape.wav,,3", "tape.wav,30,31", "x.wav,,"]
    rows += ["tape.wav,5,4", "tape.wav,soon,"]
    (tmp_path / "parts.csv").write_text("\n".join(rows))
    frame = pd.DataFrame({"path": ["tape.wav"] * 2, "start": [2.0, float("nan")], "end": [5.5, 3.0]})
    frame.to_parquet(tmp_path / "parts.parquet")
    beyond = tmp_path / "beyond.csv"  # two parts that end where the recording does
    beyond.write_text("path,start,end\ntape.wav,15,30\ntape.wav,15,40\n")
    assert answer(run, tmp_path / "ends", beyond)[2]["recordings"]["answered"] == 2
    windows, recordings, content = answer(run, tmp_path / "out", tmp_path / "parts.csv")
    assert [*zip(windows["start"], windows["end"], strict=True)] == [(0, 3), (2, 5.5), (10, 20)]
    assert list(recordings["start"]) == [2, 10, 0] and list(recordings["seconds"]) == [3.5, 10, 3]
    reasons = " ".join(row["reason"] for row in pq.read_table(tmp_path / "out/rejects").to_pylist())
    for words in ("begins at 30 s", "file not found", "before it begins", "'soon' is no time"):
        assert words in reasons
    assert content["recordings"]["rejected"] == 4
    again, _, _ = answer(run, tmp_path / "again", tmp_path / "parts.parquet")
    pd.testing.assert_frame_equal(again, windows[:2])
    part = load_model(run).predict(sound[2 * RATE : int(5.5 * RATE)], sample_rate=RATE)
    np.testing.assert_allclose(windows["probabilities"][1], part["probabilities"][0], atol=1e-3)  # 16 bits


def test_runs_answer_together_and_must_have_the_same_labels(run, tmp_path, job):
    models = [a_model(), a_model(seed=1)]
    save_model(models[1], str(tmp_path / "other" / "model"))
    strange = dataclasses.replace(a_model(), labels=LabelSet(merged=(("calm", "neutral"),)))
    save_model(strange, str(tmp_path / "strange" / "model"))
    path = write(tmp_path / "a.wav", speech(12))
    code, out, err = job("predict", "--run", run, str(tmp_path / "other"), "--input", path, "--output", "out")
    assert (code, err) == (0, ""), err
    one, other = (np.stack(model.predict(path)["probabilities"]) for model in models)
    pooled = np.sqrt(one * other)
    windows, _, content = read("out")
    np.testing.assert_allclose(np.stack(windows["probabilities"]), pooled / pooled.sum(1, keepdims=True), atol=1e-9)
    assert content["model"]["weights"] == {run: 0.5, str(tmp_path / "other"): 0.5}
    assert content["model"]["weighing"] in out and "the runs count alike, since" in out
    code, _, err = job("predict", "--run", run, str(tmp_path / "strange"), "--input", path, "--output", "no")
    assert code == 2 and "has other labels than" in err and err.count("\n") == 1


def test_a_killed_job_goes_on_and_a_finished_or_another_one_is_not_touched(run, job, tmp_path, monkeypatch):
    for k in range(3):
        write(tmp_path / "in" / f"{k}.wav", speech(2, seed=k))
    words = ("predict", "--run", run, "--input", "in", "--output", "out")
    real, seen = predicting.Answerer._answer, []

    def dies(self, name, pieces):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(pieces[0].path)
        return real(self, name, pieces)

    monkeypatch.setattr(predicting.Answerer, "_answer", dies)
    assert job(*words)[0] == 130 and len(seen) == 2 and not Path("out/predict.json").exists()
    code, _, err = job(*words, "--window-s", "1")
    assert code == 2 and "window_s: 10.0, wanted 1.0" in err
    save_model(a_model(seed=1), str(tmp_path / "other" / "model"))
    code, _, err = job("predict", "--run", str(tmp_path / "other"), "--input", "in", "--output", "out")
    assert code == 2 and "model: " in err
    seen.clear()
    code, out, err = job(*words)
    assert (code, err) == (0, "") and "Answered already: 2 recordings" in out
    assert [Path(path).name for path in seen] == ["2.wav"]
    windows, _, _ = read("out")
    monkeypatch.setattr(predicting.Answerer, "_answer", real)
    whole, _, _ = answer(run, tmp_path / "whole", tmp_path / "in")
    pd.testing.assert_frame_equal(windows, whole)
    code, _, err = job(*words)
    assert code == 2 and "finished answers" in err


@pytest.mark.usefixtures("local_ray")
def test_answers_on_ray_and_in_one_process_are_the_same(run, tmp_path, monkeypatch):
    for k in range(12):
        write(tmp_path / "in" / f"{k}.wav", speech(2 + k, seed=k))
    (tmp_path / "in" / "bad.wav").write_bytes(b"RIFF")
    assert not predicting.are_few(find_pieces([str(tmp_path / "in")]))
    spread = answer(run, tmp_path / "spread", tmp_path / "in", channels="separate")
    monkeypatch.setattr(predicting, "FEW", 100)
    here = answer(run, tmp_path / "here", tmp_path / "in", channels="separate")
    for one, other in zip(spread[:2], here[:2], strict=True):
        assert list(one["file"]) == list(other["file"])
        np.testing.assert_allclose(np.stack(one["probabilities"]), np.stack(other["probabilities"]), atol=1e-6)
        columns = ["channel", "start", "end", "emotion"]
        pd.testing.assert_frame_equal(one[columns], other[columns])
    assert spread[2]["recordings"] == here[2]["recordings"]
    assert sorted(path.name for path in (tmp_path / "spread").iterdir()) == sorted(
        path.name for path in (tmp_path / "here").iterdir()
    )


def test_long_or_many_recordings_are_work_for_ray(tmp_path, monkeypatch):
    paths = [write(tmp_path / f"{k}.wav", np.zeros(100 * 1000), 1000) for k in range(6)]
    assert not predicting.are_few(find_pieces(paths)) and predicting.are_few(find_pieces(paths[:5]))


def test_how_long_a_recording_is_its_header_tells_without_the_rest(tmp_path, monkeypatch):
    taken = []

    class Counting(io.BytesIO):
        def read(self, size=-1):
            taken.append(len(part := super().read(size)))
            return part

    pieces = find_pieces([write(tmp_path / "a.wav", np.zeros(250 * RATE))])
    monkeypatch.setattr(predicting, "open_sound", lambda path: Counting(Path(path).read_bytes()))
    assert predicting.are_few(pieces) and 0 < sum(taken) < pieces[0].size / 10


def test_the_views_of_a_network_are_made_for_the_first_recording_alone(monkeypatch):
    made = []
    monkeypatch.setattr(models, "Views", lambda *given: made.append(Views(*given)) or made[-1])
    model = dataclasses.replace(a_model(), views=((1.0, 0.0), (0.85, 1.5)))
    first, second = (model.predict(speech(2), sample_rate=RATE) for _ in range(2))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert len(made) == 1


def test_a_model_of_made_speech_says_so(job, tmp_path):
    save_model(a_model(made_speech=True), str(tmp_path / "run" / "model"))
    path = write(tmp_path / "a.wav", speech(12))
    code, out, err = job("predict", "--run", "run", "--input", path, "--output", "out")
    assert (code, err) == (0, "") and "say nothing about people" in out
    assert json.loads(Path("out/predict.json").read_text())["made_speech"] is True
    assert "10.000" in out and "a.wav" in out  # the windows of a single recording


def test_a_model_that_normalizes_by_speaker_takes_each_channel_for_a_person(tmp_path):
    model = a_model()
    model.speaker_norm = True
    path = write(tmp_path / "call.wav", np.stack([speech(25), 0.1 * speech(25, seed=2)], axis=1), subtype="FLOAT")
    with open(path, "rb") as file:
        both = answer_windows([model], Hearing(file, WindowConfig(channels="separate"), model.features))
        quiet = as_file(sf.read(path)[0][:, 1], RATE)
        alone = answer_windows([model], Hearing(quiet, WindowConfig(), model.features))
    np.testing.assert_allclose(both[3:], alone, atol=1e-5)


def test_a_file_that_cannot_be_read_or_lacks_its_rate_is_refused_in_python(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"a\.wav: "):
        a_model().predict(str(tmp_path / "a.wav"))
    with pytest.raises(UserError, match="without their rate"):
        a_model().predict(np.zeros(10))
