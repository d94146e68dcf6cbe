from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ser_ray.base.errors import UserError
from ser_ray.features.arrays import decode_features, encode_features
from ser_ray.features.log_mel import LogMel
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.features.summary import Summary
from ser_ray.features.waveform import Waveform
from ser_ray.speech.corpora import Manifest
from ser_ray.speech.utterance import Reject, Utterance
from ser_ray.store.accounts import conflicts
from ser_ray.store.place import find_store
from ser_ray.store.rows import open_rows
from ser_ray.store.shards import METADATA, row_schema, widen_shards
from ser_ray.store.store import FOUND, Store

FEATURES = Summary().arrow_type()
RECIPE = FeaturizeConfig(augment=("none",))


def rows(*names, emotion="sad"):
    facts = {"duration_s": 1.0, "sample_rate": 16000, "augmentation": "none", "emotion": emotion}
    values = {
        c: pa.array([facts.get(c, name) for name in names], row_schema(pa.null()).field(c).type) for c in METADATA
    }
    features = encode_features([np.full(FEATURES.list_size, i, np.float32) for i in range(len(names))], FEATURES)
    return pa.table([*values.values(), features], schema=row_schema(FEATURES))


@pytest.mark.parametrize(
    ("config", "shapes", "dtype"),
    [
        (Summary(), [(162,), (162,)], np.float32),
        (LogMel(), [(3, 64), (5, 64), (1, 64)], np.float32),
        (Waveform(), [(40,), (7,)], np.int16),
    ],
)
def test_features_survive_arrow(config, shapes, dtype):
    values = [np.random.default_rng(i).normal(0, 99, shape).astype(dtype) for i, shape in enumerate(shapes)]
    type_ = config.arrow_type()
    column = pa.chunked_array([encode_features(values[:1], type_), encode_features(values[1:], type_)])
    assert column.type == type_
    flat, offsets = decode_features(column)
    for i, value in enumerate(values):
        np.testing.assert_array_equal(flat[offsets[i] : offsets[i + 1]].reshape(value.shape), value)
    assert len(encode_features([], type_)) == 0


def test_rows_come_back_sorted_whatever_the_shards(tmp_path):
    one, two = Store(str(tmp_path / "one")), Store(str(tmp_path / "two"))
    one.write_shard(rows("c", "a"), [])
    one.write_shard(rows("b"), [])
    two.write_shard(rows("b", "c"), [])
    two.write_shard(rows("a"), [])
    assert one.table().equals(two.table())
    assert one.table().column("utterance_id").to_pylist() == ["a", "b", "c"]
    features = one.table(["utterance_id", "augmentation", "features"]).column("features")
    assert features.type == pa.list_(pa.float32(), 162)


def test_some_rows_are_taken_in_the_order_asked_for(tmp_path):
    store, columns = Store(str(tmp_path)), ["utterance_id", "augmentation", "features"]
    store.claim(RECIPE)
    store.write_info({**store.info(), "complete": True})
    for names in ("ca", "bf", "ed"):
        store.write_shard(rows(*names), [])
    for indices in (np.array(places, int) for places in ([4, 0, 3], [5], [])):
        chosen = open_rows(store).take(indices)
        some = chosen.table(columns[:2]).append_column("features", chosen.features())
        assert some.to_pylist() == store.table(columns).take(indices).to_pylist()
        assert chosen.index_N.tolist() == indices.tolist()
    assert some.column_names == columns


def test_writing_a_shard_twice_changes_nothing(tmp_path):
    store = Store(str(tmp_path))
    for _ in range(2):
        store.write_shard(rows("a", "b"), [Reject("x.wav", "ravdess", "ravdess/x", "empty file")])
    assert len(store.shards()) == 1 and store.table().num_rows == 2
    assert store.rejects() == [Reject("x.wav", "ravdess", "ravdess/x", "empty file")]


