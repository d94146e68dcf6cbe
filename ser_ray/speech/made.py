"""Made speech: deterministic, speech-like clips under the names, folders and formats of the four known corpora.

It lets everything run where no corpus is at hand. **A score on made speech says nothing about people**: nobody speaks
here; `voice` makes the sound.

    python -m ser_ray.speech.made --root made --clips 480

writes clips of RAVDESS, CREMA-D, TESS and SAVEE in turn, such as `made/ravdess/Actor_12/03-01-06-01-02-01-12.wav`, at
any point balanced over each corpus's speakers and emotions, until their names are used up (3,278 clips). What is
beyond goes to `made/synthetic_more/` with the table `synthetic.csv`, about 75 KB a clip. The folder, and each corpus's
own folder in it, holds `made_speech.json`, so that clips are known for made wherever either is copied.
"""

from __future__ import annotations

import csv
import io
import math
import multiprocessing
import os
import wave
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import lru_cache, partial
from itertools import zip_longest
from typing import Any, BinaryIO

from ser_ray.base import storage
from ser_ray.base.console import track
from ser_ray.base.errors import UserError
from ser_ray.speech.corpora import crema_d, ravdess, savee, tess
from ser_ray.speech.corpora.marker import MARKER, read_marker
from ser_ray.speech.emotions import EMOTIONS
from ser_ray.speech.utterance import Utterance
from ser_ray.speech.voice import SETTINGS, VERSION, waveform

CHUNK = 250  # clips that a process makes at a time

CREMA_D_SENTENCES = ("DFA", "IOM", "ITS", "IWL", "IWW", "TAI", "TSI")  # which no actor up to 1024 lacks
TESS_FOLDERS = {  # where they are not named as their clips are
    "OAF_fear": "OAF_Fear",
    "OAF_sad": "OAF_Sad",
    "OAF_ps": "OAF_Pleasant_surprise",
    "YAF_ps": "YAF_pleasant_surprised",
}
# fmt: off
TESS_WORDS = (
    "back", "bar", "base", "bath", "bean", "beg", "boat", "bone", "book", "bought", "burn", "cab", "calm",
    "came", "cause", "chain", "chair", "chalk", "chat", "check", "cheek", "chief", "choice", "cool", "dab",
)
# fmt: on
TABLE = "synthetic_more/synthetic.csv"
TABLE_SPEAKERS = 96


