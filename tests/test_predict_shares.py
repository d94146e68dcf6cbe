"""A long recording is answered by several workers at once, with the rows that one gives."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from test_predict import a_model, answer, read, speech

from ser_ray.model.files import save_model
from ser_ray.model.together import open_models
from ser_ray.model.windows import WindowConfig
from ser_ray.predict import predict as predicting
from ser_ray.predict import predict_on_ray, shares
from ser_ray.predict.output import Output
from ser_ray.predict.predict import predict_recordings
from ser_ray.predict.task import Answerer, PredictConfig

RATE = 8000


@pytest.fixture(scope="module")
def tape(tmp_path_factory) -> str:
    """Return a recording of 12.6 minutes on two channels, with pauses, of which the loudest part comes last."""
    path = tmp_path_factory.mktemp("tape") / "tape.wav"
    with sf.SoundFile(path, "w", RATE, 2) as file:
        for k in range(21):
            sound_TC = np.stack([speech(36, RATE, k), speech(36, RATE, k + 30)], axis=1) * (0.02 + k / 25)
            sound_TC[:, k % 2 :] *= 1e-4 if k % 3 == 1 else 1  # on even turns both are silent
            file.write(sound_TC)
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[str]:
    roots = [str(tmp_path_factory.mktemp("run")) for _ in range(2)]
    for seed, root in enumerate(roots):
        save_model(a_model(seed=seed), f"{root}/model")
    return roots


def in_this_process(answerer, tasks):
    """Stand for Ray: answer one task after the other."""
    seen.append(list(tasks))
    yield from (answerer(name, pieces) for name, pieces in tasks.items())


seen: list[list[str]] = []


def answer_twice(runs, tape, tmp_path, monkeypatch, **windows):
    """Answer a recording whole, then in shares."""
    monkeypatch.setattr(predict_on_ray, "answer_on_ray", in_this_process)
    config, results = PredictConfig(WindowConfig(**windows), abstain_below=0.3), []
    for least_s in (1e9, 300.0):
        monkeypatch.setattr(shares, "SHARE_S", least_s)
        seen.clear()
        output = tmp_path / f"out{least_s:g}"
        predict_recordings(open_models(runs), [tape], config, Output(str(output)))
        results.append((*read(output), list(map(len, seen))))
    return results


@pytest.mark.parametrize("windows", [{}, {"channels": "separate", "window_s": 4.0, "hop_s": 3.0}])
def test_a_long_recording_has_the_same_rows_from_several_workers_as_from_one(
    windows, runs, tape, tmp_path, monkeypatch
):
    whole, shared = answer_twice(runs, tape, tmp_path, monkeypatch, **windows)
    assert (whole[3], shared[3]) == ([1], [2, 1])  # two shares, then what is made of them
    for one, other in zip(whole[:2], shared[:2], strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert whole[2]["recordings"] == shared[2]["recordings"] and whole[2]["domain"] == shared[2]["domain"]
    assert 0 < shared[2]["recordings"]["silent_windows"] < shared[2]["recordings"]["windows"]
    assert not (tmp_path / "out300" / "shares").exists()


def test_each_window_is_answered_once_and_what_is_made_of_shares_asks_no_network(runs, tape, tmp_path, monkeypatch):
    asked = []
    real = shares.answer_windows

    def counts(models, hearing, weights, share):
        answers_WC = real(models, hearing, weights, share=share)
        asked.append(~np.isnan(answers_WC[:, 0]))
        return answers_WC

    def refuses(*_):
        raise AssertionError("asked again")

    monkeypatch.setattr(shares, "answer_windows", counts)
    monkeypatch.setattr("ser_ray.predict.task.answer_windows", refuses)
    monkeypatch.setattr(predict_on_ray, "answer_on_ray", in_this_process)
    windows, _, content = answer(runs[0], tmp_path / "out", tape)
    assert content["recordings"]["rejected"] == 0 and len(asked) == 2
    np.testing.assert_array_equal(asked[0].astype(int) + asked[1], windows["probability"].notna())


def test_a_share_that_is_missing_costs_time_and_no_rows(runs, tape, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_on_ray, "answer_on_ray", in_this_process)
    whole = answer(runs[0], tmp_path / "whole", tape)
    monkeypatch.setattr(shares, "answer_share", lambda *_: None)
    pd.testing.assert_frame_equal(answer(runs[0], tmp_path / "out", tape)[0], whole[0], check_exact=True)


def test_a_job_that_was_killed_among_shares_goes_on_with_those_that_are_there(runs, tape, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_on_ray, "answer_on_ray", in_this_process)
    real, asked = shares.answer_share, []

    def dies(together, share, config):
        if asked == [0]:
            asked.append("killed")
            raise KeyboardInterrupt
        asked.append(share.number)
        return real(together, share, config)

    monkeypatch.setattr(shares, "answer_share", dies)
    with pytest.raises(KeyboardInterrupt):
        answer(runs[0], tmp_path / "out", tape)
    assert len(list(Path(tmp_path / "out" / "shares").iterdir())) == 1
    answer(runs[0], tmp_path / "out", tape)
    assert asked == [0, "killed", 1]


def test_a_long_recording_that_is_cut_off_is_one_reject_with_its_reason(runs, tape, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_on_ray, "answer_on_ray", in_this_process)
    data = Path(tape).read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cut.wav").write_bytes(data[: len(data) - 100_000])
    sf.write(tmp_path / "in" / "good.wav", speech(2, RATE), RATE)
    _, recordings, content = answer(runs[0], tmp_path / "out", tmp_path / "in")
    assert len(recordings) == 1 and content["recordings"]["rejected"] == 1


def test_who_must_hear_all_of_a_recording_hears_it_alone(runs, monkeypatch):
    together = open_models(runs)
    assert shares.can_share(together, PredictConfig())
    together.models[0].speaker_norm = True
    assert not shares.can_share(together, PredictConfig())
    assert [shares.count_shares(length_s) for length_s in (0, 599, 600, 1000, 1e5)] == [1, 1, 2, 3, 8]
    assert predicting.SPREAD_BELOW > predicting.FEW and Answerer(together, PredictConfig(), Output("")).shares == {}
