"""Answers for any recordings: found, dealt into tasks, answered here or on Ray, every second accounted for."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ser_ray import __version__
from ser_ray.base import storage
from ser_ray.base.console import say, show_table, track
from ser_ray.base.errors import UserError
from ser_ray.features.spec import write_features
from ser_ray.model.together import Together
from ser_ray.predict.inputs import Piece, digest_pieces, find_pieces
from ser_ray.predict.output import Output
from ser_ray.predict.task import WHOLE_FILE_BYTES, Answerer, PredictConfig
from ser_ray.speech.audio import NOTES, AudioError, open_recording

FEW = 8  # So many recordings, if they are short, are answered without Ray, which takes seconds to start.
SHORT_S = 600.0  # How long they may be together.
TASKS = 256  # Tasks that recordings are dealt into; with many recordings there are more.
MAX_PIECES, MAX_BYTES = 200, 256 << 20  # Largest task; one recording may be larger.
MADE_SPEECH = (
    "The model was trained on made speech: its answers show that everything runs, and say nothing about people."
)
MAX_SHOWN = 40  # windows of a single recording on the terminal
MAX_LISTED = 8  # rejects on the terminal
VERSIONED = ("ray", "torch", "numpy", "soxr", "soundfile", "pyarrow")


def predict_recordings(
    together: Together,
    inputs: Sequence[str],
    config: PredictConfig,
    output: Output,
    command: str = "",
    *,
    as_csv: bool = False,
) -> dict[str, Any]:
    """Answer all windows of all recordings that are found, and account for them.

    Args:
        together: Who answers.
        inputs: Files, folders, patterns and tables, here or at URIs.
        config: How to answer.
        output: Where to write; unfinished answers of the same model, settings and recordings are gone on with.
        command: The command line, for the record.
        as_csv: Write `windows.csv` as well.

    Returns:
        The content of `predict.json`.

    Raises:
        UserError: An input names nothing, the output is finished or was asked for otherwise, or workers keep dying.
    """
    output.refuse_finished()
    features, labels = together.features, together.labels
    window_s, hop_s = config.windows.lengths_s(features[0])
    pieces = find_pieces(inputs)
    settings = {"window_s": window_s, "hop_s": hop_s, "channels": config.windows.channels}
    settings |= {"abstain_below": config.abstain_below}
    identity = {"model": together.digest, **settings, "recordings": digest_pieces(pieces)}
    with storage.lock(output.root, lambda: say(f"Another job is at work on {output.root}: waiting until it is done")):
        output.refuse_finished()
        output.claim(identity, command)
        if together.made_speech:
            say(MADE_SPEECH)
        if len(together.runs) > 1:
            say(f"{len(together.runs)} runs answer together: {together.weighing.why}")
        tasks = deal_pieces(pieces)
        _answer(Answerer(together, config, output), tasks, are_few(pieces))
        output.write_recordings(list(tasks))
        if as_csv:
            output.write_csv(list(tasks), labels.names)
        accounts = _account(output, list(tasks), len(pieces))
        content = {
            "recordings": accounts,
            "model": {
                "runs": together.roots,
                "digests": together.digests,
                "networks": [model.network.name for model in together.models],
                "weights": dict(zip(together.roots, together.weighing.weights, strict=True)),
                "weighing": together.weighing.why,
                "features": list(map(write_features, features)) if len(features) > 1 else write_features(features[0]),
                "labels": labels.names,
                "made_speech": together.made_speech,
            },
            "made_speech": together.made_speech,
            "notes": [MADE_SPEECH] if together.made_speech else [],
            "settings": settings,
            "command": command,
            "versions": {"ser_ray": __version__, **{name: version(name) for name in VERSIONED}},
        }
        _show(output, list(tasks), pieces, accounts)
        output.finish(content)
    return content


def deal_pieces(pieces: Sequence[Piece]) -> dict[str, list[Piece]]:
    """Deal recordings into tasks, which hang on the recordings alone, so that a job that goes on finds what is done.

    Returns:
        The recordings of each task, by its name.
    """
    most = min(MAX_PIECES, max(1, -(-len(pieces) // TASKS)))
    tasks: list[list[Piece]] = []
    size = 0
    for piece in pieces:
        if not tasks or len(tasks[-1]) == most or size + piece.size > MAX_BYTES:
            tasks.append([])
            size = 0
        tasks[-1].append(piece)
        size += piece.size
    return {digest_pieces(task): task for task in tasks}


def are_few(pieces: Sequence[Piece]) -> bool:
    """Tell whether recordings are so few and short that Ray would only cost time."""
    if len(pieces) > FEW:
        return False
    return sum(map(_length_s, pieces)) < SHORT_S


def _length_s(piece: Piece) -> float:
    """Return about how long a recording is, by its header; 0 for one that cannot be used."""
    if piece.problem:
        return 0.0
    try:
        with storage.open_read(piece.path) as stream:
            recording = open_recording(io.BytesIO(stream.read()) if piece.size <= WHOLE_FILE_BYTES else stream)
            whole_s = recording.n_frames / recording.rate
            recording.close()
    except (AudioError, OSError):
        return 0.0
    end_s = whole_s if piece.end_s is None else min(whole_s, piece.end_s)
    return max(0.0, end_s - (piece.start_s or 0))


def _answer(answerer: Answerer, tasks: Mapping[str, Sequence[Piece]], few: bool) -> None:
    """Do what is not done of some tasks."""
    done = answerer.output.done()
    todo = {name: pieces for name, pieces in tasks.items() if name not in done}
    if not todo:
        return
    if kept := sum(len(pieces) for name, pieces in tasks.items() if name in done):
        say(f"Answered already: {kept} recordings")
    if few:
        outcomes: Iterator[dict[str, Any]] = (answerer(*task) for task in todo.items())
    else:
        from ser_ray.predict.predict_on_ray import answer_on_ray

        outcomes = answer_on_ray(answerer, todo)
    rejected, notes = 0, Counter()
    with track("Answering", sum(map(len, todo.values()))) as progress, closing(outcomes):
        for outcome in outcomes:
            if outcome["error"]:
                raise UserError(outcome["error"])
            rejected += outcome["rejected"]
            notes.update(outcome["notes"])
            progress.advance(outcome["recordings"], f"{rejected} rejected" if rejected else "")
    for kind, count in notes.items():
        if count:
            say(f"{kind.capitalize()}: {count} recordings; {NOTES[kind]}")


def _account(output: Output, names: Sequence[str], found: int) -> dict[str, Any]:
    """Count what became of all recordings and of their seconds.

    Raises:
        RuntimeError: A recording is missing or counted twice.
    """
    counts: Counter[str] = Counter()
    for table in output.read("parts", names):
        # A recording's rows follow each other by channel, and its first row is where channels begin again.
        first = np.flatnonzero(np.diff(table["channel"].to_numpy(), prepend=np.iinfo(np.int32).max) <= 0)
        answered_s = np.add.reduceat(table["answered_s"].to_numpy(), first) if len(first) else np.zeros(0)
        counts["answered"] += int((answered_s > 0).sum())
        counts["silent"] += int((answered_s == 0).sum())
        for column in ("seconds", "answered_s", "silent_s", "windows", "silent_windows", "abstained_windows"):
            counts[column] += pc.sum(table[column]).as_py() or 0
    rejected = sum(table.num_rows for table in output.read("rejects", names))
    if found != counts["answered"] + counts["silent"] + rejected:
        raise RuntimeError(f"the accounts do not add up: {found} found, {rejected} rejected, {dict(counts)}")
    whole = {"found": found, "answered": counts["answered"], "silent": counts["silent"], "rejected": rejected}
    rest = ("seconds", "answered_s", "silent_s", "windows", "silent_windows", "abstained_windows")
    return whole | {name: counts[name] for name in rest}


def _show(output: Output, names: Sequence[str], pieces: Sequence[Piece], accounts: dict[str, Any]) -> None:
    """Show the windows of a single recording, else the accounts, and what was rejected."""
    tables = output.read("windows", names) if len(pieces) == 1 else ()
    for table in tables:
        rows = table.drop_columns(["file", "probabilities"]).to_pylist()
        rows = [row | {"emotion": row["emotion"] or ("unsure" if row["probability"] else "silent")} for row in rows]
        show_table(pieces[0].path.rpartition("/")[2], rows[:MAX_SHOWN])
        if len(rows) > MAX_SHOWN:
            say(f"and {len(rows) - MAX_SHOWN} more windows")
    show_table("Recordings", [{name: accounts[name] for name in list(accounts)[:7]}])
    rejects = [row for table in output.read("rejects", names) for row in table.to_pylist()]
    for row in rejects[:MAX_LISTED]:
        say(f"Rejected: {row['file']}: {row['reason']}")
    if len(rejects) > MAX_LISTED:
        say(f"Rejected: {len(rejects) - MAX_LISTED} more: see {output.root}/rejects")
