"""What the README shows is what happens: its commands are run, its table is read, its query is asked."""

import json
import re
import shlex
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from ser_ray.speech import made as synthetic
from ser_ray.speech.corpora import discover

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
JOBS = (ROOT / "docs" / "jobs.md").read_text()


def blocks(language, page=README):
    fenced = [part.partition("\n") for part in page.split("```")[1::2]]
    return [text for name, _, text in fenced if name == language]


@pytest.mark.usefixtures("local_ray", "train_here")
def test_every_job_in_the_readme_runs_and_the_query_answers(job, made):
    lines = [line.partition("  #")[0].split() for block in blocks("bash") for line in block.splitlines()]
    commands = [words for words in lines if words[:1] == ["ser-ray"] and len(words) > 2]
    assert len(commands) > 5
    others = synthetic.write_speech("others", clips=96, seed=1, processes=1)  # other sounds of the same names
    mine = [clip for clip in discover(others).utterances if clip.corpus == "ravdess"]
    lines = [f"{clip.path},{clip.emotion},{clip.speaker_id}" for clip in mine]
    Path("clips.csv").write_text("\n".join(["path,emotion,speaker_id", *lines]))  # whose speakers have other names
    sf.write("call.wav", np.random.default_rng(0).normal(0, 0.1, (80_000, 2)), 16_000)
    for words in commands:
        name = words[1]
        argv = [made[0] if word in ("~/corpora", "~/other_corpus") else word for word in words[2:]]
        if name == "train":
            argv = [{"all": "0"}.get(word, word) for word in argv] + ["--epochs", "1"]  # for time
        if "runs/second" in argv:
            shutil.copytree("runs/first", "runs/second")
        code, _, err = job(name, *argv)
        assert (code, err) == (0, ""), f"{shlex.join(words)}: {err}"
    (query,) = blocks("sql", JOBS)
    counted = duckdb.sql(query).fetchall()
    assert {corpus for corpus, *_ in counted} == {"ravdess", "crema_d", "tess", "savee", "clips"}
    clips, tested = (sum(row[place] for row in counted) for place in (2, 3))
    assert clips == len(discover(made).utterances) + len(mine)
    assert tested == pq.read_metadata("runs/first/predictions.parquet").num_rows


def test_the_readme_is_short_and_its_scores_are_those_of_the_runs():
    assert len(README.splitlines()) < 200
    rows = [line for line in README.splitlines() if line.startswith("| ") and "](docs/results/" in line]
    assert len(rows) >= 4
    for row in rows:
        run = json.loads((ROOT / re.search(r"\((docs/results/[\w-]+)\.md\)", row)[1]).with_suffix(".json").read_text())
        _, uar, interval, minutes, flags = (cell.strip() for cell in row.strip("|").split("|"))
        scores = run["per_corpus"]["ravdess"]
        low, high = scores["interval"]["uar"]
        assert (uar, interval) == (f"{100 * scores['uar']:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"), row
        assert minutes == f"{run['timing']['train_s'] / 60:.0f}", row
        assert all(word in run["command"] for word in re.search(r"`(.*?)`", flags)[1].split() if word != "…"), row


def test_pictures_and_pages_that_the_readme_names_are_there():
    for place in re.findall(r"\]\(((?!http|#)[^)#]+)", README):
        assert (ROOT / place).exists(), place
    assert (ROOT / "docs/results/confusion.svg").stat().st_size < 300_000


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


def test_every_file_in_the_tree_is_there_and_every_room_is_in_the_tree():
    root = ROOT
    (tree,) = [block for block in blocks("") if "ser_ray/" in block and "jobs/" in block]
    folders, named = {-1: ""}, {}
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        path = folders[depth - 1] + name
        assert (root / path).exists(), path
        if name.endswith("/"):
            folders[depth] = path
        named[path] = line
    for room in (root / "ser_ray").rglob("*.py"):
        path = room.relative_to(root)
        folder, lines = f"{path.parent.as_posix()}/", "\n".join(named.values())
        if path.name == "__init__.py" or folder.count("/") > 2:  # folders within a stage stand as a whole
            continue
        assert str(path) in named or re.search(rf"[ ,]{path.name}(\W|$)", lines, re.MULTILINE), path
