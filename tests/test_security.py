"""What docs/security.md claims. Tokens are tested in test_cluster.py, secrets in test_object_storage.py as well."""

import ast
import json
import os
import pickle
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import safetensors
import torch
from local_cluster import descendants

import ser_ray
from ser_ray.base.errors import UserError
from ser_ray.model.files import FORMAT, load_model
from ser_ray.store.store import Store

SOURCES = [*Path(ser_ray.__file__).parent.rglob("*.py"), *(Path(__file__).parent.parent / "jobs").glob("*.py")]
LONELY = """
from ser_ray.base.cluster import connect
import ray
connect()
print(ray.get(ray.remote(lambda: "ready").remote()), ray.get_runtime_context().gcs_address, flush=True)
input()
"""


@pytest.fixture(scope="module")
def lonely():
    """A job's own Ray on this machine: its process, and its address."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-c", LONELY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    ready, address = process.stdout.readline().split()
    assert ready == "ready"
    yield process, address
    process.communicate("\n")


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
def test_a_jobs_own_ray_listens_on_loopback_alone(lonely):
    process, _ = lonely
    time.sleep(2)  # its last helpers start
    sockets = {target for pid in [process.pid, *descendants(process.pid)] for target in open_files(pid)}
    listening = {inode: address for inode, address in listeners() if f"socket:[{inode}]" in sockets}
    assert len(listening) > 5
    assert {address for address in listening.values() if not is_loopback(address)} == set()


def test_a_jobs_own_ray_wants_its_token(lonely):
    _, address = lonely
    for other in ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        env = os.environ | {"RAY_ADDRESS": address} | other
        code = "import ray; ray.init(); print('in')"
        intruder = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=90)
        assert intruder.returncode != 0 and "in\n" not in intruder.stdout


def test_no_shell_no_archive_no_code_from_text():
    forbidden = {"tarfile", "zipfile", "shutil", "runpy", "importlib", "ctypes.util", "pty", "socketserver"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module} if isinstance(node, ast.ImportFrom) else set()
            assert not names & (forbidden | {"subprocess"}), path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}, path
                assert called not in {"yaml.load", "yaml.unsafe_load"}, path


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [lambda p: pickle.dumps(p), lambda p: b"PK\x03\x04" + pickle.dumps(p)])
def test_a_pickle_in_the_place_of_weights_is_refused_and_not_run(tmp_path, write):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                **{"format": FORMAT, "network": {"model": "cnn1d"}, "members": 1, "features": {"kind": "summary"}},
                **{"labels": {"names": ["happy", "sad"], "merged": []}, "speaker_norm": False, "temperature": 1.0},
                **{"trained_on": {"speakers": []}, "facts": {}},
            }
        )
    )
    (tmp_path / "model.safetensors").write_bytes(write(Payload(tmp_path / "run")))
    with pytest.raises(UserError, match="not a model that this version reads"):
        load_model(str(tmp_path))
    torch_file = tmp_path / "state.safetensors"
    torch.save(Payload(tmp_path / "run"), torch_file)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.torch.load_file(torch_file)  # as checkpoints are read
    assert not (tmp_path / "run").exists()


def test_a_pickle_in_the_place_of_a_shard_is_not_run(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.parquet").write_bytes(pickle.dumps(Payload(tmp_path / "run")))
    with pytest.raises(Exception, match=r"(?i)parquet"):
        Store(str(tmp_path)).table()
    assert not (tmp_path / "run").exists()


def open_files(pid):
    targets = []
    with suppress(OSError):  # it ended
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                targets.append(os.readlink(file))
    return targets


def listeners():
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # LISTEN
                yield fields[9], fields[1].rpartition(":")[0]


def is_loopback(address):
    return address in ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
