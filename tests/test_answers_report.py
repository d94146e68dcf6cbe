"""What people see of answers: timelines on the terminal, and a page that opens anywhere."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from test_predict import a_model, answer, speech, write
from test_report import Page

from ser_ray.base import console as screen
from ser_ray.base.errors import UserError
from ser_ray.model.files import save_model
from ser_ray.predict.predict import Besides
from ser_ray.predict.timeline import LETTERS, draw_cells, show_timelines
from ser_ray.scores.report.recordings import draw_recording
from ser_ray.speech.emotions import COLORS, EMOTIONS

EVIL = "<script>alert(1)<!--.wav"
RATE = 16_000


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Three recordings in a page with sound, one of them a call whose name is markup; and sixty more."""
    root = tmp_path_factory.mktemp("pages")
    save_model(a_model(made_speech=True), str(root / "run" / "model"))
    call = np.zeros((20 * RATE, 2), np.float32)
    call[: 8 * RATE, 0], call[12 * RATE :, 1] = speech(8), speech(8, seed=3)
    write(root / "in" / EVIL, call)
    write(root / "in" / "talk.flac", speech(25, 8_000, 1), 8_000)
    write(root / "in" / "silent.wav", np.zeros(RATE))
    (root / "in" / "bad & <b>.wav").write_bytes(b"RIFF")
    besides = Besides(report=str(root / "few.html"), embed_audio=True, csv=True)
    answer(str(root / "run"), root / "few", root / "in", channels="separate", window_s=4.0, besides=besides)
    sound = speech(3)
    for k in range(60):
        write(root / "many" / f"{k}.wav", sound[k * 100 : RATE + k * 100])
    return root


def test_a_report_shows_each_recording_and_opens_anywhere(pages):
    html = (pages / "few.html").read_text()
    page = Page(html)
    assert EVIL in page.text and "say nothing about people" in page.text and "damaged audio" in page.text
    assert html.count("<script>") == 1 and "alert(1)" not in html.replace("&lt;script&gt;alert(1)", "")
    addresses = [each.get("src") or each.get("href") for tags in page.elements.values() for each in tags]
    assert all(each.startswith(("data:", "#")) for each in addresses if each) and "url(" not in html
    assert "a" not in page.elements and "@import" not in html
    assert len(page.elements["article"]) == 3 and len(page.elements["audio"]) == 3
    lanes = [each for each in page.elements["div"] if each.get("class") == "lane"]
    assert len(lanes) == 4 and "0:00 to 0:04: " in lanes[0]["aria-label"] and "silent" in lanes[0]["aria-label"]
    kinds = {each["fill"] for each in page.elements["rect"]}
    assert kinds <= {*COLORS.values(), "gray"} and "gray" in kinds and len(kinds) > 1
    assert all(len(each["alt"]) > 15 for each in page.elements["img"])
    players = [each["src"].partition(",") for each in page.elements["audio"]]
    seconds = [len(sf.read(io.BytesIO(base64.b64decode(data)))[0]) / RATE for _, _, data in players]
    assert {kind for kind, _, _ in players} == {"data:audio/mpeg;base64"}
    assert sorted(seconds) == pytest.approx([1, 20, 25], abs=0.15)


