"""The main job from bucket to bucket, against moto's S3 server."""

import io
import re
import socket
import socketserver
import threading
import urllib.request
from collections import Counter
from contextlib import suppress

import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from sound_files import encode
from test_predict import a_model

from ser_ray.base import storage
from ser_ray.model.files import save_model
from ser_ray.predict.predict import FEW
from ser_ray.store.store import Store


@pytest.fixture(scope="module")
def moto():
    """An S3 server on 127.0.0.1."""
    module = pytest.importorskip("moto.server")
    server = module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # All its servers in one process share their buckets: those of other tests go.
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST"))
    yield host, port
    server.stop()


@pytest.fixture(scope="module")
def server(moto, bucket_settings):
    """What stands before it, where every process of the tests' Ray looks for buckets."""
    with Cutter(bucket_settings["AWS_ENDPOINT_URL"], moto) as cutter:
        threading.Thread(target=cutter.serve_forever, daemon=True).start()
        yield cutter
        cutter.shutdown()


@pytest.fixture
def bucket(server, bucket_settings, monkeypatch):
    for name, value in bucket_settings.items():
        monkeypatch.setenv(name, value)
    storage._connect.cache_clear()  # its clients keep the endpoint they were made with
    files = fs.S3FileSystem(allow_bucket_creation=True, endpoint_override=bucket_settings["AWS_ENDPOINT_URL"])
    files.create_dir("corpora")
    files.create_dir("results")
    return files


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("local_ray")
def test_the_main_job_from_bucket_to_bucket(bucket, bucket_settings, made, job, tmp_path):
    for root in made:
        fs.copy_files(root, "corpora/made", destination_filesystem=bucket)
    wish = ("--data", "s3://corpora/made", "--store", "s3://results/store", "--output", "s3://results/runs/one")
    wish = (*wish, "--model", "cnn1d", "--epochs", "1", "--num-workers", "1")
    code, said, err = job("train", *wish)
    assert (code, err) == (0, ""), err
    assert "96/96" in said and "UAR" in said
    names = {info.path.removeprefix("results/runs/one/") for info in _files(bucket, "results/runs/one")}
    assert {"metrics.json", "predictions.parquet", "report.html", "model/model.safetensors"} <= names
    with bucket.open_input_file("results/runs/one/predictions.parquet") as stream:
        assert pq.read_table(io.BytesIO(stream.read())).num_rows > 10
    assert sum(clip["featurized"] for clip in Store("s3://results/store").info()["counts"].values()) == 96
    assert not list(tmp_path.iterdir()), "nothing is left on this machine"
    secret = bucket_settings["AWS_SECRET_ACCESS_KEY"]
    for info in _files(bucket, "results"):
        with bucket.open_input_file(info.path) as stream:
            assert secret.encode() not in stream.read(), info.path
    assert secret not in said

    code, _, err = job("train", *wish)
    assert code == 2 and "finished run" in err
    code, out, err = job("evaluate", "--run", "s3://results/runs/one")
    assert (code, err) == (0, "") and "UAR" in out


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("local_ray")
def test_recordings_in_a_bucket_are_answered_into_it_by_a_model_from_it(bucket, job, tmp_path):
    save_model(a_model(), str(tmp_path / "model"))
    fs.copy_files(str(tmp_path / "model"), "results/runs/first/model", destination_filesystem=bucket)
    for k in range(FEW + 1):  # more than are answered without Ray
        with bucket.open_output_stream(f"corpora/calls/{k % 2}/call {k}.flac") as stream:
            stream.write(encode("FLAC", seconds=1.5 + 0.1 * k))
    wish = ("--run", "s3://results/runs/first", "--input", "s3://corpora/calls", "--output", "s3://results/answers")
    code, _, err = job("predict", *wish)
    assert (code, err) == (0, ""), err
    with bucket.open_input_file("results/answers/recordings.parquet") as stream:
        recordings = pq.read_table(io.BytesIO(stream.read()))
    assert recordings["file"].to_pylist() == [
        *(f"s3://corpora/calls/0/call%20{k}.flac" for k in range(0, FEW + 1, 2)),
        *(f"s3://corpora/calls/1/call%20{k}.flac" for k in range(1, FEW + 1, 2)),
    ]
    assert recordings["answered_s"].to_pylist()[0] == pytest.approx(1.5, abs=0.01)
    left = {info.path.split("/")[2] for info in _files(bucket, "results/answers")}
    assert left == {"asked.json", "windows", "recordings.parquet", "predict.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing is left on this machine"


@pytest.mark.parametrize("place", ["s3://nobody", "s3://corpora/nothing"])
def test_a_bucket_that_is_not_there_costs_one_line(bucket, job, place):
    code, _, err = job("train", "--data", place)
    assert code == 2 and place in err and err.count("\n") == 1 and "Traceback" not in err


def test_denied_access_costs_one_line(bucket, moto, job):
    def deny(count):
        url, kind = f"http://{moto[0]}:{moto[1]}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(url, count.encode(), kind, method="POST"))

    bucket.create_dir("corpora/closed")
    deny("0")
    try:
        code, _, err = job("train", "--data", "s3://corpora/closed")
        assert code == 2 and "s3://corpora" in err and err.count("\n") == 1 and "Traceback" not in err
    finally:
        deny("inf")


def test_a_writer_that_fails_leaves_no_object(bucket):
    def fill(stream):
        stream.write(b"half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        storage.write("s3://results/half", fill)
    assert not storage.exists("s3://results/half")


class Cutter(socketserver.ThreadingTCPServer):
    """Stands before a server and cuts answers with clips of two folders short: `once/` the first time, `always/`."""

    daemon_threads = allow_reuse_address = True

    def __init__(self, address, server):
        host, port = address.removeprefix("http://").split(":")
        self.server, self.cut = server, Counter()
        super().__init__((host, int(port)), CutterHandler)

    def handle_error(self, request, client_address):
        """Say nothing of clients that hang up."""


class CutterHandler(socketserver.StreamRequestHandler):
    rbufsize = 0  # a request's body is left to `pass_on`

    def handle(self):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (line := self.rfile.readline()):
                return
            head += b"Connection: close\r\n\r\n" if line == b"\r\n" else line
        wish = head.split(b"\r\n")[0]
        always = b"/always/" in wish
        with socket.create_connection(self.server.server) as there:
            there.sendall(head)
            threading.Thread(target=self.pass_on, args=(there,), daemon=True).start()
            parts = iter(lambda: there.recv(1 << 16), b"")
            if not (wish.startswith(b"GET") and b".wav" in wish and (always or b"/once/" in wish)):
                for part in parts:
                    self.wfile.write(part)
                return
            answer = b"".join(parts)
        if len(answer) > 8_000:
            key = wish + b"".join(re.findall(rb"(?i)range: \S+", head))
            self.server.cut[key] += 1
            if always or self.server.cut[key] == 1:
                answer = answer[:5_000]
        self.wfile.write(answer)

    def pass_on(self, there):
        with suppress(OSError):
            while part := self.connection.recv(1 << 16):
                there.sendall(part)


@pytest.mark.parametrize("when", ["once", "always"])
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("local_ray")
def test_connections_that_drop_are_tried_again_then_said(bucket, server, made, job, when, tmp_path):
    fs.copy_files(f"{made[0]}/crema_d", f"corpora/{when}", destination_filesystem=bucket)
    clips = [info.path for info in _files(bucket, f"corpora/{when}") if info.path.endswith(".wav")]
    for path in clips[3:]:
        bucket.delete_file(path)
    server.cut.clear()
    wish = ("--features", "summary", "--data", f"s3://corpora/{when}", "--store", tmp_path / "store")
    code, out, err = job("featurize", *wish)
    assert server.cut and "Traceback" not in out + err
    assert min(server.cut.values()) > 1, "each was tried again"
    if when == "always":
        assert code == 2 and err.count("\n") == 1
        assert "none of the clips could be read" in err and "NETWORK_CONNECTION" in err
    else:
        assert (code, err) == (0, "")
        assert Store(str(tmp_path / "store")).info()["counts"]["crema_d"]["featurized"] == 3


def _files(bucket, folder):
    found = bucket.get_file_info(fs.FileSelector(folder, recursive=True))
    return [info for info in found if info.type == fs.FileType.File]
