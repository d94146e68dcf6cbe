"""What ten million recordings take of the driver: listed, planned, answered by nobody, and accounted for.

    python benchmarks/speed/inputs.py --recordings 10000000 --json inputs.json

The names come from a file system that makes them up, and answers are made ones, a row for each recording, written by
this process in the place of workers. Seconds are those of the CPU, whatever else the machine does. Wanted: less than
2 GB of memory at any number of recordings.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from ser_ray.base import storage
from ser_ray.base.console import show_table
from ser_ray.base.settings import parse_flags, pick_config, run_job
from ser_ray.predict import predict as predicting
from ser_ray.predict.inputs import digest_pieces, find_parts
from ser_ray.predict.output import RECORDINGS_SCHEMA, REJECTS_SCHEMA, Output

sys.path.append(str(Path(__file__).parents[1]))  # where benchmarks have what they share

from shared import write_figures

PER_FOLDER = 10_000


@dataclass(frozen=True)
class Flags:
    """Flags of this command.

    Attributes:
        recordings: How many recordings.
        answers: Write made answers and account for them, too.
        json: File for the figures; none is written when empty.
    """

    recordings: int = 10_000_000
    answers: bool = True
    json: str = ""


class MadeNames(fs.FileSystemHandler):
    """A file system of folders of made names and nothing else."""

    def __init__(self, recordings: int) -> None:
        self.folders = [f"made/{k:05}" for k in range(-(-recordings // PER_FOLDER))]
        self.recordings = recordings

    def get_type_name(self) -> str:
        """Return the kind of file system."""
        return "made"

    def normalize_path(self, path: str) -> str:
        """Return a path as it is."""
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        """Call every path a folder."""
        return [fs.FileInfo(path, fs.FileType.Directory) for path in paths]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        """List a folder."""
        if selector.base_dir == "made":
            return [fs.FileInfo(name, fs.FileType.Directory) for name in self.folders]
        first = int(selector.base_dir.rpartition("/")[2]) * PER_FOLDER
        names = range(first, min(first + PER_FOLDER, self.recordings))
        size = {"type": fs.FileType.File, "mtime_ns": 1_700_000_000_000_000_000}
        return [fs.FileInfo(f"{selector.base_dir}/call_{k:09}.wav", size=100_000 + k, **size) for k in names]

    def _none(self, *_: Any) -> None:
        raise NotImplementedError

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = move = copy_file = _none
    open_input_stream = open_input_file = open_output_stream = open_append_stream = _none


def write_answers(output: Output, tasks: dict[str, list]) -> None:
    """Write for each task what its recordings' answers could be."""
    row = {"channel": 0, "start": 0.0, "end": 3.0, "seconds": 3.0, "answered_s": 3.0, "silent_s": 0.0, "windows": 1}
    row |= {"silent_windows": 0, "abstained_windows": 0, "emotion": "sad", "probability": 0.5}
    row |= {"probabilities": [0.125] * 8, "shares": [0.125] * 8}
    one = pa.Table.from_pylist([row], RECORDINGS_SCHEMA)
    none = pa.table({"file": pa.array([], pa.string())})
    for name, pieces in tasks.items():
        table = one.take(pa.array([0] * len(pieces)))
        table = table.set_column(0, "file", pa.array([piece.path for piece in pieces]))
        output.write(name, none, table, REJECTS_SCHEMA.empty_table())


def main(argv: list[str]) -> None:
    flags = pick_config(Flags, parse_flags(argv, __doc__, Flags))
    real, made = storage._connect, fs.PyFileSystem(MadeNames(flags.recordings))
    storage._connect = lambda bucket: (made, "made") if bucket.startswith("made") else real(bucket)
    spent: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    started = time.process_time()

    def clock(what: str, since: float) -> float:
        now = time.process_time()
        spent[what] += now - since
        return now

    with tempfile.TemporaryDirectory() as folder:
        output, names, found = Output(folder), [], 0
        parts = find_parts(["made://names"])
        now = time.process_time()
        for number, part in enumerate(chain([next(parts)], parts)):
            now = clock("find", now)
            output.claim_part(number, digest_pieces(part))
            tasks = predicting.deal_pieces(part)
            now = clock("plan", now)
            if flags.answers:
                write_answers(output, tasks)
                now = clock("(write made answers in the place of workers)", now)
                predicting._account(output, list(tasks), len(part))
                now = clock("account", now)
            names += tasks
            found += len(part)
            del part, tasks
            rows.append({"recordings so far": found, "peak memory, GB": peak()})
            now = time.process_time()
        if flags.answers:
            output.write_recordings(names)
            accounts = predicting._account(output, names, found)
            assert accounts["answered"] == found
            clock("write recordings.parquet and account for all", now)
    assert found == flags.recordings, found
    steps = [{"what": what, "CPU seconds": seconds} for what, seconds in spent.items()]
    show_table(f"{found} recordings in the driver", steps)
    show_table("Memory, with the program itself", rows)
    whole = {"recordings": found, "tasks": len(names), "cpu_seconds": time.process_time() - started, "peak_gb": peak()}
    write_figures(flags.json, whole | {"steps": steps, "memory": rows})


def peak() -> float:
    """Return the most memory that this process has had so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    run_job(main)
