"""What version 0.1.0 left on disk is read as it is: two small stores of made speech and a small model, kept as text."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from ser_ray.features.arrays import decode_features
from ser_ray.features.log_mel import LogMel
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.features.summary import Summary
from ser_ray.model.examples import Examples
from ser_ray.model.files import load_model
from ser_ray.model.speakers import listen
from ser_ray.speech import made
from ser_ray.speech.audio import decode
from ser_ray.speech.corpora import discover
from ser_ray.store.rows import open_rows
from ser_ray.store.store import Store

FILES = json.loads((Path(__file__).parent / "fixtures" / "version-0.1.0.json").read_text())
FRAMES = LogMel(n_mels=16, hop_length=512)


@pytest.fixture
def earlier(tmp_path):
    """Write what a folder held."""

    def write(name):
        for path, content in FILES[name].items():
            place = tmp_path / name / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(base64.b64decode(content))
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize(("name", "features"), [("store-summary", Summary()), ("store-log_mel", FRAMES)])
def test_a_store_holds_what_would_be_computed_today(earlier, tmp_path, name, features):
    store = Store(earlier(name))
    assert store.recipe() == FeaturizeConfig(features, ("none",))
    rows, kernel = open_rows(store), features.kernel()
    values, offsets = decode_features(rows.features())
    assert len(rows) == 6 and not rows.made_speech  # of which that version knew nothing
    made.write_speech(str(tmp_path / "made"), 6, processes=1)
    for i, path in enumerate(rows["path"].to_pylist()):
        with open(tmp_path / path.removeprefix("/speech/"), "rb") as stream:
            window = {name: getattr(features, name) for name in ("sample_rate", "offset_s", "duration_s")}
            clip = decode(stream, **window)
        (today,) = kernel.rows(clip.waveform_T, rows["utterance_id"][i].as_py(), ("none",), 0)
        np.testing.assert_allclose(
            values[offsets[i] : offsets[i + 1]].reshape(today.shape), today, rtol=1e-4, atol=2e-3
        )


@pytest.mark.usefixtures("local_ray")
def test_a_job_on_an_earlier_store_featurizes_nothing_anew(earlier, tmp_path, monkeypatch):
    """Its clips lie elsewhere now: they are known by their content."""
    from ser_ray.store import pipeline

    store = Store(earlier("store-log_mel"))
    before = store.table([*store.table().column_names, "features"])
    made.write_speech(str(tmp_path / "made"), 6, processes=1)
    monkeypatch.setattr(pipeline, "_run", lambda *arguments: pytest.fail("clips were featurized"))
    pipeline.featurize(discover([str(tmp_path / "made")]), FeaturizeConfig(FRAMES, seed=7), store.root)
    after = store.table(before.column_names)
    assert after.drop_columns("path").equals(before.drop_columns("path"))
    assert all(path.startswith(str(tmp_path)) for path in after["path"].to_pylist())
    whole = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path(store.root).rglob("[!.]*.*")}
    pipeline.featurize(discover([str(tmp_path / "made")]), FeaturizeConfig(FRAMES), store.root)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path(store.root).rglob("[!.]*.*")} == whole


def test_a_model_gives_the_probabilities_that_it_gave(earlier):
    model, rows = load_model(earlier("model")), open_rows(Store(earlier("store-log_mel")))
    assert model.speaker_norm and model.trained_on == ("ravdess_01",) and len(model.members) == 2
    assert not model.made_speech  # nothing is claimed of what it does not know
    answers = model.answer(Examples.from_rows(rows, model.labels, model.normalizer(listen(rows))))
    expected = [FILES["probabilities"][name] for name in rows["utterance_id"].to_pylist()]
    np.testing.assert_allclose(answers, expected, atol=1e-5)
