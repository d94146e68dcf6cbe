"""The tutorial's code runs as it stands, and comes out with a model that answers."""

from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parent.parent / "docs" / "tutorial.md"


@pytest.mark.usefixtures("local_ray", "train_here")
def test_the_tutorial_goes_from_a_folder_of_recordings_to_a_published_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = [part for part in TUTORIAL.read_text().split("```")[1::2] if part.startswith("python\n")]
    assert len(blocks) > 5
    names = {}
    for block in blocks:
        exec(compile(block.removeprefix("python\n"), str(TUTORIAL), "exec"), names)
    said = capsys.readouterr().out
    assert "96 clips, 0 rejected" in said and "'speakers': 0" in said
    assert "model.safetensors" in said and "made speech" in said
    assert set(names["answers"]["emotion"].dropna()) <= {"neutral", "happy", "sad", "angry"}