def test_clicking_a_timeline_seeks_and_tells(browser, pages):
    for width in (360, 1280):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get((pages / "few.html").as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
        told = browser.execute_async_script(
            """
            const done = arguments[0];
            const card = document.querySelector(".recording"), sound = card.querySelector("audio");
            const box = card.querySelector(".timeline"), area = box.getBoundingClientRect();
            const click = () => {
              const x = area.left + 0.75 * area.width;
              box.dispatchEvent(new MouseEvent("click", { clientX: x, clientY: area.top + 5, bubbles: true }));
              setTimeout(() => done([sound.currentTime, card.querySelector(".told").textContent, sound.duration]), 100);
            };
            if (sound.readyState) click(); else sound.addEventListener("loadedmetadata", click);
            """
        )
        assert told[0] == pytest.approx(15, abs=0.5) and told[2] == pytest.approx(20, abs=0.2)
        assert "channel 1, 0:12 to 0:16: silent" in told[1] and "channel 2, 0:12 to 0:16: " in told[1]
        fetched = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        assert all(each.startswith("data:") for each in fetched)
        assert browser.get_log("browser") == []


def test_a_page_of_many_recordings_tells_of_all_and_links_nothing(pages, job, monkeypatch):
    monkeypatch.setattr("ser_ray.predict.predict.FEW", 100)  # no Ray
    words = ("--run", pages / "run", "--input", pages / "many", "--report", "many.html", "--abstain-below", "0.2")
    code, out, err = job("predict", *words, "--output", "out")
    assert (code, err) == (0, "") and "Report: " in out
    page = Page(Path("many.html").read_text())
    assert "Emotions in 60 recordings" in page.text and "Least certain recordings" in page.text
    assert not {"a", "article", "audio", "script", "img"} & page.elements.keys()
    rows = pq.read_table("out/recordings.parquet").to_pandas().sort_values(["probability", "file"])
    assert all(name in page.text for name in rows["file"][:50])
    code, _, err = job("predict", *words, "--output", "again")
    assert code == 2 and "many.html is there already" in err and not Path("again").exists()


def test_a_report_that_cannot_be_written_or_sound_without_one_is_told_first(pages, job):
    words = ("predict", "--run", pages / "run", "--input", pages / "in", "--output", "out")
    code, _, err = job(*words, "--report", "/dev/null/r.html")
    assert code == 2 and "--report /dev/null/r.html cannot be written" in err and err.count("\n") == 1
    assert not Path("out").exists()
    with pytest.raises(UserError, match="name its file by --report"):
        Besides(embed_audio=True)


def test_answers_of_a_model_of_made_speech_say_so_wherever_they_go(pages):
    for path in [*(pages / "few").rglob("*.parquet")]:
        about = pq.read_schema(path).metadata
        assert about[b"made_speech"] == b"true" and b"say nothing about people" in about[b"note"]
        assert json.loads(about[b"labels"]) == list(EMOTIONS)
    assert len([*(pages / "few").rglob("*.parquet")]) > 3
    assert json.loads((pages / "few" / "predict.json").read_text())["made_speech"] is True


def test_spreadsheets_hold_what_parquet_does(pages):
    rows = pq.read_table(pages / "few" / "recordings.parquet").to_pandas()
    table = pd.read_csv(pages / "few" / "recordings.csv")
    assert list(table["file"]) == list(rows["file"]) and list(table["channel"]) == list(rows["channel"])
    heard = rows["shares"].notna()
    shares = table[[f"share_{emotion}" for emotion in EMOTIONS]]
    np.testing.assert_allclose(shares[heard], np.stack(rows["shares"][heard]))
    np.testing.assert_allclose(table["snr_db"][heard], rows["snr_db"][heard])


def test_a_picture_shows_sound_where_it_is(tmp_path):
    sound = np.zeros((12 * RATE, 2), np.float32)
    tone = 0.5 * np.sin(2 * np.pi * 3000 * np.arange(2 * RATE) / RATE)
    sound[4 * RATE : 6 * RATE, 0], sound[8 * RATE : 10 * RATE, 1] = tone, tone / 4
    path = write(tmp_path / "a.wav", np.repeat(sound, 3, axis=0), 3 * RATE)
    (first, second, mean), none = draw_recording(path, 2.0, 10.0, [1, 2, 0], False)
    assert none is None
    for drawing, start, peak in ((first, 2, 0.5), (second, 6, 0.125), (mean, 2, 0.25)):
        columns = np.flatnonzero(drawing.high_W > 0.8 * peak)  # repeated samples lose a little
        assert columns[0] == pytest.approx(80 * start, abs=2)
        assert drawing.high_W.max() == pytest.approx(peak, rel=0.1) == -drawing.low_W.min()
    assert np.flatnonzero(first.high_W > 0.01)[-1] == pytest.approx(80 * 4, abs=2)
    assert draw_recording(str(tmp_path / "gone.wav"), 0, 1, [0], False) is None


@pytest.mark.parametrize(("terminal", "no_color"), [(True, False), (True, True), (False, False)])
def test_a_timeline_is_coloured_blocks_on_a_terminal_and_letters_elsewhere(terminal, no_color, monkeypatch):
    how = {"color_system": "truecolor"} if terminal and not no_color else {}
    console = screen._Console(
        file=io.StringIO(), width=80, force_terminal=terminal, no_color=no_color, highlight=False, soft_wrap=True, **how
    )
    monkeypatch.setattr("ser_ray.predict.timeline.console", console)
    windows = [{"start": k, "emotion": emotion, "probability": 0.5} for k, emotion in enumerate(EMOTIONS)]
    windows += [{"start": 8, "emotion": None, "probability": 0.2}, {"start": 9, "emotion": None, "probability": None}]
    show_timelines([("a.wav 1", 0.0, 10.0, windows)])
    lines = console.file.getvalue().splitlines()
    if terminal and not no_color:
        red, green, blue = bytes.fromhex(COLORS["angry"][1:])
        assert f"38;2;{red};{green};{blue}m█" in lines[0] and "█" in lines[1]
    else:
        assert "█" not in lines[0] and "38;" not in "".join(lines)
        letters = list(dict.fromkeys(lines[0].removeprefix("a.wav 1 ")))
        assert letters == [*"nchsafdu?·"] and all(
            f"{LETTERS[emotion]} {emotion}" in " ".join(lines) for emotion in EMOTIONS
        )
        assert max(map(len, lines)) <= 80


def test_cells_show_the_window_in_their_middle():
    windows = [
        {"start": 0.0, "emotion": "sad", "probability": 0.9},
        {"start": 6.0, "emotion": None, "probability": None},
    ]
    assert draw_cells(windows, 0.0, 10.0, 5) == ["sad"] * 3 + ["silent"] * 2
