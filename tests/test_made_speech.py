"""Made speech stays known for made, from wherever it is pointed at and wherever it is copied."""

import json
import shutil

import numpy as np
import pytest
import soundfile as sf

from ser_ray.speech import made
from ser_ray.speech.corpora import discover
from ser_ray.speech.corpora.marker import MARKER


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Twelve made clips, four of them in each place but eight in the table."""
    few = [made.clip_at(index) for index in range(4)]
    monkeypatch.setattr(made, "_named", lambda: few)
    made.write_speech(str(tmp_path / "made"), 12)
    return tmp_path / "made"


def found(*roots):
    return discover([str(root) for root in roots]).made_speech


def test_its_folder_its_corpora_and_its_table_are_made_speech(root):
    for data in (
        [root],
        [root / "ravdess"],
        [root / "crema_d" / "AudioWAV"],
        [root / made.TABLE],
        [root, root / made.TABLE],
    ):
        assert found(*data) == [str(root)]


def test_a_corpus_copied_out_of_it_is_still_made_speech(root, tmp_path):
    for name in ("savee", "synthetic_more"):
        shutil.copytree(root / name, tmp_path / "elsewhere" / name)
    assert found(tmp_path / "elsewhere") == [str(tmp_path / "elsewhere/savee")]
    table = tmp_path / "elsewhere/synthetic_more/synthetic.csv"
    assert found(table, root / "tess") == [str(tmp_path / "elsewhere/synthetic_more"), str(root)]


def test_a_link_into_it_and_an_address_lead_to_made_speech(root, tmp_path):
    (tmp_path / "link").symlink_to(root / "ravdess" / "Actor_01")
    assert found(tmp_path / "link") == [str(root)]
    (tmp_path / "list.csv").write_text(f"path,emotion,speaker_id\nfile://{root}/{made.clip_at(0).path},sad,a\n")
    assert found(tmp_path / "list.csv") == [f"file://{root}"]


@pytest.mark.parametrize("text", ["", "[]", "{", '"made"', json.dumps({"version": 1}), json.dumps({"note": "x"})])
def test_recordings_beside_a_file_of_that_name_are_not_made_speech(tmp_path, text):
    sf.write(tmp_path / "DC_a01.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 1600), 16_000)
    (tmp_path / MARKER).write_text(text)
    assert found(tmp_path) == []
    made.write_speech(str(tmp_path / "made"), 2)
    assert found(tmp_path) == [str(tmp_path / "made")]