def test_each_row_of_a_search_and_each_clip_of_tasks_is_rejected_once(tmp_path):
    store = Store(str(tmp_path))
    row = Reject("a.wav", "mine", "mine/a", "unknown emotion 'x'")
    store.write_rejects(FOUND, [row, row])  # two rows of a table
    standing, passing = (Reject(f"{i}.wav", "mine", f"mine/{i}", "empty file") for i in "bc")
    for names in ("bc", "c"):  # an attempt that died, and the next one
        store.write_shard(rows("a"), [reject for reject in (standing, passing) if reject.path[0] in names], names)
    assert store.rejects() == [row, row, standing, passing]
    assert store.keep_rejects(lambda reject: reject.path != "c.wav") == {"mine/b"}
    assert store.rejects() == [standing]


def test_a_folder_of_other_things_does_not_become_a_store(tmp_path):
    (tmp_path / "rejects").mkdir()
    (tmp_path / "rejects" / "letter.parquet").write_text("not ours")
    with pytest.raises(UserError, match="is no feature store but holds rejects; name an empty folder"):
        Store(str(tmp_path)).claim(RECIPE)
    assert (tmp_path / "rejects" / "letter.parquet").exists()


def test_keep_takes_out_what_vanished_and_what_is_broken(tmp_path):
    store = Store(str(tmp_path))
    store.write_shard(rows("a", "b"), [])
    store.write_shard(rows("c"), [])
    (tmp_path / "shards" / "half.parquet").write_bytes(b"PAR1 half a shard")
    store.sweep()
    assert store.keep(dict.fromkeys("acz")) == {"a", "c"}
    assert store.table().column("utterance_id").to_pylist() == ["a", "c"]
    assert len(store.shards()) == 2


def test_rows_standing_twice_after_a_crash_are_kept_once(tmp_path):
    store = Store(str(tmp_path))
    store.write_shard(rows("a", "b"), [])
    store.write_shard(rows("b"), [])
    assert store.keep(dict.fromkeys("ab")) == {"a", "b"}
    assert store.table().num_rows == 2


def test_a_crash_while_rows_are_taken_out_loses_none(tmp_path):
    store = Store(str(tmp_path))
    for names in (
        "ab",
        "b",
        "cd",
        "c",
        "ef",
        "f",
        "gh",
        "g",
    ):  # the rest of a shard was written, the shard still stands
        store.write_shard(rows(*names), [])
    wanted = set("bcfg")
    assert store.keep(dict.fromkeys(wanted)) == wanted
    assert store.table().column("utterance_id").to_pylist() == sorted(wanted)


def test_sweeping_takes_drafts_and_damage_and_nothing_else(tmp_path):
    store = Store(str(tmp_path))
    store.claim(RECIPE)
    shard = store.write_shard(rows("a"), [Reject("x.wav", "ravdess", "ravdess/x", "empty file")])
    store.write_plan([])
    whole = {path for path in tmp_path.rglob("*") if path.is_file()}
    content = Path(shard).read_bytes()
    (tmp_path / "shards" / "cut.parquet").write_bytes(content[:-1])
    (tmp_path / "shards" / "empty.parquet").write_bytes(b"")
    (tmp_path / "shards" / "zeros.parquet").write_bytes(b"PAR1" + bytes(len(content) - 8) + b"PAR1")
    (tmp_path / "rejects" / "cut.parquet").write_bytes(b"PAR1")
    for folder in ("", "shards", "rejects"):
        (tmp_path / folder / "a.parquet.12345678.tmp").write_bytes(content)
    (tmp_path / "attempts").mkdir()
    (tmp_path / "attempts" / "a.json").write_text("{}")
    store.sweep()
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == whole


def test_a_store_of_other_settings_is_refused_by_name(tmp_path):
    store = Store(str(tmp_path))
    store.claim(RECIPE)
    store.claim(RECIPE)
    other = FeaturizeConfig(Summary(n_mels=64), ("none",))
    with pytest.raises(UserError, match="n_mels: 128, wanted 64"):
        store.claim(other)
    assert RECIPE.fingerprint() != other.fingerprint()


