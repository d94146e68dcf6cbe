"""The feature store on disk: shards, rejects, the plan they follow, and the fingerprint that keeps them apart.

    STORE/store.json          settings, their fingerprint, versions, counts; `complete` once all is accounted for
    STORE/clips.parquet       the plan: one row per clip of the corpora, as found
    STORE/shards/*.parquet    the rows: clip and augmentation, metadata and features
    STORE/rejects/*.parquet   clips that could not be used, each with its reason
    STORE/duplicates.parquet  copies that were dropped, each with the file that was kept

A shard appears whole or not at all, and its name is drawn from the clips in it, so writing it twice changes nothing.
A store is always that of its corpora: rows of clips that changed or vanished are taken out when the job runs again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.fs import FileType

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.features.settings import FeatureConfig
from ser_ray.speech.utterance import REJECT_SCHEMA, UTTERANCE_SCHEMA, Reject, Utterance, from_table, to_table

FORMAT = 3  # of the files, and of what the kernel computes: rows of another one never mix with these
COMPRESSION = {"compression": "zstd", "compression_level": 1}
PLAN_CHUNK = 10_000  # clips of the plan that are written at a time
FOUND = "found"  # file of rejects of the search for clips; the others are of tasks
METADATA = (
    *("utterance_id", "corpus", "speaker_id", "gender", "emotion", "intensity", "sentence_id", "channel"),
    *("path", "sha256", "duration_s", "sample_rate", "augmentation"),
)


def fingerprint(settings: dict[str, Any]) -> str:
    """Return 12 hex digits that stand for the settings of features and augmentation."""
    text = json.dumps({"format": FORMAT, **settings}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def default_root(settings: dict[str, Any], roots: Sequence[str]) -> str:
    """Return the store's place when none is given: `stores/<fingerprint>-<digest of the roots>`."""
    digest = hashlib.sha256("\n".join(sorted(storage.normalize(root) for root in roots)).encode()).hexdigest()
    return storage.normalize(f"stores/{fingerprint(settings)}-{digest[:8]}")


def row_schema(feature_type: pa.DataType) -> pa.Schema:
    """Return the schema of a shard whose `features` column has the given native Arrow type."""
    types = {"duration_s": pa.float64(), "sample_rate": pa.int32()}
    return pa.schema([(name, types.get(name, pa.string())) for name in METADATA] + [("features", feature_type)])


def feature_type(config: FeatureConfig) -> pa.DataType:
    """Return the Arrow type of one clip's features.

    `summary` is 162 float32; `log_mel` a list of frames, each of `n_mels` float32; `waveform` a list of int16 samples.
    """
    if config.kind == "summary":
        return pa.list_(pa.float32(), config.num_features)
    if config.kind == "log_mel":
        return pa.list_(pa.list_(pa.float32(), config.n_mels))
    return pa.list_(pa.int16())


def encode(values: Sequence[np.ndarray], type_: pa.DataType) -> pa.Array:
    """Turn features of clips, each an array whose first axis may vary, into an Arrow array of `feature_type`."""
    lengths = [len(value) for value in values]
    if pa.types.is_fixed_size_list(type_):
        flat = pa.array(np.concatenate([np.zeros(0, np.float32), *values]), type_.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type_.list_size)
    inner = type_.value_type
    leaf = inner.value_type if pa.types.is_fixed_size_list(inner) else inner
    flat = pa.array(np.concatenate([np.zeros(0, leaf.to_pandas_dtype()), *(v.ravel() for v in values)]), leaf)
    if leaf is not inner:
        flat = pa.FixedSizeListArray.from_arrays(flat, inner.list_size)
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), flat)


