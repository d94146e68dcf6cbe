"""Corpora and tables in object storage, against moto's S3 server."""

import unicodedata
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pytest
import soundfile as sf

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.base.storage import open_read
from ser_ray.speech.corpora import discover
from ser_ray.speech.corpora.marker import MARKER


def clip(path, seed=0, seconds=0.1):
    """Write a second of noise, or less; the same seed gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, np.random.default_rng(seed).uniform(-0.5, 0.5, int(16_000 * seconds)), 16_000)
    return str(path)


def reasons(records):
    return {Path(record.path).name: record.reason for record in records}


@pytest.fixture
def bucket(monkeypatch):
    server_module = pytest.importorskip("moto.server")
    from pyarrow import fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    storage._connect.cache_clear()  # its clients keep the endpoint they were made with
    files = fs.S3FileSystem(allow_bucket_creation=True, endpoint_override=f"http://{host}:{port}")
    files.create_dir("corpora")
    yield files
    server.stop()


def test_a_bucket_is_read_like_a_folder(bucket, tmp_path):
    for seed, path in enumerate(
        ["TESS set/OAF_Fear/OAF_back_fear.wav", "again/OAF_back_fear.wav", "DC/a01.wav", "x.wav"]
    ):
        with bucket.open_output_stream(f"corpora/all/{path}") as stream:
            stream.write(Path(clip(tmp_path / "clip.wav", max(seed, 1))).read_bytes())
    manifest = discover(["s3://corpora/all/"])
    assert [u.utterance_id for u in manifest.utterances] == ["savee/DC_a01", "tess/OAF_back_fear"]
    assert manifest.utterances[1].path == "s3://corpora/all/TESS%20set/OAF_Fear/OAF_back_fear.wav"
    assert manifest.utterances[0].size > 1000 and manifest.utterances[0].modified_ns > 0
    assert [r.reason for r in manifest.duplicates] == [f"copy of {manifest.utterances[1].path}"]
    assert reasons(manifest.rejects) == {"x.wav": "name fits no known corpus"}
    for missing in ("s3://corpora/none", "s3://nobody/all", "s3://corpora/none.csv"):
        with pytest.raises(UserError, match=missing):
            discover([missing])


def test_a_table_in_a_bucket(bucket, tmp_path):
    with bucket.open_output_stream("corpora/my clips/one #1.wav") as stream:
        stream.write(Path(clip(tmp_path / "clip.wav")).read_bytes())
    with bucket.open_output_stream("corpora/lab.csv") as stream:
        stream.write(b"path,emotion,speaker_id\nmy clips/one #1.wav,joy,7\n./none/gone.wav,joy,7\n")
    manifest = discover(["s3://corpora/lab.csv"])
    (u,) = manifest.utterances
    assert (u.utterance_id, u.path) == ("lab/my clips/one #1", "s3://corpora/my%20clips/one%20%231.wav")
    assert open_read(u.path).read() == Path(tmp_path / "clip.wav").read_bytes()
    assert reasons(manifest.rejects) == {"gone.wav": "file not found"}


def put(bucket, key, seed=0):
    with bucket.open_output_stream(f"corpora/{key}") as stream:
        stream.write(np.random.default_rng(seed).bytes(2000))


def table_of(bucket, cells, key="lab.csv"):
    rows = "".join(f'"{cell}",joy,s{number}\n' for number, cell in enumerate(cells))
    with bucket.open_output_stream(f"corpora/{key}") as stream:
        stream.write(f"path,emotion,speaker_id\n{rows}".encode())
    return f"s3://corpora/{key}"


NAMES = ["a&b.wav", "a+b.wav", "it's.wav", "a;b.wav", "a@b.wav", "a=b.wav", "two words.wav", "J\u00f6rg.wav"]
NAMES += ["no #1.wav", "why?.wav", "50%.wav", "[x].wav", "take.001", "bare"]


@pytest.mark.parametrize("quoted", [True, False])
@pytest.mark.parametrize("relative", [True, False])
def test_addresses_are_found_however_they_are_quoted(bucket, quoted, relative):
    for seed, name in enumerate(NAMES):
        put(bucket, f"q/{name}", seed)
    cells = [quote(name, safe="") if quoted else name for name in NAMES]
    manifest = discover([table_of(bucket, [f"{'' if relative else 's3://corpora/'}q/{cell}" for cell in cells])])
    assert not manifest.rejects
    assert {unquote(u.path) for u in manifest.utterances} == {f"s3://corpora/q/{name}" for name in NAMES}
    assert all(u.size == 2000 and len(open_read(u.path).read()) == 2000 for u in manifest.utterances)
    assert len({u.utterance_id for u in manifest.utterances}) == len(NAMES)


def test_of_two_readings_of_a_cell_the_one_as_written_wins(bucket):
    put(bucket, "both/a b.wav", 1)
    put(bucket, "both/a%20b.wav", 2)
    as_address = discover([table_of(bucket, ["s3://corpora/both/a%20b.wav"])])
    assert [u.path for u in as_address.utterances] == ["s3://corpora/both/a%20b.wav"]  # the blank, as in any URI
    as_path = discover([table_of(bucket, ["both/a%20b.wav"])])
    assert [u.path for u in as_path.utterances] == ["s3://corpora/both/a%2520b.wav"]


def test_accents_in_another_form_than_in_the_bucket_are_found(bucket):
    name = "M\u00fcller/J\u00f6rg.wav"
    put(bucket, unicodedata.normalize("NFD", f"accents/{name}"))
    cells = [f"s3://corpora/accents/{name}", "accents/M\u00fcller/Anna.wav"]
    manifest = discover([table_of(bucket, cells)])
    assert [unicodedata.normalize("NFC", unquote(u.path)) for u in manifest.utterances] == [cells[0]]
    assert [r.reason for r in manifest.rejects] == ["file not found"]


def test_made_speech_in_a_bucket_is_known_for_made(bucket, tmp_path):
    for place in ("made/ravdess/Actor_01/03-01-01-01-01-01-01.wav", "real/03-01-01-01-01-01-02.wav"):
        with bucket.open_output_stream(f"corpora/{place}") as stream:
            stream.write(Path(clip(tmp_path / "clip.wav", len(place))).read_bytes())
    for folder, text in [("made", b'{"version": 1, "seed": 0, "clips": 1}'), ("real", b'{"note": "mine"}')]:
        with bucket.open_output_stream(f"corpora/{folder}/{MARKER}") as stream:
            stream.write(text)
    assert discover(["s3://corpora/made/ravdess"]).made_speech == ["s3://corpora/made"]
    assert discover(["s3://corpora/real"]).made_speech == []


def test_a_bucket_of_archives_says_what_is_there(bucket):
    put(bucket, "zips/a.zip")
    with pytest.raises(UserError, match="s3://corpora/zips holds no audio file but 1 zip archive: unpack it"):
        discover(["s3://corpora/zips"])
