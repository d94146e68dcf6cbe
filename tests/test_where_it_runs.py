"""Jobs where people run them: with addresses that are none, in long temp folders, on terminals of few characters."""

import io
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from ser_ray.base import cluster, console
from ser_ray.base.errors import UserError

JOBS = Path(__file__).parent.parent / "jobs"
PATIENCE_S = 30


def run_job_by_hand(folder, job, *flags, timeout=240, **env):
    """Run a job from a shell that sets these variables and no other of Ray's."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, JOBS / f"{job}.py", *map(str, flags)]
    return subprocess.run(command, cwd=folder, env=own | env, capture_output=True, timeout=timeout)


def refused(done):
    """Return the one line of a job that was refused."""
    said = done.stderr.decode()
    assert done.returncode == 2 and said.count("\n") == 1, said
    return said


@pytest.fixture
def silent_port():
    """A port where something listens that never answers, as behind some firewalls."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return port


def test_an_address_for_submitting_jobs_does_for_no_job_by_hand(tmp_path):
    """People export it for `ray job submit`, and then run a job themselves."""
    done = run_job_by_hand(tmp_path, "train", timeout=PATIENCE_S, RAY_ADDRESS="http://127.0.0.1:8265")
    said = refused(done)
    assert "`ray job submit --working-dir . -- python" in said and "`unset RAY_ADDRESS`" in said
    assert "Making speech" not in done.stdout.decode() and not (tmp_path / "data").exists()


def test_a_cluster_that_has_ended_is_not_waited_for(tmp_path, free_port):
    address = f"127.0.0.1:{free_port}"
    said = refused(run_job_by_hand(tmp_path, "train", timeout=PATIENCE_S, RAY_ADDRESS=address))
    assert f"no Ray cluster answers at RAY_ADDRESS={address}" in said and "`unset RAY_ADDRESS`" in said


@pytest.mark.parametrize(
    "address",
    ["no-such-host.invalid:6379", "127.0.0.1:{silent}", "[::1]:{free}", "ray://127.0.0.1:{free}", "127.0.0.1", ":6379"],
)
def test_an_address_without_a_cluster_costs_one_line(monkeypatch, capfd, silent_port, free_port, address):
    given = address.format(silent=silent_port, free=free_port)
    monkeypatch.setenv("RAY_ADDRESS", given)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "ANSWER_S", 1.0)
    with pytest.raises(UserError, match=re.escape(f"RAY_ADDRESS={given}")) as error:
        cluster.check_address()
    assert "\n" not in str(error.value) and "`unset RAY_ADDRESS`" in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("address", ["", " ", "local"])
def test_an_empty_address_asks_for_a_ray_of_the_jobs_own(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster.cluster_address() is None
    cluster.check_address()
    code = "import os, ser_ray; print(os.environ['RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER'])"  # on loopback alone
    env = {name: value for name, value in os.environ.items() if name != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout == "0\n"


@pytest.fixture(scope="module")
def odd_place(tmp_path_factory):
    """A folder with a table and a store that a job made of it, and that job: characters beyond ASCII, a long TMPDIR.

    The table, which is a user's own, names clips of five speakers and a file that is empty.
    """
    folder = tmp_path_factory.mktemp("odd")
    rows = ["path,emotion,speaker_id"]
    for speaker in ("anna", "bert", "cleo", "dora", "egon"):
        for emotion in ("happy", "sad"):
            rows.append(f"{speaker} {emotion} ü.wav,{emotion},{speaker}")
            noise = np.random.default_rng(len(rows)).normal(0, 0.1, 16_000)
            sf.write(folder / f"{speaker} {emotion} ü.wav", noise, 16_000)
    (folder / "leer ü.wav").write_bytes(b"")
    (folder / "own.csv").write_text("\n".join([*rows, "leer ü.wav,sad,anna"]), encoding="utf-8")
    long = folder / "job" / "x".ljust(150, "x")
    long.mkdir(parents=True)
    flags = ("--data", "own.csv", "--features", "summary", "--store", "store")
    return folder, run_job_by_hand(folder, "featurize", *flags, PYTHONIOENCODING="ascii", TMPDIR=str(long))


def test_a_temp_folder_as_long_as_batch_systems_make_it(odd_place):
    _, done = odd_place
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Featurizing: 11/11" in done.stdout


def test_sockets_lie_where_their_paths_are_short_and_files_can_be_made(monkeypatch):
    monkeypatch.delenv("RAY_object_spilling_directory", raising=False)
    monkeypatch.setattr(cluster, "_is_writable", lambda folder: folder.startswith(("/scratch", "/run")))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    monkeypatch.setenv("HOME", "/home/somebody")
    long = f"/scratch/{'x' * 40}/ray"  # on the disk that the user chose for much
    for usual, options in (
        ("/scratch/ray", {"_temp_dir": "/scratch/ray"}),
        ("/gone/ray", {"_temp_dir": "/run/user/1/ray"}),
        (long, {"_temp_dir": "/run/user/1/ray", "object_spilling_directory": long}),
    ):
        monkeypatch.setattr(cluster, "get_default_ray_temp_dir", lambda usual=usual: usual)
        assert cluster._folders() == options
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"/run/{'x' * 40}")
    with pytest.raises(UserError, match=r"set RAY_TMPDIR to a folder .* of at most 35 bytes") as error:
        cluster._folders()
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("local_ray", "train_here")
def test_an_output_of_few_characters_ends_no_job(odd_place, job, monkeypatch):
    folder, done = odd_place
    said = done.stdout.decode("ascii")
    assert "Rejected: 1 x empty file, such as" in said and "leer ?.wav" in said
    assert re.search(r"\| own +\| +11 \| +- \|", said) and "+----" in said
    monkeypatch.setattr(sys, "stdout", stream := io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    wish = ("--data", folder / "own.csv", "--store", folder / "store", "--num-folds", "2", "--fold", "all")
    code, _, err = job("train", *wish, "--model", "cnn1d", "--epochs", "1", "--output", "run")
    stream.flush()
    said = stream.buffer.getvalue().decode("ascii")
    assert (code, err) == (0, "") and "epoch   1/1" in said and "+/-" in said


@pytest.mark.parametrize(
    ("encoding", "written"), [("latin-1", "2 × ü ? - ± ?"), ("ascii", "2 x ? ? - +/- ?"), ("utf-8", "2 × ü 語 – ± ?")]
)
def test_what_an_output_cannot_write_becomes_plain(monkeypatch, encoding, written):
    """The last character stands for a byte of a file name that is not UTF-8."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    console.write_anywhere()
    console.say("2 × ü 語 – ± \udcff")
    console.show_table("Ü – \udcff", [{"corpus": "语", "published": None}])
    stream.flush()
    said = stream.buffer.getvalue().decode(encoding)
    assert said.startswith(f"{written}\n")
    assert ("│" in said) == (encoding == "utf-8")