def _turn(k: int, speakers: int, emotions: int) -> tuple[int, int, int]:
    """Return speaker, emotion and take of turn k: every combination once, both balanced at every point."""
    return k % speakers, (k + k // math.lcm(speakers, emotions)) % emotions, k // (speakers * emotions)


def _ravdess() -> Iterator[str]:
    for k in range(24 * 8 * 8):
        speaker, code, take = _turn(k, 24, 8)
        if code == 0 and take >= 4:  # neutral is never spoken strongly
            continue
        strong = code > 0 and (take // 4 + speaker // 2) % 2
        fields: tuple[Any, ...] = ("03", "01", code + 1, strong + 1, take % 2 + 1, take // 2 % 2 + 1, speaker + 1)
        yield f"Actor_{speaker + 1:02}/{'-'.join(f'{field:02}' for field in map(int, fields))}.wav"


def _crema_d() -> Iterator[str]:
    codes, sentences = ("NEU", "HAP", "SAD", "ANG", "FEA", "DIS"), len(CREMA_D_SENTENCES)
    for k in range(24 * 6 * sentences):
        speaker, code, take = _turn(k, 24, 6)
        yield f"AudioWAV/{1001 + speaker}_{CREMA_D_SENTENCES[(take + speaker) % sentences]}_{codes[code]}_XX.wav"


def _tess() -> Iterator[str]:
    codes = ("neutral", "happy", "sad", "angry", "fear", "disgust", "ps")
    for k in range(2 * 7 * len(TESS_WORDS)):
        speaker, code, take = _turn(k, 2, 7)
        actress = ("OAF", "YAF")[speaker]
        folder = f"{actress}_{codes[code]}"
        yield f"{TESS_FOLDERS.get(folder, folder)}/{actress}_{TESS_WORDS[take]}_{codes[code]}.wav"


def _savee() -> Iterator[str]:
    codes = ("n", "h", "sa", "a", "f", "d", "su")
    for k in range(4 * 7 * 30):
        speaker, code, take = _turn(k, 4, 7)
        if code == 0 or take < 15:  # thirty sentences are neutral, fifteen each of the rest
            yield f"ALL/{('DC', 'JE', 'JK', 'KL')[speaker]}_{codes[code]}{take + 1:02}.wav"


@lru_cache(maxsize=1)
def _named() -> list[Utterance]:
    """All clips under published names, the corpora in turn."""
    corpora = (ravdess, crema_d, tess, savee)
    turns = zip_longest(_ravdess(), _crema_d(), _tess(), _savee())
    return [c.parse(f"{c.NAME}/{path}") for turn in turns for c, path in zip(corpora, turn, strict=True) if path]


def clip_at(index: int) -> Utterance:
    """Return the clip at a place in the one fixed order, its path relative to the root: n clips are the first n."""
    if index < len(_named()):
        return _named()[index]
    k = index - len(_named())
    speaker, code, take = _turn(k, TABLE_SPEAKERS, len(EMOTIONS))
    stem = f"v{speaker:02}/v{speaker:02}_{EMOTIONS[code]}_{k:06}"
    return Utterance(
        utterance_id=f"synthetic/{stem}",
        corpus="synthetic",
        speaker_id=f"synthetic_v{speaker:02}",
        gender=("female", "male")[speaker % 2],
        emotion=EMOTIONS[code],
        intensity="",
        sentence_id=f"synthetic_s{take % 20:02}",
        channel="speech",
        path=f"synthetic_more/{stem}.wav",
    )


def _copy(wav: io.BytesIO, stream: BinaryIO) -> None:
    stream.write(wav.getbuffer())


def _write_clips(root: str, seed: int, indices: range) -> None:
    """Write the clips that are not there yet; whole files only, so what is there is complete."""
    for clip in map(clip_at, indices):
        path = storage.join(root, clip.path)
        if os.path.exists(path):
            continue
        wav = io.BytesIO()
        with wave.open(wav, "wb") as writer:
            writer.setparams((1, 2, SETTINGS[clip.corpus].sample_rate, 0, "NONE", ""))
            writer.writeframes(waveform(clip, seed).tobytes())
        storage.write(path, partial(_copy, wav))


def _write_table(path: str, indices: range) -> None:
    def fill(stream: BinaryIO) -> None:
        with io.TextIOWrapper(stream, encoding="utf-8", newline="") as text:
            table = csv.writer(text)
            table.writerow(("path", "emotion", "speaker_id", "gender", "sentence_id"))
            for clip in map(clip_at, indices):
                # The table's name comes before speakers and sentences when it is read.
                speaker, sentence = (name.removeprefix("synthetic_") for name in (clip.speaker_id, clip.sentence_id))
                path = clip.path.removeprefix("synthetic_more/")
                table.writerow((path, clip.emotion, speaker, clip.gender, sentence))

    storage.write(path, fill)


def _is_done(root: str, wanted: dict[str, Any]) -> bool:
    """Tell whether a folder holds the wanted clips already; what it holds so far is told by its marker.

    Raises:
        UserError: The folder holds something else, other made speech, or more of it than wanted.
    """
    found = read_marker(root)
    if not wanted.keys() <= found.keys():
        if os.path.exists(root) and not (os.path.isdir(root) and not os.listdir(root)):
            raise UserError(f"{root} is no empty folder and holds no made speech: choose a new or empty folder")
        return False
    version, seed, clips = (wanted[name] for name in ("version", "seed", "clips"))
    if (found["version"], found["seed"]) != (version, seed) or found["clips"] > clips:
        raise UserError(
            f"{root} holds {found['clips']} made clips, seed {found['seed']}, version {found['version']}; "
            f"wanted are {clips}, seed {seed}, version {version}: choose another folder or delete this one"
        )
    return found == wanted


def write_speech(root: str, clips: int = 480, seed: int = 0, processes: int | None = None) -> list[str]:
    """Write made speech: speech-like clips in the names and formats of RAVDESS, CREMA-D, TESS and SAVEE.

    What an earlier call with the same seed left unfinished, or smaller, is completed; a finished folder is recognized
    at once. The files do not depend on the number of processes.

    Args:
        root: Local folder, either new or empty or made by this function.
        clips: How many clips the folder shall hold; beyond 3,278 they have no published name and come with a table.
        seed: Other seeds give other voices under the same names.
        processes: How many work side by side; by default one per core if there are 1,000 clips or more, else one.

    Returns:
        What to give to `--data`: the folder, and the table if there is one.

    Raises:
        UserError: The folder holds something else, other made speech, or more of it than asked for.
    """
    root = storage.normalize(root)
    if storage.is_uri(root):
        raise UserError(f"made speech is written to a local folder, not to {root}")
    if clips < 1:
        raise UserError(f"made speech needs one clip or more, got {clips}")
    table, marker = storage.join(root, TABLE), storage.join(root, MARKER)
    data = [root, table] if clips > len(_named()) else [root]
    wanted = {"version": VERSION, "seed": seed, "clips": clips, "finished": True}
    if _is_done(root, wanted):
        return data
    storage.write_json(marker, wanted | {"finished": False})
    for folder in {clip_at(i).path.partition("/")[0] for i in (*range(min(clips, 4)), clips - 1)}:  # corpora in turn
        storage.write_json(storage.join(root, folder, MARKER), {"version": VERSION, "seed": seed})

    chunks = [range(start, min(start + CHUNK, clips)) for start in range(0, clips, CHUNK)]
    if processes is None:
        processes = os.cpu_count() or 1 if clips >= 1000 else 1
    processes = max(1, min(processes, len(chunks)))
    work = partial(_write_clips, root, seed)
    with ExitStack() as stack:
        run: Any = map
        if processes > 1:
            # Spawned, because forking a process that already runs threads (torch, Ray) may hang.
            spawn = multiprocessing.get_context("spawn")
            run = stack.enter_context(ProcessPoolExecutor(processes, mp_context=spawn)).map
        progress = stack.enter_context(track("Making speech", clips))
        for chunk, _ in zip(chunks, run(work, chunks), strict=True):
            progress.advance(len(chunk))
    if clips > len(_named()):
        _write_table(table, range(len(_named()), clips))
    storage.write_json(marker, wanted)
    return data


if __name__ == "__main__":
    import sys

    import tyro

    try:
        data = tyro.cli(write_speech)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print("Made speech: its scores say nothing about people. To use it: --data", *data)
