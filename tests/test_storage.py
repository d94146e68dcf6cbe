import threading

import pytest
from pyarrow.fs import FileType

from ser_ray.base import storage
from ser_ray.base.errors import UserError


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = str(tmp_path / "deep" / "a.txt")
    storage.write_text(path, "one")

    def fail(stream):
        stream.write(b"half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        storage.write(path, fail)
    assert storage.open_read(path).read() == b"one"
    assert storage.list_names(str(tmp_path / "deep")) == ["a.txt"]  # no draft is left


def test_json_names_and_removal(tmp_path):
    path = storage.join(str(tmp_path), "b.json")
    storage.write_json(path, {"ü": [1, None]})
    assert storage.exists(path) and storage.read_json(path) == {"ü": [1, None]}
    storage.remove(path)
    storage.remove(path)
    assert not storage.exists(path) and storage.list_names(str(tmp_path / "nowhere")) == []
    storage.write_json(storage.join(str(tmp_path), "deep", "deeper", "c.json"), 1)
    for _ in range(2):
        storage.remove_folder(storage.join(str(tmp_path), "deep"))
    assert storage.list_names(str(tmp_path), FileType.Directory) == []


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.normalize("a/../b/") == str(tmp_path / "b")
    assert storage.normalize("s3://bucket/a/") == "s3://bucket/a"
    (tmp_path / "a b").write_text("x")
    assert storage.open_read(f"file://{tmp_path}/a%20b").read() == b"x"
    with pytest.raises(UserError, match="cannot open ftp9://host/a"):
        storage.filesystem("ftp9://host/a")


def test_keys_in_an_address_are_refused_and_not_repeated():
    with pytest.raises(UserError, match="never in an address") as error:
        storage.normalize("s3://AKIAEXAMPLE:hush@bucket/corpora")
    assert "hush" not in str(error.value) and "AKIA" not in str(error.value)
    assert storage.normalize("s3://bucket/a@b") == "s3://bucket/a@b"


def test_jobs_on_one_folder_take_turns(tmp_path):
    folder, waiting, inside = str(tmp_path / "store"), threading.Event(), threading.Event()

    def second():
        with storage.lock(folder, waiting.set):
            inside.set()

    with storage.lock(folder, pytest.fail):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(60) and not inside.is_set()
    thread.join(60)
    assert inside.is_set()
    with storage.lock(folder, pytest.fail):
        pass