def test_something_else_in_its_place_is_not_a_store(tmp_path):
    (tmp_path / "store.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="not a feature store"):
        Store(str(tmp_path)).info()
    with pytest.raises(UserError, match="holds no rows"):
        Store(str(tmp_path)).table()


def test_the_default_place_depends_on_settings_and_roots(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, roots = FeaturizeConfig(), Manifest(["a", "b"])
    one = find_store(recipe, roots)
    assert one == find_store(recipe, Manifest(["b", "a/"]))
    others = find_store(recipe, Manifest(["a"])), find_store(FeaturizeConfig(seed=1), roots)
    assert len({one, *others}) == 3
    assert find_store(RECIPE, roots) == find_store(FeaturizeConfig(augment=("none",), seed=1), roots)  # draws nothing


def test_the_plan_survives(tmp_path):
    store = Store(str(tmp_path))
    clip = Utterance("r/1", "r", "r_1", "", "sad", "", "", "speech", "/x/1.wav", 9, 123_456_789_123_456_789)
    assert list(store.plan()) == []
    store.write_plan([clip])
    assert list(store.plan()) == [clip]


def test_conflicts_are_groups_of_one_audio_and_several_labels():
    table = pa.table(
        {
            "utterance_id": ["a", "b", "c", "d"],
            "sha256": ["1", "1", "2", "2"],
            "emotion": ["sad", "happy", "sad", "sad"],
        }
    )
    assert conflicts(table) == [("a", "b")]


def test_what_is_told_of_a_clip_is_written_anew(tmp_path):
    store = Store(str(tmp_path))
    store.write_shard(rows("a", "b"), [])
    told = Utterance("a", "mine", "mine_1", "female", "happy", "", "", "speech", "/new/a.wav")
    assert store.keep({"a": told, "b": None}) == {"a", "b"}
    first, second = store.table().to_pylist()
    assert (first["emotion"], first["path"], first["sha256"]) == ("happy", "/new/a.wav", "a")
    assert (second["emotion"], second["path"]) == ("sad", "b")
    assert store.table(["utterance_id", "augmentation", "features"])["features"].to_pylist()[0][0] == 0


def test_a_store_is_found_where_its_clips_have_moved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here, there = (
        Manifest([root], [Utterance("r/1", "r", "r_1", "", "sad", "", "", "speech", f"{root}/1.wav", 9)])
        for root in ("/here", "/there")
    )
    store = Store(find_store(RECIPE, here))
    assert find_store(RECIPE, there) != store.root
    store.claim(RECIPE)
    store.write_plan(here.utterances)
    assert find_store(RECIPE, there) == find_store(RECIPE, here) == store.root
    assert find_store(FeaturizeConfig(Summary(n_mels=64), ("none",)), there) != store.root


def test_half_precision_where_every_value_is_within_it_and_one_type_in_all_of_a_store(tmp_path):
    half, wide = (pa.list_(pa.list_(number, 2), 3) for number in (pa.float16(), pa.float32()))
    small, large = np.full((3, 2), 0.1, np.float32), np.full((3, 2), 70_000, np.float32)
    store = Store(str(tmp_path / "store"))
    for name, values in (("a", small), ("b", large)):
        features = encode_features([values], half)
        assert features.type == {"a": half, "b": wide}[name]
        columns = [pa.array([name], row_schema(half).field(column).type) for column in METADATA[:10]]
        columns += [pa.array([1.0]), pa.array([16_000], pa.int32()), pa.array(["none"]), features]
        store.write_shard(pa.Table.from_arrays(columns, schema=row_schema(features.type)), [])
    widen_shards(store.shards())
    assert _features(store).type == wide
    values, _ = decode_features(_features(store))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.stack([small.astype(np.float16), large]))
    widen_shards(store.shards())
    assert _features(store).type == wide


def _features(store):
    return store.table(["utterance_id", "augmentation", "features"])["features"]
