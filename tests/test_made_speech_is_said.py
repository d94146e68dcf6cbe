"""That speech is made is a fact of the data: it reaches whoever sees a score of it, whichever flags were given."""

import json
import shutil
from pathlib import Path

import pytest

from ser_ray.scores.scores import MADE_SPEECH
from ser_ray.speech import made
from ser_ray.store.rows import open_rows
from ser_ray.store.store import Store

pytestmark = pytest.mark.usefixtures("local_ray")
QUICK = ("--model", "cnn1d", "--epochs", "1", "--num-workers", "1")


def told(root):
    """Say where a run tells that its speech is made."""
    places = {"metrics.json": "metrics.json", "report": "report.html", "model card": "model/README.md"}
    return {name for name, path in places.items() if MADE_SPEECH in Path(root, path).read_text()}


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "speech"
    made.write_speech(str(root), clips=96, processes=1)
    return root


def test_a_run_and_an_evaluation_of_made_speech_say_so_whatever_the_flags(job, speech, tmp_path):
    code, out, err = job("train", "--data", speech, "--store", "store", *QUICK, "--output", "by-data")
    assert (code, err) == (0, "") and MADE_SPEECH in out, err
    assert Store("store").info()["made_speech"] == [str(speech)]
    code, out, err = job("train", "--store", "store", *QUICK, "--output", "by-store")
    assert (code, err) == (0, "") and MADE_SPEECH in out, err
    for root in ("by-data", "by-store"):
        assert told(root) == {"metrics.json", "report", "model card"}
        assert json.loads(Path(root, "metrics.json").read_text())["made_speech"] is True
    shutil.copytree(speech / "savee", tmp_path / "copied")  # a corpus's own folder keeps the fact
    code, out, err = job("train", "--data", tmp_path / "copied", *QUICK, "--output", "copied")
    assert (code, err) == (0, "") and MADE_SPEECH in out, err
    other = made.write_speech(str(tmp_path / "other"), clips=96, seed=3, processes=1)
    code, out, err = job("evaluate", "--run", "by-store", "--data", *other, "--output", "evaluated")
    assert (code, err) == (0, "") and MADE_SPEECH in out, err
    assert MADE_SPEECH in Path("evaluated/report.html").read_text()
    assert json.loads(Path("evaluated/metrics.json").read_text())["made_speech"] is True


def test_a_cross_validation_of_made_speech_says_so_once(job, speech):
    wish = ("--data", speech, "--store", "store", *QUICK, "--num-folds", "2", "--fold", "all", "--output", "all")
    code, out, err = job("train", *wish)
    assert (code, err) == (0, "") and out.count(MADE_SPEECH) == 1, err
    assert json.loads(Path("all/metrics.json").read_text())["notes"] == [MADE_SPEECH]


def test_of_real_recordings_nothing_is_said(job, speech, tmp_path):
    shutil.copytree(speech, tmp_path / "real", ignore=lambda folder, names: [made.MARKER])
    code, out, err = job("train", "--data", tmp_path / "real", "--store", "store", *QUICK, "--output", "run")
    assert (code, err) == (0, "") and MADE_SPEECH not in out, err
    assert not open_rows(Store("store")).made_speech and told("run") == set()
