"""Answers for any recordings: found, dealt into tasks, answered here or on Ray, every second accounted for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ser_ray import __version__
from ser_ray.base import storage
from ser_ray.base.console import say, show_table, track
from ser_ray.base.errors import UserError
from ser_ray.features.spec import write_features
from ser_ray.model.domain import Domain, join_domains, write_domain
from ser_ray.model.together import Together
from ser_ray.predict.inputs import Piece, digest_pieces, find_parts
from ser_ray.predict.output import Output
from ser_ray.predict.report import refuse_report, write_answers_report
from ser_ray.predict.shares import SPREAD_BELOW, Share, Sharer, can_share, count_shares, name_shares
from ser_ray.predict.task import Answerer, PredictConfig
from ser_ray.predict.timeline import shorten, show_timelines, show_windows
from ser_ray.predict.voices import LEAST_S, by_speaker
from ser_ray.speech.audio import NOTES, AudioError, open_recording
from ser_ray.speech.packed import open_sound

FEW = 8  # So many recordings, if they are short, are answered without Ray, which takes seconds to start.
SHORT_S = 600.0  # How long they may be together.
TASKS = 256  # Tasks that recordings are dealt into; with many recordings there are more.
MAX_PIECES, MAX_BYTES = 200, 256 << 20  # Largest task; one recording may be larger.
MADE_SPEECH = (
    "The model was trained on made speech: its answers show that everything runs, and say nothing about people."
)
MAX_LISTED = 8  # rejects on the terminal
_ROUNDED = 10_000  # So many seconds and more are told without decimals.
VERSIONED = ("ray", "torch", "numpy", "soxr", "soundfile", "pyarrow")


@dataclass(frozen=True)
class Besides:
    """What is written besides the answers, which does not change them.

    Attributes:
        csv: Write windows.csv and recordings.csv as well, for spreadsheets.
        report: Self-contained HTML page to write: of up to 50 recordings the timelines, of more a summary.
        embed_audio: Put the recordings' sound into the report, so that it plays there.
    """

    csv: bool = False
    report: str | None = None
    embed_audio: bool = False

    def __post_init__(self) -> None:
        if self.embed_audio and not self.report:
            raise UserError("--embed-audio puts sound into a report: name its file by --report FILE.html")


def predict_recordings(
    together: Together,
    inputs: Sequence[str],
    config: PredictConfig,
    output: Output,
    command: str = "",
    besides: Besides | None = None,
) -> dict[str, Any]:
    """Answer all windows of all recordings that are found, and account for them.

    Args:
        together: Who answers.
        inputs: Files, folders, patterns and tables, here or at URIs.
        config: How to answer.
        output: Where to write; unfinished answers of the same model, settings and recordings are gone on with.
        command: The command line, for the record.
        besides: What else to write.

    Returns:
        The content of `predict.json`.

    Raises:
        UserError: An input names nothing, the output is finished or was asked for otherwise, or workers keep dying.
    """
    output.refuse_finished()
    besides = besides or Besides()
    report = storage.normalize(besides.report) if besides.report else ""
    if report:
        refuse_report(report, output)
    parts = find_parts(inputs)
    first = next(parts, [])
    settings = config.settings(together.features[0])
    domain = join_domains([model.domain for model in together.models])
    identity = {"model": together.digest, **settings, "recordings": digest_pieces(first)}
    with storage.lock(output.root, lambda: say(f"Another job is at work on {output.root}: waiting until it is done")):
        output.refuse_finished()
        output.claim(identity, command)
        output.about = _about(together)
        if together.made_speech:
            say(MADE_SPEECH)
        if len(together.runs) > 1:
            say(f"{len(together.runs)} runs answer together: {together.weighing.why}")
        names, found = _answer_parts(Answerer(together, config, output), chain([first], parts))
        output.write_recordings(names)
        content = _content(together, settings, command, _account(output, names, found))
        content["domain"] = _check_domain(domain, output, names, config)
        if besides.csv:
            output.write_csv(names, together.labels.names)
        _show(output, names, content)
        if report:
            write_answers_report(report, output, names, content, domain, besides.embed_audio)
        output.finish(content)
    return content


def _about(together: Together) -> dict[str, str]:
    """Return what every Parquet file of some models' answers says of itself."""
    about = {"labels": json.dumps(together.labels.names), "model": together.digest}
    about |= {"ser_ray": __version__, "made_speech": json.dumps(together.made_speech)}
    return about | ({"note": MADE_SPEECH} if together.made_speech else {})


