"""What the README shows is what happens: its commands are run, its table is read, its query is asked."""

import shlex
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from ser_ray.speech.corpora import discover

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    fenced = [part.partition("\n") for part in README.split("```")[1::2]]
    return [text for name, _, text in fenced if name == language]


@pytest.mark.usefixtures("local_ray")
def test_every_job_in_the_readme_runs_and_the_query_answers(job, made):
    lines = [line.partition("  #")[0].split() for block in blocks("bash") for line in block.splitlines()]
    commands = [words for words in lines if words[:1] == ["python"] and len(words) > 2]
    assert len(commands) > 5
    mine = [clip for clip in discover(made).utterances if clip.corpus == "ravdess"]
    lines = [f"{clip.path},{clip.emotion},{clip.speaker_id}" for clip in mine]
    Path("clips.csv").write_text("\n".join(["path,emotion,speaker_id", *lines]))  # whose speakers have other names
    for words in commands:
        name = Path(words[1]).stem
        argv = [made[0] if word in ("~/corpora", "~/other_corpus") else word for word in words[2:]]
        if name == "train":
            argv = [{"all": "0", "3": "2"}.get(word, word) for word in argv] + ["--epochs", "1"]  # for time
        if "runs/second" in argv:
            shutil.copytree("runs/first", "runs/second")
        code, _, err = job(name, *argv)
        assert (code, err) == (0, ""), f"{shlex.join(words)}: {err}"
    (query,) = blocks("sql")
    counted = duckdb.sql(query).fetchall()
    assert {corpus for corpus, *_ in counted} == {"ravdess", "crema_d", "tess", "savee", "clips"}
    clips, tested = (sum(row[place] for row in counted) for place in (2, 3))
    assert clips == len(discover(made).utterances) + len(mine)
    assert tested == pq.read_metadata("runs/first/predictions.parquet").num_rows


def test_the_table_in_the_readme_is_read(tmp_path):
    (table,) = blocks("csv")
    (tmp_path / "clips.csv").write_text(table)
    for i, line in enumerate(table.splitlines()[1:]):
        path = tmp_path / line.split(",")[0]
        path.parent.mkdir(exist_ok=True)
        sf.write(path, np.random.default_rng(i).normal(0, 0.1, 8000), 16_000, format="WAV")
    manifest = discover([str(tmp_path / "clips.csv")])
    assert [clip.emotion for clip in manifest.utterances] == ["happy", "angry", "neutral"]
    assert [clip.speaker_id for clip in manifest.utterances] == ["clips_anna", "clips_anna", "clips_bert"]


def test_every_file_in_the_tree_is_there():
    root = Path(__file__).parent.parent
    (tree,) = [block for block in blocks("") if "ser_ray/" in block and "jobs/" in block]
    folder, named = "", set()
    for line in tree.splitlines():
        name = line.split()[0]
        folder = name if not line.startswith(" ") else folder
        path = name if name == folder else folder + name
        assert (root / path).exists(), path
        named.add(path)
    rooms = {str(path.relative_to(root)) for path in (root / "ser_ray").glob("*.py")} - {"ser_ray/__init__.py"}
    assert not {room for room in rooms if room not in named} - {"ser_ray/errors.py"}
