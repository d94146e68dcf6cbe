"""The report of a prediction: what is heard in each recording, or, where there are many, in all of them together."""

from __future__ import annotations

import base64
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ser_ray.scores.report.page import clock, render
from ser_ray.scores.report.recordings import draw_recording
from ser_ray.speech.emotions import COLORS

MOST_RECORDINGS = 50  # are drawn one by one
_LABELLED = 0.08  # A stretch of an emotion that takes so much of the width bears its name.
_TICKS = 6
_TICKS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
SILENT, UNSURE = "silent", "unsure"
_SCRIPT = (pathlib.Path(__file__).parent / "answers.js").read_text(encoding="utf-8")
_DIGEST = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()


class Answers(NamedTuple):
    """What a report shows.

    Attributes:
        content: The content of `predict.json`.
        recordings: Rows of `recordings.parquet`; of many the least certain ones alone.
        windows: Of each of those its rows of `windows.parquet`; none where recordings are not shown one by one.
        rejects: Some of the rejects.
        seconds: How long each emotion is heard, and what is `unsure` and `silent`, in all recordings together.
        measures: A row for each measure of the domain check, in words.
    """

    content: Mapping[str, Any]
    recordings: Sequence[Mapping[str, Any]]
    windows: Sequence[Sequence[Mapping[str, Any]]]
    rejects: Sequence[Mapping[str, Any]]
    seconds: Mapping[str, float]
    measures: Sequence[Mapping[str, Any]]


def answers_page(answers: Answers, embed_audio: bool = False) -> str:
    """Write the report of a prediction.

    Up to `MOST_RECORDINGS` recordings each have their timeline, above waveform and spectrogram; of more the page names
    the least certain ones and opens none.

    Args:
        answers: What is to be shown.
        embed_audio: Put the recordings' sound into the page.

    Returns:
        One HTML document that needs no network.
    """
    content = answers.content
    found = content["recordings"]["found"]
    one_by_one = found <= MOST_RECORDINGS
    whole_s = sum(answers.seconds.values())
    shares = [
        {"name": name, "color": COLORS.get(name, ""), "seconds": seconds, "share": seconds / whole_s if whole_s else 0}
        for name, seconds in answers.seconds.items()
        if name in COLORS or seconds
    ]
    return render(
        "answers.html.jinja",
        title=_title(answers.recordings, found),
        leaky="",
        notes=content["notes"],
        policy=f"; script-src 'sha256-{_DIGEST}'" if one_by_one else "",
        script=_SCRIPT if one_by_one else "",
        colors=COLORS,
        content=content,
        labels=content["model"]["labels"],
        shares=shares,
        measures=answers.measures,
        cards=_cards(answers, embed_audio) if one_by_one else [],
        uncertain=[] if one_by_one else [_uncertain_row(row) for row in answers.recordings],
        rejects=answers.rejects,
        silent=SILENT,
        unsure=UNSURE,
    )


def _title(recordings: Sequence[Mapping[str, Any]], found: int) -> str:
    if found == 1 and recordings:
        return f"Emotions in {_name(recordings[0]['file'])}"
    return f"Emotions in {found:,} recordings"


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _uncertain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "recording": row["file"],
        "channel": row["channel"],
        "emotion": row["emotion"] or UNSURE,
        "probability": row["probability"],
        "seconds": row["seconds"],
    }


def _cards(answers: Answers, embed_audio: bool) -> list[dict[str, Any]]:
    """Return what is shown of each recording: its channels follow each other among the rows."""
    cards: dict[tuple, list[tuple]] = {}
    for row, windows in zip(answers.recordings, answers.windows, strict=True):
        cards.setdefault((row["file"], row["start"], row["end"]), []).append((row, windows))
    return [_card(*place, channels, embed_audio) for place, channels in cards.items()]


def _card(path: str, start_s: float, end_s: float, rows: Sequence[tuple], embed_audio: bool) -> dict[str, Any]:
    drawn = draw_recording(path, start_s, end_s - start_s, [row["channel"] for row, _ in rows], embed_audio)
    drawings, sound = drawn or ([None] * len(rows), None)
    channels = []
    for (row, windows), drawing in zip(rows, drawings, strict=True):
        blocks = _blocks(windows, start_s, end_s)
        channels.append(
            {
                "row": row,
                "name": "mean of all channels" if row["channel"] == 0 else f"channel {row['channel']}",
                "blocks": blocks,
                "names": _stretches(blocks),
                "windows": windows,
                "alt": _say_blocks(blocks),
                "waveform": drawing and drawing.waveform(),
                "spectrogram": drawing and drawing.spectrogram(),
            }
        )
    part = f"{clock(start_s)} to {clock(end_s)}" if start_s else ""
    return {
        "name": _name(path),
        "path": path,
        "part": part,
        "start_s": start_s,
        "seconds": end_s - start_s,
        "channels": channels,
        "sound": sound,
        "ticks": _ticks(start_s, end_s),
        "outside": dict.fromkeys(text for row, _ in rows for text in row["outside"] or ()),
    }


def _blocks(windows: Sequence[Mapping[str, Any]], start_s: float, end_s: float) -> list[dict[str, Any]]:
    """Return where each window is drawn, in percent of the width: up to where the next one begins."""
    ends = [*(window["start"] for window in windows[1:]), end_s]
    blocks = []
    for window, end in zip(windows, ends, strict=True):
        kind = window["emotion"] or (UNSURE if window["probability"] else SILENT)
        told = f"{clock(window['start'])} to {clock(window['end'])}: {kind}"
        told += f" {100 * window['probability']:.0f} %" if window["emotion"] else ""
        begin = start_s if window is windows[0] else window["start"]
        blocks.append(
            {
                "left": 100 * (begin - start_s) / (end_s - start_s),
                "width": 100 * (end - begin) / (end_s - start_s),
                "kind": kind,
                "opacity": 0.4 + 0.6 * (window["probability"] or 0),
                "told": told,
            }
        )
    return blocks


def _stretches(blocks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return where names of emotions stand: over neighbouring windows of one emotion, where there is room."""
    found: list[dict[str, Any]] = []
    for block in blocks:
        if found and found[-1]["kind"] == block["kind"]:
            found[-1]["width"] += block["width"]
        else:
            found.append({name: block[name] for name in ("left", "width", "kind")})
    return [each for each in found if each["width"] >= 100 * _LABELLED and each["kind"] != SILENT]


def _say_blocks(blocks: Sequence[Mapping[str, Any]]) -> str:
    """Say a timeline in words, for those who cannot see it."""
    said = "; ".join(block["told"] for block in blocks[:20])
    return f"{said}; and {len(blocks) - 20} more windows" if len(blocks) > 20 else said


def _ticks(start_s: float, end_s: float) -> list[dict[str, Any]]:
    step = next((step for step in _TICKS_S if (end_s - start_s) / step <= _TICKS), _TICKS_S[-1])
    first = -int(-start_s // step)
    places = [k * step for k in range(first, int(end_s // step) + 1)]
    return [{"left": 100 * (t - start_s) / (end_s - start_s), "text": clock(t, step < 1)} for t in places]
