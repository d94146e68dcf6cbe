import base64
import io
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from ser_ray.scores import metrics, report
from ser_ray.scores.report import charts, sound
from ser_ray.speech.emotions import EMOTIONS

EVIL = "<script>alert(1)</script>"
RATE = 16_000


class Page(HTMLParser):
    """What a page holds: its elements' attributes by tag, and its text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text = {}, ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.setdefault(tag, []).append(dict(attrs))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Three sounds, the first with a name that is markup, and a path where there is none."""
    folder = tmp_path_factory.mktemp("sounds")
    time = np.arange(int(1.5 * RATE)) / RATE
    paths = [folder / "<script>alert(1)<!--script>.wav", folder / "b & c.flac", folder / "stereo.wav"]
    for path, pitch in zip(paths, (200, 1000, 3000), strict=True):
        tone = 0.3 * np.sin(2 * np.pi * pitch * time)
        soundfile.write(path, np.stack([tone, tone], 1) if path.stem == "stereo" else tone, RATE)
    return [*map(str, paths), str(folder / "gone.wav")]


def made_predictions(sounds, count=400):
    rng = np.random.default_rng(0)
    targets = rng.integers(len(EMOTIONS), size=count)
    probabilities = rng.dirichlet(np.full(len(EMOTIONS), 0.3), size=count)
    probabilities[: count // 2] += np.eye(len(EMOTIONS))[targets[: count // 2]]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    speakers = [("ravdess_01", "ravdess_02", EVIL, "a$b$_{")[index % 4] for index in range(count)]
    return pa.table(
        {
            "utterance_id": [f"{EVIL}/{index:04d}" for index in range(count)],
            "corpus": [EVIL if speaker == EVIL else "ravdess" for speaker in speakers],
            "speaker_id": speakers,
            "gender": ["female" if index % 2 else "male" for index in range(count)],
            "emotion": [EMOTIONS[each] for each in targets],
            "predicted": [EMOTIONS[each] for each in probabilities.argmax(axis=1)],
            "probabilities": list(probabilities),
            "intensity": ["strong" if index % 3 else "" for index in range(count)],
            "path": [sounds[index % 4] for index in range(count)],
        }
    )


def made_arguments(sounds):
    """What a finished run hands to the report, with markup wherever input can stand."""
    predictions = made_predictions(sounds)
    shared = {"speakers": 0, "hashes": 0, "utterances": 0, "sentences": 7}
    facts = {
        "protocol": "speaker-independent",
        "fold": 0,
        "description": f"tested on speakers who are heard in neither training nor validation {EVIL}",
        "notes": [],
        "leaks": {
            "leaky": False,
            "forbidden": ["speakers", "hashes"],
            "train_test": shared,
            "train_validation": shared,
        },
        "excluded": {EVIL: 3},
        "best_epoch": 4,
        "temperature": 1.25,
        "config": {"model": "cnn1d", "features": {"n_fft": 2048}, "data": [EVIL, "s3://bucket/a" + "/long" * 30]},
        "versions": {"ser_ray": "0.1.0"},
        "timing": {"train_s": 12345.6},
        "command": f"python jobs/train.py --data '{EVIL}' " + "x" * 300,
    }
    names = ("train_loss", "validation_loss", "validation_accuracy", "validation_uar")
    return {
        "title": EVIL,
        "metrics": metrics.score(predictions, EMOTIONS, resamples=200) | facts,
        "predictions": predictions,
        "history": [
            {"epoch": epoch, **{name: 1 / epoch for name in names}, "learning_rate": 0.01 / (1 + epoch // 4)}
            for epoch in range(1, 7)
        ],
        "corpora": report.Corpora(
            audit=[{"corpus": EVIL, "found": 400, "published": None, "label_conflicts": 2}],
            rejects=[{"path": f"/data/{EVIL}{index}.wav", "reason": f"no sound {EVIL}"} for index in range(250)],
        ),
    }


@pytest.fixture(scope="module")
def arguments(sounds):
    return made_arguments(sounds)


@pytest.fixture(scope="module")
def pages(arguments):
    """Every kind of page: a run, one with all warnings and sounds, a cross-validation, two comparisons."""
    run = arguments["metrics"]
    folds = [arguments["predictions"].slice(start, 100) for start in (0, 100, 200, 300)]
    pooled = run | metrics.pool(folds, EMOTIONS, resamples=200) | {"fold": "all", "leaks": {}}
    leaky = run | {"protocol": "notebook", "notes": ["These scores are for made speech."]}
    first, second = arguments["predictions"], arguments["predictions"].set_column(
        5, "predicted", arguments["predictions"]["emotion"]
    )  # fmt: skip
    difference = metrics.compare(first, second, EMOTIONS, resamples=500)
    compared = {"title": "two runs", "comparison": difference, "names": (EVIL, "runs/b"), "command": EVIL}
    several = [{"member": 0, **row} for row in arguments["history"]]
    several += [{"member": 1, "epoch": row["epoch"], "train_loss": row["train_loss"]} for row in several]
    return {
        "run": report.run_page(**arguments),
        "leaky": report.run_page(**arguments | {"metrics": leaky, "embed_audio": True}),
        "members": report.run_page(**arguments | {"history": several}),
        "folds": report.run_page(**arguments | {"metrics": pooled, "history": [], "corpora": report.Corpora([], [])}),
        "comparison": report.comparison_page(**compared, metrics=(run, run)),
        "leaky comparison": report.comparison_page(**compared, metrics=(run, leaky)),
    }


def test_input_stays_text(pages):
    for html in pages.values():
        page = Page(html)
        assert "script" not in page.elements
        assert EVIL in page.text
        assert not any(name.startswith("on") for each in page.elements.values() for one in each for name in one)


def test_pages_need_no_network_and_are_small(pages):
    for html in pages.values():
        page = Page(html)
        addresses = [each.get("src") or each.get("href") for tags in page.elements.values() for each in tags]
        assert all(each.startswith(("data:", "#", "file:///")) for each in addresses if each)
        assert "url(" not in html and "@import" not in html
        assert all(each["src"].startswith("data:image/") for each in page.elements["img"])
        assert len(html) < 3e6


def test_pictures_have_words(pages):
    for html in pages.values():
        page = Page(html)
        assert page.elements["img"] and all(len(each["alt"]) > 15 for each in page.elements["img"])
        assert len(page.elements["figcaption"]) == len(page.elements["img"])
        assert page.elements["html"] == [{"lang": "en"}]


def test_the_run_page_says_all(arguments, pages):
    text, scores = Page(pages["run"]).text, arguments["metrics"]
    low, high = scores["interval"]["uar"]
    for wanted in (
        f"UAR {100 * scores['uar']:.1f}\u00a0%",
        f"{100 * low:.1f} to {100 * high:.1f}\u00a0%",
        "heard in neither training nor validation",
        "Temperature 1.25",
        "train and test",
        "This protocol forbids shared speakers, hashes",
        "label conflicts",
        "250 files were found but not used",
        "50 more are not shown",
        scores["command"],
        "12,346",
        "features.n_fft2048",
    ):
        assert wanted in text
    assert "LEAKY" not in text and "made speech" not in text


def test_warnings_stand_first(pages):
    page = Page(pages["leaky"])
    assert page.text.index("LEAKY: tested clips") < page.text.index("UAR")
    assert page.text.index("made speech") < page.text.index("UAR")
    assert "LEAKY" in pages["leaky"][pages["leaky"].index("<title>") :].split("</title>")[0]


def test_the_worst_mistakes_are_shown(sounds, arguments, pages):
    frame = arguments["predictions"].to_pandas()
    wrong = frame[frame.emotion != frame.predicted].copy()
    wrong["confidence"] = wrong.probabilities.map(max)
    worst = wrong.sort_values("confidence", ascending=False).head(12)
    page = Page(pages["run"])
    shown = page.text[page.text.index("highest probability on a wrong") :]
    positions = [shown.index(utterance_id) for utterance_id in worst.utterance_id]
    assert positions == sorted(positions)
    missing = int((worst.path == sounds[3]).sum())
    assert 0 < missing < 12 and page.text.count("its sound could not be read") == missing
    links = [each["href"] for each in page.elements["a"] if each["href"].startswith("file:")]
    assert len(links) == 12 - missing and not any("<" in each for each in links)
    assert "audio" not in page.elements


def test_sounds_can_be_put_inside(pages):
    players = Page(pages["leaky"]).elements["audio"]
    for player in players:
        kind, _, data = player["src"].partition(",")
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
        assert (kind, rate, samples.shape) == ("data:audio/flac;base64", RATE, (int(1.5 * RATE),))
        assert np.abs(samples).max() == pytest.approx(0.3, abs=0.01)


def test_folds_and_comparisons_have_pages(pages):
    folds = Page(pages["folds"]).text
    assert "over 4 folds" in folds and "mean ± standard deviation" in folds and "Loss after each" not in folds
    comparison = Page(pages["comparison"]).text
    assert "runs/b is better" in comparison and "p = 0.004" in comparison
    leaky = Page(pages["leaky comparison"]).text
    assert "is better" not in leaky.replace("which run is better", "") and "LEAKY" in leaky


def test_a_small_run_has_a_page(arguments):
    one = arguments["predictions"].slice(0, 1).drop_columns(["path", "intensity"])
    one = one.set_column(5, "predicted", one["emotion"])
    scores = metrics.score(one, EMOTIONS) | {"command": "x"}
    html = report.run_page(title="one", metrics=scores, predictions=one, history=[], corpora=report.Corpora([], []))
    text = Page(html).text
    assert "no interval" in text and "every test clip was recognized" in text and "not known here" in text


@pytest.mark.parametrize("path", ["javascript://x/%0aalert(1)", "no/such.wav", "nowhere://x.wav", ""])
def test_what_is_no_sound_is_none(path):
    assert sound.read_sound(path) is None


def test_a_text_file_is_no_sound(tmp_path):
    (tmp_path / "a.wav").write_text("text")
    assert sound.read_sound(str(tmp_path / "a.wav")) is None


@pytest.mark.parametrize("pitch", [150, 1000, 4000])
@pytest.mark.parametrize("rate", [8_000, 24_414, 48_000])
def test_log_mel_finds_a_tone(tmp_path, pitch, rate):
    if pitch >= rate / 2:
        pytest.skip("above half the sample rate")
    tone = np.sin(2 * np.pi * pitch * np.arange(rate) / rate).astype(np.float32)
    soundfile.write(tmp_path / "tone.wav", tone, rate, subtype="FLOAT")
    decibels, centres = sound.draw_log_mel(sound.read_sound(str(tmp_path / "tone.wav")))
    loudest = centres[decibels[:, 10:-10].mean(axis=1).argmax()]
    assert loudest == pytest.approx(pitch, rel=0.12)
    assert decibels.max() == 0 and decibels.min() >= -80
    assert decibels.shape[1] == pytest.approx(sound.SAMPLE_RATE / sound.FEATURES.hop_length, abs=2)


def test_silence_is_dark():
    assert (sound.draw_log_mel(np.zeros(RATE, np.float32))[0] == -80).all()


def test_the_same_picture_has_the_same_bytes(arguments):
    points = arguments["metrics"]["coverage"]
    assert charts.coverage(points) == charts.coverage(points)


def test_a_name_is_no_formula():
    name = r"a$\nothing$_{"
    assert charts.speakers({name: {"uar": 0.5}}, {name: "corpus $^"}).source


def test_a_large_picture_becomes_a_bitmap():
    speakers = {f"s{index}": {"uar": index % 101 / 100} for index in range(3000)}
    picture = charts.speakers(speakers, dict.fromkeys(speakers, "corpus"))
    assert picture.source.startswith("data:image/png") and len(picture.source) < 200_000


def test_heavy_libraries_stay_out():
    code = "import sys, ser_ray.scores.report, ser_ray.scores.metrics; "
    code += "print({'torch', 'librosa', 'ray'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("name", ["run", "leaky", "folds", "comparison"])
def test_a_browser_shows_it(browser, pages, tmp_path, name):
    file = tmp_path / "report.html"
    file.write_text(pages[name], encoding="utf-8")
    for width in (360, 390, 1280):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        browser.get(file.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
        fetched = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        assert all(each.startswith("data:") for each in fetched)
        assert browser.get_log("browser") == []