def _content(together: Together, settings: dict[str, Any], command: str, accounts: dict[str, Any]) -> dict[str, Any]:
    """Return what `predict.json` says, but for the domain check."""
    features = list(map(write_features, together.features))
    return {
        "recordings": accounts,
        "model": {
            "runs": together.roots,
            "digests": together.digests,
            "networks": [model.network.name for model in together.models],
            "weights": dict(zip(together.roots, together.weighing.weights, strict=True)),
            "weighing": together.weighing.why,
            "features": features[0] if len(features) == 1 else features,
            "labels": together.labels.names,
            "made_speech": together.made_speech,
        },
        "made_speech": together.made_speech,
        "notes": [MADE_SPEECH] if together.made_speech else [],
        "settings": settings,
        "command": command,
        "versions": {"ser_ray": __version__, **{name: version(name) for name in VERSIONED}},
    }


def _check_domain(domain: Domain | None, output: Output, names: Sequence[str], config: PredictConfig) -> dict[str, Any]:
    """Return what the models have heard, and what is to be said of recordings unlike that."""
    lines = []
    if domain:
        noun = "channels" if config.windows.channels == "separate" else "recordings"
        lines = domain.tell_outside(output.read("parts", names), noun)
    return {"known": domain is not None, "outside": lines, "heard": write_domain(domain)}


def _answer_parts(answerer: Answerer, parts: Iterable[list[Piece]]) -> tuple[list[str], int]:
    """Answer recordings part by part: each is run and accounted for before the next is listed.

    Returns:
        The names of all tasks, and the number of recordings.

    Raises:
        UserError: Other recordings are listed now than when this part was begun, or workers keep dying.
    """
    names, found = [], 0
    for number, part in enumerate(parts):
        if number:
            say(f"Part {number + 1}: {len(part)} recordings")
            answerer.output.claim_part(number, digest_pieces(part))
        tasks = deal_pieces(part, any(model.speaker_norm for model in answerer.together.models))
        _answer(answerer, tasks, number == 0 and are_few(part) and answerer.together.can_answer_here)
        if number:
            _account(answerer.output, list(tasks), len(part))
        names += tasks
        found += len(part)
    return names, found


