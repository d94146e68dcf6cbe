"""What may be given to prediction, who speaks there, and what is left when a job is killed."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sound_files import encode
from test_predict import a_model, answer, read, speech, write

from ser_ray.model.files import save_model
from ser_ray.model.together import open_models
from ser_ray.predict import inputs, predict_on_ray
from ser_ray.predict import predict as predicting
from ser_ray.predict.inputs import find_parts, find_pieces
from ser_ray.predict.output import Output, gather
from ser_ray.predict.predict import predict_recordings
from ser_ray.predict.predict_on_ray import GROUP_BYTES, MAX_GROUPED, group_tasks
from ser_ray.predict.task import PredictConfig

JOB = Path(__file__).parent.parent / "jobs" / "predict.py"


@pytest.fixture
def run(tmp_path) -> str:
    save_model(a_model(), str(tmp_path / "run" / "model"))
    return str(tmp_path / "run")


@pytest.fixture
def norm_run(tmp_path) -> str:
    model = a_model()
    model.speaker_norm = True
    save_model(model, str(tmp_path / "norm" / "model"))
    return str(tmp_path / "norm")


def test_a_video_and_a_sound_in_a_table_are_answered_like_their_files(run, tmp_path):
    av = pytest.importorskip("av")
    from test_media import encode_media

    assert av
    (tmp_path / "film.mp4").write_bytes(encode_media("mp4", "aac", video=True))
    (tmp_path / "mute.mp4").write_bytes(encode_media("mp4", video=True))
    sound = {"bytes": encode("FLAC", seconds=2), "path": "a.flac"}
    (tmp_path / "a.flac").write_bytes(sound["bytes"])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"audio": pa.array([sound], kind)}), tmp_path / "t.parquet")
    windows, _, content = answer(
        run, tmp_path / "out", *(tmp_path / name for name in ("film.mp4", "mute.mp4", "t.parquet", "a.flac"))
    )
    by_file = {Path(file).name: row for file, row in zip(windows["file"], windows["probabilities"], strict=True)}
    assert set(by_file) == {"film.mp4", "t.parquet#0", "a.flac"}
    np.testing.assert_array_equal(by_file["t.parquet#0"], by_file["a.flac"])
    (reject,) = pq.read_table(tmp_path / "out" / "rejects").to_pylist()
    assert reject["reason"].endswith("without sound") and content["recordings"]["found"] == 4


def test_recordings_are_found_and_answered_part_by_part_as_if_at_once(run, tmp_path, monkeypatch):
    for k in range(7):
        write(tmp_path / "in" / f"{k % 3}" / f"{k}.wav", speech(1, seed=k))
    words = [str(tmp_path / "in"), str(tmp_path / "in" / "0"), str(tmp_path / "in" / "2" / "2.wav")]
    whole = find_pieces(words)
    parts = list(find_parts(words, most=2))
    assert [piece for part in parts for piece in part] == whole and len(whole) == 7
    assert max(map(len, parts)) == 2
    answer(run, tmp_path / "whole", *words)
    real = inputs.find_parts
    monkeypatch.setattr(predicting, "find_parts", lambda words: real(words, most=3))
    monkeypatch.setattr(predicting, "are_few", lambda part: True)
    calls = []

    def here(answerer, tasks, few):
        calls.append(sum(map(len, tasks.values())))
        return answer_here(answerer, tasks, True)

    answer_here = predicting._answer
    monkeypatch.setattr(predicting, "_answer", here)
    answer(run, tmp_path / "parts", *words)
    assert calls == [3, 3, 1]
    for one, other in zip(read(tmp_path / "whole"), read(tmp_path / "parts"), strict=True):
        if isinstance(one, dict):
            assert one["recordings"] == other["recordings"]
        else:
            pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_a_part_whose_recordings_changed_since_the_job_was_killed_is_refused(run, tmp_path):
    output = Output(str(tmp_path / "out"))
    output.claim_part(1, "aa")
    output.claim_part(1, "aa")
    with pytest.raises(inputs.UserError, match="those of part 2 changed"):
        output.claim_part(1, "bb")


def test_objects_are_listed_folder_by_folder_with_the_same_result(tmp_path):
    for name in ("x/y/a/1.wav", "x/y/b/c/2.wav", "x/y/3.wav", "x/y/notes.txt"):
        write(tmp_path / name, speech(0.1)) if name.endswith("wav") else (tmp_path / name).touch()
    folders = list(inputs._folders(f"file://{tmp_path}"))
    assert [file.path.rpartition("/")[2] for folder in folders for file in folder.files] == ["3.wav", "1.wav", "2.wav"]


@pytest.mark.parametrize(("tasks", "recordings", "size"), [(60, 1, 11 << 20), (256, 12, 192_000), (3, 1, 1 << 30)])
def test_workers_are_given_tasks_in_groups_that_shrink_towards_the_end(tmp_path, tasks, recordings, size):
    (piece,) = find_pieces([write(tmp_path / "a.wav", speech(1))])
    dealt = {f"{k}": [piece._replace(size=size)] * recordings for k in range(tasks)}
    groups = group_tasks(dealt, 2)
    assert [name for group in groups for name in group] == list(dealt) and len(groups[-1]) == 1
    lengths = [len(group) for group in groups]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] <= max(1, tasks // 4)
    assert all(len(group) == 1 or len(group) * size <= GROUP_BYTES for group in groups)
    assert all(len(group) == 1 or len(group) * recordings <= MAX_GROUPED for group in groups)


def test_small_tables_are_gathered_in_order_and_none_is_lost():
    tables = [pa.table({"row": np.arange(start, start + count)}) for start, count in ((0, 3), (3, 1), (4, 0), (4, 5))]
    gathered = list(gather(tables, 4))
    assert [len(table) for table in gathered] == [4, 5]
    assert pa.concat_tables(gathered)["row"].to_pylist() == list(range(9)) and not list(gather([], 4))


def test_what_a_table_says_besides_is_carried_along(run, tmp_path):
    for k in range(2):
        write(tmp_path / f"{k}.wav", speech(1, seed=k))
    (tmp_path / "a.csv").write_text("path,emotion,Day,start\n0.wav,sad,monday,\n1.wav,,,0.2\n")
    pd.DataFrame({"file": ["0.wav"], "end": [0.5], "score": [7]}).to_parquet(tmp_path / "b.parquet")
    windows, recordings, _ = answer(run, tmp_path / "out", tmp_path / "a.csv", tmp_path / "b.parquet")
    assert recordings["emotion_given"].fillna("").tolist() == ["sad", "", ""]
    assert recordings["Day"].fillna("").tolist() == ["monday", "", ""]
    assert recordings["score"].fillna("").tolist() == ["", "", "7"]
    assert "carried" not in recordings and recordings["emotion"].notna().all() and len(windows) == 3
    assert "start_given" not in recordings and "file_given" not in recordings
    _, plain, _ = answer(run, tmp_path / "plain", tmp_path / "0.wav")
    assert not {"carried", "Day"} & set(plain)


def test_people_are_known_by_all_their_recordings_and_little_of_one_is_answered_as_unsure(norm_run, tmp_path):
    rows = ["path,speaker"]
    for k, speaker in enumerate(["anna", "bert", "anna", "anna", ""]):
        write(tmp_path / f"{k}.wav", speech(12, seed=k))
        rows.append(f"{k}.wav,{speaker}")
    (tmp_path / "people.csv").write_text("\n".join(rows))
    windows, recordings, content = answer(norm_run, tmp_path / "out", tmp_path / "people.csv")
    named = {Path(file).stem for file in windows["file"][windows["emotion"].notna()]}
    assert named == {"0", "2", "3"}  # 36 s of anna; 12 s of bert, and of somebody
    assert windows["probabilities"].notna().all()
    assert recordings["emotion"].notna().sum() == 3 and content["recordings"]["abstained_windows"] == 4
    config = PredictConfig(trust_short_speakers=True)
    predict_recordings(
        open_models([norm_run]), [str(tmp_path / "people.csv")], config, Output(str(tmp_path / "trusted"))
    )
    trusted = read(tmp_path / "trusted")[0]
    assert trusted["emotion"].notna().all()
    np.testing.assert_array_equal(np.stack(trusted["probabilities"]), np.stack(windows["probabilities"]))
    alone, _, _ = answer(norm_run, tmp_path / "alone", tmp_path / "0.wav")
    assert np.abs(np.stack(alone["probabilities"]) - np.stack(windows["probabilities"][:2])).max() > 1e-4


def test_little_of_a_speaker_is_said_on_the_terminal(norm_run, job, tmp_path):
    write(tmp_path / "a.wav", speech(12))
    code, out, err = job("predict", "--run", norm_run, "--input", "a.wav")
    assert (code, err) == (0, "") and "Less than 30 s of a speaker" in out and "1 recordings" in out
    (made,) = (tmp_path / "answers").iterdir()  # a fresh output of its own
    assert (made / "predict.json").exists()


@pytest.mark.parametrize(
    ("run_name", "says"),
    [("nowhere", "nowhere"), ("hollow", "hollow"), ("begun", "begun")],
)
def test_what_holds_no_model_is_refused_in_one_line(run_name, says, job, tmp_path):
    write(tmp_path / "a.wav", speech(1))
    (tmp_path / "hollow").mkdir()
    (tmp_path / "begun" / "model").mkdir(parents=True)
    (tmp_path / "begun" / "request.json").write_text("{}")
    code, _, err = job("predict", "--run", run_name, "--input", "a.wav", "--output", "out")
    assert code == 2 and says in err and err.count("\n") == 1 and not Path("out").exists()


def test_an_output_for_other_recordings_or_of_something_else_is_refused_in_one_line(run, job, tmp_path):
    for name in ("a.wav", "b.wav"):
        write(tmp_path / name, speech(1))
    Output("out").claim({"recordings": "those of another day"}, "")
    code, _, err = job("predict", "--run", run, "--input", "a.wav", "--output", "out")
    assert code == 2 and "asked for otherwise" in err and err.count("\n") == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    code, _, err = job("predict", "--run", run, "--input", "a.wav", "--output", "mine")
    assert code == 2 and "holds thesis.txt" in err and err.count("\n") == 1


def test_windows_shorter_than_a_frame_are_refused_and_a_speaker_column_is_no_path(run, job, tmp_path):
    write(tmp_path / "a.wav", speech(1))
    code, _, err = job("predict", "--run", run, "--input", "a.wav", "--output", "out", "--window-s", "0.02")
    assert code == 2 and "--window-s must be 0.1 to 3600" in err and err.count("\n") == 1


@pytest.mark.timeout(300)
def test_a_driver_that_is_killed_goes_on_with_the_same_rows_to_the_last_bit(run, tmp_path):
    for k in range(8):
        write(tmp_path / "in" / f"{k}.wav", speech(40, seed=k))
    command = [sys.executable, JOB, "--run", run, "--input", tmp_path / "in", "--output"]
    job = subprocess.Popen([*command, tmp_path / "out"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    while job.poll() is None and len(list((tmp_path / "out" / "parts").glob("*.parquet"))) < 2:
        time.sleep(0.05)
    os.kill(job.pid, signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL and not (tmp_path / "out" / "predict.json").exists()
    for name in ("out", "undisturbed"):
        done = subprocess.run([*command, tmp_path / name], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert ("Answered already" in done.stdout) == (name == "out")
    for one, other in pairwise(read(tmp_path / name)[:2] for name in ("out", "undisturbed")):
        for mine, its in zip(one, other, strict=True):
            pd.testing.assert_frame_equal(mine, its, check_exact=True)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.timeout(300)
def test_a_worker_that_is_killed_costs_no_row_and_changes_none(run, tmp_path, monkeypatch):
    for k in range(12):
        write(tmp_path / "in" / f"{k}.wav", speech(20, seed=k))
    killed = tmp_path / "killed"

    def answer_or_die(tasks, answerer):
        from ser_ray.predict import predict_on_ray as room

        if not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return room._answer_in_task(tasks, answerer)

    monkeypatch.setattr(predict_on_ray, "_answer_in_task", answer_or_die)
    disturbed = answer(run, tmp_path / "out", tmp_path / "in")
    assert killed.exists()
    monkeypatch.undo()
    undisturbed = answer(run, tmp_path / "undisturbed", tmp_path / "in")
    assert disturbed[2]["recordings"] == undisturbed[2]["recordings"]
    for one, other in zip(disturbed[:2], undisturbed[:2], strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert disturbed[2]["recordings"]["seconds"] == pytest.approx(12 * 20)


def test_a_gpu_that_is_not_there_is_refused_in_one_line(run, job, tmp_path):
    write(tmp_path / "a.wav", speech(2))
    code, _, err = job("predict", "--run", run, "--input", "a.wav", "--output", "out", "--device", "cuda")
    assert code == 2 and "1 GPU is needed and this cluster has 0; use --device cpu" in err and err.count("\n") == 1