def decode(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Turn a `features` column back into NumPy.

    Returns:
        All values in one array, `[rows, 162]` for `summary`, `[frames, n_mels]` for `log_mel`, `[samples]` for
        `waveform`; and `[rows + 1]` offsets: row i holds `values[offsets[i] : offsets[i + 1]]`.
    """
    array = column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        flat = array.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(-1, array.type.list_size), np.arange(len(array) + 1)
    lengths = array.value_lengths().to_numpy(zero_copy_only=False)
    frames = array.flatten()
    if pa.types.is_fixed_size_list(frames.type):
        width = frames.type.list_size
        return frames.flatten().to_numpy(zero_copy_only=False).reshape(-1, width), np.cumsum([0, *lengths])
    return frames.to_numpy(zero_copy_only=False), np.cumsum([0, *lengths])


@dataclass(frozen=True)
class Store:
    """A feature store at a path or URI.

    Attributes:
        root: Its folder.
    """

    root: str

    def info(self) -> dict[str, Any] | None:
        """Return the content of `store.json`, or None where there is no store yet.

        Raises:
            UserError: The file is there but is not a store of this format.
        """
        path = storage.join(self.root, "store.json")
        if not storage.exists(path):
            return None
        try:
            info = storage.read_json(path)
            known = info["format"] == FORMAT
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise UserError(f"{path} is not a feature store that this version reads; choose another --store")
        return info

    def write_info(self, info: dict[str, Any]) -> None:
        """Write `store.json` atomically."""
        storage.write_json(storage.join(self.root, "store.json"), info)

    def sweep(self) -> None:
        """Delete what killed jobs and full disks leave behind: drafts, attempts, files cut off or damaged."""
        attempts = storage.join(self.root, "attempts")
        for folder in (self.root, storage.join(self.root, "shards"), storage.join(self.root, "rejects"), attempts):
            for path in (storage.join(folder, name) for name in storage.list_names(folder)):
                broken = path.endswith(".parquet") and _is_damaged(path)
                if broken or path.endswith(".tmp") or folder == attempts:
                    storage.remove(path)

    def attempts_path(self, clips: Sequence[Utterance]) -> str:
        """Return where a task on some clips leaves its note (`guard.Attempts`)."""
        return storage.join(self.root, "attempts", f"{name_clips(clip.utterance_id for clip in clips)}.json")

    def claim(self, settings: dict[str, Any]) -> None:
        """Make the store ours before the first row: note its settings, or refuse another's.

        Raises:
            UserError: The store was made with other settings, which the message names, or the folder is no store.
        """
        info = self.info()
        if info is None:
            strangers = [n for n in storage.list_names(self.root) if n != ".lock" and not n.endswith(".tmp")]
            strangers += storage.list_names(self.root, FileType.Directory)
            if strangers:
                raise UserError(
                    f"{self.root} is no feature store but holds {strangers[0]}; name an empty folder, or one that is "
                    "not there yet, as --store"
                )
            self.write_info({"format": FORMAT, "fingerprint": fingerprint(settings), **settings, "complete": False})
        elif info["fingerprint"] != fingerprint(settings):
            raise UserError(
                f"{self.root} was made with other settings ({differences(info, settings) or 'an older format'}); "
                "leave out --store to get one of its own, or name another"
            )
        else:
            self.write_info({**info, "complete": False})

    def plan(self) -> Iterator[Utterance]:
        """Yield the clips that the last run set out to featurize; none before the first run."""
        path = storage.join(self.root, "clips.parquet")
        if storage.exists(path):
            for batch in read_shard(path, None).to_batches(max_chunksize=10_000):
                yield from from_table(pa.Table.from_batches([batch]))

    def write_plan(self, clips: Sequence[Utterance]) -> None:
        """Write `clips.parquet` atomically."""

        def fill(stream: BinaryIO) -> None:
            with pq.ParquetWriter(stream, UTTERANCE_SCHEMA, **COMPRESSION) as writer:
                for start in range(0, len(clips), PLAN_CHUNK):
                    writer.write_table(to_table(clips[start : start + PLAN_CHUNK]))

        storage.write(storage.join(self.root, "clips.parquet"), fill)

    def write_shard(self, rows: pa.Table, rejects: Sequence[Reject], name: str = "") -> str:
        """Write the outcome of some clips: a shard of rows and, where there are any, a file of rejects.

        Args:
            rows: Table of `row_schema`; it may be empty.
            rejects: Clips of the same task that could not be used.
            name: From `name_clips`, of all clips of the task; by default of those that have rows.

        Returns:
            The shard's path.
        """
        name = name or name_clips(rows.column("utterance_id").to_pylist())
        path = storage.join(self.root, "shards", f"{name}.parquet")
        if rejects:
            self.write_rejects(name, rejects)
        if rows.num_rows:
            _write(path, rows)
        return path

    def write_rejects(self, name: str, rejects: Sequence[Reject]) -> None:
        """Write `rejects/<name>.parquet`."""
        _write(storage.join(self.root, "rejects", f"{name}.parquet"), to_table(rejects, REJECT_SCHEMA))

    def write_duplicates(self, duplicates: Sequence[Reject]) -> None:
        """Write `duplicates.parquet`: copies that were dropped, each with the file that was kept."""
        _write(storage.join(self.root, "duplicates.parquet"), to_table(duplicates, REJECT_SCHEMA))

    def shards(self) -> list[str]:
        """Return the paths of all shards, sorted."""
        folder = storage.join(self.root, "shards")
        return [storage.join(folder, name) for name in storage.list_names(folder) if name.endswith(".parquet")]

    def rows(self, columns: Sequence[str] = METADATA, augmentation: str | None = None) -> pa.Table:
        """Read rows of all shards, sorted by `utterance_id` and `augmentation`.

        Args:
            columns: These two and any others.
            augmentation: Rows of this one only, such as `none` for one row per clip.

        Raises:
            UserError: The store holds no rows.
        """
        tables = list(self.each(columns, augmentation))
        if not tables:
            raise UserError(f"the store {self.root} holds no rows; run jobs/featurize.py --data ... first")
        return pa.concat_tables(tables).sort_by([("utterance_id", "ascending"), ("augmentation", "ascending")])

    def each(self, columns: Sequence[str], augmentation: str | None = None) -> Iterator[pa.Table]:
        """Yield the rows of one shard after the other, for what is too large to be read at once."""
        for path in self.shards():
            table = read_shard(path, columns)
            yield table.filter(pc.equal(table.column("augmentation"), augmentation)) if augmentation else table

    def take(self, indices: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Read some rows, of those shards alone that hold any of them, so that no others stay in memory.

        Args:
            indices: Of rows in the sorted rows of the store.
            columns: What `rows` takes.

        Returns:
            The rows in the order of the indices.
        """
        keys = ["utterance_id", "augmentation"]
        wanted = name_rows(self.rows(keys).take(indices))
        paths = [path for path in self.shards() if choose_rows(read_shard(path, keys), wanted).num_rows]
        table = pa.concat_tables(choose_rows(read_shard(path, columns), wanted) for path in paths or self.shards()[:1])
        return table.take(pc.index_in(wanted, value_set=name_rows(table)))

    def decoded_gb(self) -> float:
        """Return about how many GB the features of all rows take in memory."""
        sizes = 0
        for path in self.shards():
            files, inner = storage.filesystem(path)
            shard = pq.read_metadata(inner, filesystem=files)
            for group in (shard.row_group(i) for i in range(shard.num_row_groups)):
                columns = (group.column(i) for i in range(group.num_columns))
                sizes += sum(c.total_uncompressed_size for c in columns if c.path_in_schema.startswith("features"))
        return sizes / 1e9

    def rejects(self) -> list[Reject]:
        """Return all rejects in the order of their paths; a clip that tasks rejected stands once."""
        folder = storage.join(self.root, "rejects")
        names = [name for name in storage.list_names(folder) if name.endswith(".parquet")]
        of_tasks: dict[str, Reject] = {}
        of_search: list[Reject] = []
        for name in names:
            some = [Reject(**row) for row in read_shard(storage.join(folder, name), None).to_pylist()]
            if name == f"{FOUND}.parquet":
                of_search += some
            else:
                of_tasks |= {reject.utterance_id: reject for reject in some}
        return sorted([*of_search, *of_tasks.values()], key=lambda reject: (reject.path, reject.reason))

    def keep(self, wanted: set[str]) -> set[str]:
        """Take out the rows of all clips but the wanted ones, and rows that stand twice.

        Args:
            wanted: utterance_ids that may stay.

        Returns:
            The utterance_ids whose rows are there.
        """
        kept: set[str] = set()
        rewritten = set()
        for path in self.shards():
            if path in rewritten:
                continue
            ids = read_shard(path, ["utterance_id"]).column("utterance_id").to_pylist()
            stays = [i in wanted and i not in kept for i in ids]
            if not all(stays):
                rest = read_shard(path, None).filter(pa.array(stays))
                rewritten.add(self.write_shard(rest, []))  # first: a crash in between leaves copies, not gaps
                storage.remove(path)
            kept |= {i for i, stay in zip(ids, stays, strict=True) if stay}
        return kept

    def keep_rejects(self, wanted: Callable[[Reject], bool]) -> set[str]:
        """Take out all rejects but the wanted ones of tasks, and return the utterance_ids of those."""
        storage.remove(storage.join(self.root, "rejects", f"{FOUND}.parquet"))  # every search has its own
        stay = [reject for reject in self.rejects() if wanted(reject)]
        folder = storage.join(self.root, "rejects")
        for name in storage.list_names(folder):
            storage.remove(storage.join(folder, name))
        if stay:
            self.write_rejects("standing", stay)
        return {reject.utterance_id for reject in stay}


def differences(info: dict[str, Any], settings: dict[str, Any], without: Sequence[str] = ()) -> str:
    """Say which settings of a store differ from the wanted ones, such as `n_mels: 64, wanted 128`, without some."""

    def flat(value: Any, name: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for key, inner in value.items() for k, v in flat(inner, key).items()}
        return {name: value}

    settings = json.loads(json.dumps(settings))  # tuples become lists, as they do on disk
    have, want = flat({key: info.get(key) for key in settings}, ""), flat(settings, "")
    changed = sorted(key for key in (have.keys() | want.keys()) - {*without} if have.get(key) != want.get(key))
    return "; ".join(f"{key}: {have.get(key)}, wanted {want.get(key)}" for key in changed)


def read_shard(path: str, columns: Sequence[str] | None) -> pa.Table:
    """Read the rows of one shard, with all columns or some."""
    files, inner = storage.filesystem(path)
    return pq.ParquetFile(inner, filesystem=files).read(columns=None if columns is None else list(columns))


def name_rows(rows: pa.Table) -> pa.Array:
    """Return a name for each row that no other row of the store has."""
    return pc.binary_join_element_wise(rows["utterance_id"], rows["augmentation"], "#").combine_chunks()


def choose_rows(rows: pa.Table, names: pa.Array) -> pa.Table:
    """Return the rows that have one of some names (`name_rows`)."""
    return rows.filter(pc.is_in(name_rows(rows), value_set=names))


def name_clips(ids: Iterable[str]) -> str:
    """Return the name of a task, and of its shard, drawn from the utterance_ids of its clips."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def _is_damaged(path: str) -> bool:
    files, inner = storage.filesystem(path)
    try:
        file = pq.ParquetFile(inner, filesystem=files)
        file.read(columns=file.schema_arrow.names[:1])
    except (pa.ArrowInvalid, OSError) as error:
        if getattr(error, "errno", None):
            raise  # it cannot be read now, which says nothing about what is in it
        return True
    return False


def _write(path: str, table: pa.Table) -> None:
    # No two features are alike: a dictionary of them would only be in the way.
    how = {"use_dictionary": [name for name in table.column_names if name != "features"]}
    storage.write(path, lambda stream: pq.write_table(table, stream, **COMPRESSION, **how))