def deal_pieces(pieces: Sequence[Piece], together: bool = False) -> dict[str, list[Piece]]:
    """Deal recordings into tasks, which hang on the recordings alone, so that a job that goes on finds what is done.

    Args:
        pieces: The recordings.
        together: Put all recordings of one person into one task.

    Returns:
        The recordings of each task, by its name.
    """
    most = min(MAX_PIECES, max(1, -(-len(pieces) // TASKS)))
    tasks: list[list[Piece]] = []
    size = 0
    for group in by_speaker(pieces) if together else ([piece] for piece in pieces):
        more = sum(piece.size for piece in group)
        if not tasks or len(tasks[-1]) >= most or size + more > MAX_BYTES:
            tasks.append([])
            size = 0
        tasks[-1] += group
        size += more
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
        with open_sound(piece.path) as stream:
            recording = open_recording(stream)
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
        answerer.together.settle()
        outcomes: Iterator[dict[str, Any]] = (answerer(*task) for task in todo.items())
    else:
        outcomes = _spread(answerer, todo, len(tasks) < SPREAD_BELOW)
    rejected, short, notes = 0, 0, Counter()
    with track("Answering", sum(map(len, todo.values())), "recordings") as progress, closing(outcomes):
        for outcome in outcomes:
            if outcome["error"]:
                raise UserError(outcome["error"])
            rejected += outcome["rejected"]
            short += outcome["short"]
            notes.update(outcome["notes"])
            progress.advance(outcome["recordings"], f"{rejected} rejected" if rejected else "")
    if short:
        say(
            f"Less than {LEAST_S:g} s of a speaker, too little to normalize by: {short} recordings, whose windows are "
            "unsure; --trust-short-speakers answers them, a column speaker tells which recordings are of one person"
        )
    for kind, count in notes.items():
        if count:
            say(f"{kind.capitalize()}: {count} recordings; {NOTES[kind]}")


def _spread(answerer: Answerer, tasks: Mapping[str, Sequence[Piece]], share: bool) -> Iterator[dict[str, Any]]:
    """Answer some tasks on Ray, long recordings by several workers at once, where that is wished and can be."""
    from ser_ray.predict.predict_on_ray import answer_on_ray

    share = share and can_share(answerer.together, answerer.config)
    single = {name: pieces[0] for name, pieces in tasks.items() if share and len(pieces) == 1}
    counts = {name: count_shares(_length_s(piece)) for name, piece in single.items()}
    counts = {name: count for name, count in counts.items() if count > 1}
    shares = {
        named: Share(single[name], number, count)
        for name, count in counts.items()
        for number, named in enumerate(name_shares(name, count))
    }
    others = {name: pieces for name, pieces in tasks.items() if name not in counts}
    yield from answer_on_ray(Sharer(answerer, shares), {name: [each.piece] for name, each in shares.items()} | others)
    if counts:
        told = {name: name_shares(name, count) for name, count in counts.items()}
        joins = Answerer(answerer.together, answerer.config, answerer.output, told)
        yield from answer_on_ray(joins, {name: tasks[name] for name in counts})


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
    seconds = {name: float(counts[name]) for name in ("seconds", "answered_s", "silent_s")}
    return whole | seconds | {name: counts[name] for name in ("windows", "silent_windows", "abstained_windows")}


def _show(output: Output, names: Sequence[str], content: dict[str, Any]) -> None:
    """Show the windows of a single recording, timelines of a few, the accounts, and what is to be known of them."""
    accounts = content["recordings"]
    if accounts["found"] <= FEW:
        _show_few(output, names, accounts["found"] == 1)
    whole = [(name, accounts[name]) for name in list(accounts)[:7]]
    show_table("Recordings", [{name: value if value < _ROUNDED else round(value) for name, value in whole}])
    if accounts["abstained_windows"]:
        heard = accounts["windows"] - accounts["silent_windows"]
        say(f"Unsure, so without an emotion: {accounts['abstained_windows']} of {heard} windows")
    if not content["domain"]["known"]:
        say("Domain: not known, since the model does not say in what condition its training clips were")
    for line in content["domain"]["outside"]:
        say(f"Domain: {line}")
    rejects = [row for table in output.read("rejects", names) for row in table.to_pylist()]
    for row in rejects[:MAX_LISTED]:
        say(f"Rejected: {row['file']}: {row['reason']}")
    if len(rejects) > MAX_LISTED:
        say(f"Rejected: {len(rejects) - MAX_LISTED} more: see {output.root}/rejects")


def _show_few(output: Output, names: Sequence[str], single: bool) -> None:
    """Show the windows of a single recording, and the timelines of all."""
    windows = (row for table in output.read("windows", names) for row in table.to_pylist())
    timelines = []
    for table in output.read("parts", names):
        for row in table.to_pylist():
            own = list(islice(windows, row["windows"]))  # they stand in the same order
            name = row["file"].rpartition("/")[2]
            channel = f"channel {row['channel']}" if row["channel"] else "all channels"
            if single:
                show_windows(f"{name}, {channel}" if row["channel"] else name, own)
            timelines.append((channel if single else f"{shorten(name)} {row['channel'] or ''}".rstrip(), row, own))
    if timelines:
        show_timelines([(name, row["start"], row["end"], own) for name, row, own in timelines])
