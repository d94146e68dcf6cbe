"""Whether emotions of a call stand at their places: calls of two tested speakers, one a channel, in turns.

    python benchmarks/accuracy/call.py --run runs/probe/fold-0 --data ~/corpora/ravdess --json call.json

Each call has six clips of two speakers whom the run tested, so that the model has heard neither, drawn by a seed: one
speaker on the left channel, the other on the right one, by turns, with silence on a channel while the other speaks.
There is a call of each two speakers. It is answered as `ser-ray predict --channels separate` does, in windows as long
as the longest clip. Counted are the turns that are answered right, the same clips answered right by themselves in the
run's test, and windows that are heard where nobody speaks.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile as sf

from ser_ray.base.console import say, show_table
from ser_ray.base.errors import UserError
from ser_ray.base.settings import parse_flags, pick_config, run_job
from ser_ray.model.answers import answer_windows
from ser_ray.model.together import Together, open_models
from ser_ray.model.windows import Hearing, WindowConfig
from ser_ray.speech.corpora import discover

sys.path.append(str(Path(__file__).parents[1]))  # where benchmarks have what they share

from shared import write_figures

TURNS = 6


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        run: A finished run.
        data: Folders of the corpora that it tested.
        seed: Of the draw of clips.
        json: File for the figures; none is written when empty.
    """

    run: str = ""
    data: tuple[str, ...] = ()
    seed: int = 0
    json: str = ""


def tested_clips(flags: Flags) -> dict[str, list[dict[str, str]]]:
    """Return path, emotion and the run's own answer of all tested clips by speaker."""
    paths = {clip.utterance_id: clip.path for clip in discover(flags.data).utterances}
    rows = pq.read_table(f"{flags.run}/predictions.parquet").to_pylist()
    speakers: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if row["utterance_id"] in paths:
            speakers.setdefault(row["speaker_id"], []).append({**row, "path": paths[row["utterance_id"]]})
    if len(speakers) < 2:
        raise UserError("--data holds fewer than two of the speakers whom --run tested")
    return dict(sorted(speakers.items()))


def make_call(turns: list[dict[str, str]], path: str) -> float:
    """Write a call of some clips, by turns on two channels; return the seconds of a turn."""
    sounds = [sf.read(turn["path"], dtype="float32", always_2d=True) for turn in turns]
    (rate,) = {rate for _, rate in sounds}
    length = max(len(sound_TC) for sound_TC, _ in sounds)
    call_TC = np.zeros((length * len(turns), 2), np.float32)
    for turn, (sound_TC, _) in enumerate(sounds):
        call_TC[turn * length : turn * length + len(sound_TC), turn % 2] = sound_TC.mean(axis=1)
    sf.write(path, call_TC, rate, subtype="FLOAT")
    return length / rate


def answer_call(together: Together, path: str, turn_s: float) -> list[list[str | None]]:
    """Return what is heard in each turn, first on the channel of the speaker, then on the other one."""
    config = WindowConfig(window_s=turn_s, hop_s=turn_s, channels="separate")
    with open(path, "rb") as file:
        hearing = Hearing(file, config, together.features[0])
        answers_WC = answer_windows(together.models, hearing, together.weights)
        hearing.close()
    heard: dict[tuple[int, int], str | None] = {}
    for window, answer_C in zip(hearing.windows, answers_WC, strict=True):
        name = None if window.silent else together.labels.names[int(answer_C.argmax())]
        heard[window.channel, round(window.start_s / turn_s)] = name
    return [[heard.get((1 + (turn + other) % 2, turn)) for other in (0, 1)] for turn in range(TURNS)]


def main(argv: list[str]) -> None:
    flags = pick_config(Flags, parse_flags(argv, __doc__, Flags))
    if not flags.run or not flags.data:
        raise UserError("give --run RUN --data CORPORA")
    together, draw, rows = open_models([flags.run]), np.random.default_rng(flags.seed), []
    speakers = tested_clips(flags)
    with tempfile.TemporaryDirectory() as folder:
        for pair in combinations(speakers, 2):
            turns = [speakers[pair[turn % 2]][draw.integers(len(speakers[pair[turn % 2]]))] for turn in range(TURNS)]
            heard = answer_call(together, f"{folder}/call.wav", make_call(turns, f"{folder}/call.wav"))
            for turn, (own, other) in zip(turns, heard, strict=True):
                truth = {"call": " and ".join(pair), "emotion": turn["emotion"], "by itself": turn["predicted"]}
                rows.append({**truth, "in the call": own or "silent", "where nobody speaks": other or "silent"})
    show_table("Turns", rows)
    right = {how: sum(row["emotion"] == row[how] for row in rows) for how in ("in the call", "by itself")}
    loud = sum(row["where nobody speaks"] != "silent" for row in rows)
    say(f"{len(rows)} turns: {right['in the call']} right in the call, {right['by itself']} as clips by themselves")
    say(f"windows heard where nobody speaks: {loud}")
    write_figures(flags.json, {"turns": len(rows), "right": right, "heard_in_silence": loud})


if __name__ == "__main__":
    sys.exit(run_job(main))
