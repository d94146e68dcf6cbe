"""The main job from bucket to bucket, against moto's S3 server."""

import io
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from ser_ray import storage
from ser_ray.store import Store

JOB = Path(__file__).parent.parent / "jobs" / "train.py"


@pytest.fixture(scope="module")
def server():
    """An S3 server on 127.0.0.1 that every process of this test's Ray finds by its environment."""
    module = pytest.importorskip("moto.server")
    server = module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch):
    settings = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**settings, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(name, value)
    storage._connect.cache_clear()  # its clients keep the endpoint they were made with
    files = fs.S3FileSystem(allow_bucket_creation=True, endpoint_override=server)
    files.create_dir("corpora")
    files.create_dir("results")
    return files


@pytest.mark.timeout(600)
def test_the_main_job_from_bucket_to_bucket(bucket, made, job, tmp_path):
    for root in made:
        fs.copy_files(root, f"corpora/{root.rsplit('/', 1)[-1]}", destination_filesystem=bucket)
    wish = ("--data", "s3://corpora", "--store", "s3://results/store", "--output", "s3://results/runs/one")
    wish = (*wish, "--model", "cnn1d", "--epochs", "1")
    # In its own process: workers take the environment, and with it the bucket's server, of the Ray they belong to.
    run = subprocess.run([sys.executable, JOB, *wish], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    assert "UAR" in run.stdout
    names = {info.path.removeprefix("results/runs/one/") for info in _files(bucket, "results/runs/one")}
    assert {"metrics.json", "predictions.parquet", "report.html", "model/model.safetensors"} <= names
    with bucket.open_input_file("results/runs/one/predictions.parquet") as stream:
        assert pq.read_table(io.BytesIO(stream.read())).num_rows > 10
    assert sum(clip["featurized"] for clip in Store("s3://results/store").info()["counts"].values()) == 96
    assert not list(tmp_path.iterdir()), "nothing is left on this machine"

    code, _, err = job("train", *wish)
    assert code == 2 and "finished run" in err
    code, out, err = job("evaluate", "--run", "s3://results/runs/one")
    assert (code, err) == (0, "") and "UAR" in out


@pytest.mark.parametrize("place", ["s3://nobody", "s3://corpora/nothing"])
def test_a_bucket_that_is_not_there_costs_one_line(bucket, job, place):
    code, _, err = job("train", "--data", place)
    assert code == 2 and place in err and err.count("\n") == 1 and "Traceback" not in err


def _files(bucket, folder):
    found = bucket.get_file_info(fs.FileSelector(folder, recursive=True))
    return [info for info in found if info.type == fs.FileType.File]
