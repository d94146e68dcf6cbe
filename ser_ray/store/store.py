"""The feature store on disk: shards, rejects, the plan they follow, and what it was made by.

    STORE/store.json          settings, their fingerprint, versions, counts; `complete` once all is accounted for
    STORE/clips.parquet       the plan: one row per clip of the corpora, as found
    STORE/shards/*.parquet    the rows: clip and augmentation, metadata and features
    STORE/rejects/*.parquet   clips that could not be used, each with its reason
    STORE/duplicates.parquet  copies that were dropped, each with the file that was kept

A shard appears whole or not at all, and its name is drawn from the clips in it, so writing it twice changes nothing.
A store is always that of its corpora: rows of clips that changed or vanished are taken out when the job runs again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.fs import FileType

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.features.recipe import FeaturizeConfig, read_recipe
from ser_ray.speech.utterance import REJECT_SCHEMA, UTTERANCE_SCHEMA, Reject, Utterance, from_table, to_table
from ser_ray.store.shards import COMPRESSION, METADATA, is_damaged, name_clips, read_shard, write_parquet

FORMAT = 3  # of the files; what a kernel computes has a version of its own
PLAN_CHUNK = 10_000  # clips of the plan that are written at a time
FOUND = "found"  # file of rejects of the search for clips; the others are of tasks


class Store:
    """A feature store at a path or URI.

    `store.json` is read once, and what is written is remembered; another process's changes are seen by another `Store`.

    Args:
        root: Its folder.

    Attributes:
        root: Its folder.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._info: dict[str, Any] | None = None

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return Store, (self.root,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)

    def info(self) -> dict[str, Any] | None:
        """Return the content of `store.json`, or None where there is no store yet.

        Raises:
            UserError: The file is there but is not a store of this format.
        """
        path = storage.join(self.root, "store.json")
        if self._info is None and storage.exists(path):
            try:
                info = storage.read_json(path)
                known = info["format"] == FORMAT
            except (ValueError, KeyError, TypeError):
                known = False
            if not known:
                raise UserError(f"{path} is not a feature store that this version reads; choose another --store")
            self._info = info
        return self._info

    def recipe(self) -> FeaturizeConfig:
        """Return what the store was made by.

        Raises:
            UserError: It was made by features that are unknown here.
        """
        try:
            return read_recipe(self.info())
        except (KeyError, TypeError):
            raise UserError(f"{self.root}/store.json does not say what the store was made by") from None

    def write_info(self, info: dict[str, Any]) -> None:
        """Write `store.json` atomically."""
        storage.write_json(storage.join(self.root, "store.json"), info)
        self._info = json.loads(json.dumps(info))  # as it would be read

    def sweep(self) -> None:
        """Delete what killed jobs and full disks leave behind: drafts, attempts, files cut off or damaged."""
        attempts = storage.join(self.root, "attempts")
        for folder in (self.root, storage.join(self.root, "shards"), storage.join(self.root, "rejects"), attempts):
            for path in (storage.join(folder, name) for name in storage.list_names(folder)):
                broken = path.endswith(".parquet") and is_damaged(path)
                if broken or path.endswith(".tmp") or folder == attempts:
                    storage.remove(path)

    def attempts_path(self, clips: Sequence[Utterance]) -> str:
        """Return where a task on some clips leaves its note (`guard.Attempts`)."""
        return storage.join(self.root, "attempts", f"{name_clips(clip.utterance_id for clip in clips)}.json")

    def claim(self, recipe: FeaturizeConfig) -> None:
        """Make the store ours before the first row: note what it is made by, or refuse another's.

        Raises:
            UserError: The store was made by another recipe, which the message names, or the folder is no store.
        """
        settings, info = recipe.settings(), self.info()
        if info is None:
            strangers = [n for n in storage.list_names(self.root) if n != ".lock" and not n.endswith(".tmp")]
            strangers += storage.list_names(self.root, FileType.Directory)
            if strangers:
                raise UserError(
                    f"{self.root} is no feature store but holds {strangers[0]}; name an empty folder, or one that is "
                    "not there yet, as --store"
                )
            made_by = {"format": FORMAT, "fingerprint": recipe.fingerprint(), **settings}
            self.write_info({**made_by, "complete": False})
        elif self.recipe().identity() != recipe.identity():
            raise UserError(
                f"{self.root} was made with other settings ({differences(self.recipe().settings(), settings)}); "
                "leave out --store to get one of its own, or name another"
            )
        elif info["complete"]:
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
            write_parquet(path, rows)
        return path

    def write_rejects(self, name: str, rejects: Sequence[Reject]) -> None:
        """Write `rejects/<name>.parquet`."""
        write_parquet(storage.join(self.root, "rejects", f"{name}.parquet"), to_table(rejects, REJECT_SCHEMA))

    def write_duplicates(self, duplicates: Sequence[Reject]) -> None:
        """Write `duplicates.parquet`: copies that were dropped, each with the file that was kept."""
        write_parquet(storage.join(self.root, "duplicates.parquet"), to_table(duplicates, REJECT_SCHEMA))

    def shards(self) -> list[str]:
        """Return the paths of all shards, sorted."""
        folder = storage.join(self.root, "shards")
        return [storage.join(folder, name) for name in storage.list_names(folder) if name.endswith(".parquet")]

    def table(self, columns: Sequence[str] = METADATA, augmentation: str | None = None) -> pa.Table:
        """Read rows of all shards, sorted by `utterance_id` and `augmentation`.

        Args:
            columns: These two and any others.
            augmentation: Rows of this one only, such as `none` for one row per clip.

        Raises:
            UserError: The store holds no rows.
        """
        tables = [read_shard(path, columns) for path in self.shards()]
        if not tables:
            raise UserError(f"the store {self.root} holds no rows; run ser-ray featurize --data ... first")
        table = pa.concat_tables(tables)
        if augmentation:
            table = table.filter(pc.equal(table.column("augmentation"), augmentation))
        return table.sort_by([("utterance_id", "ascending"), ("augmentation", "ascending")])

    def rejects(self) -> list[Reject]:
        """Return all rejects in the order of their paths; a clip that tasks rejected stands once."""
        names = storage.list_names(storage.join(self.root, "rejects"))
        of_tasks: dict[str, Reject] = {}
        for name in names:
            if name.endswith(".parquet") and name != f"{FOUND}.parquet":
                of_tasks |= {reject.utterance_id: reject for reject in self._read_rejects(f"rejects/{name}")}
        return sorted([*self.found(), *of_tasks.values()], key=lambda reject: (reject.path, reject.reason))

    def found(self) -> list[Reject]:
        """Return the rejects of the last search for clips."""
        return self._read_rejects(f"rejects/{FOUND}.parquet")

    def duplicates(self) -> list[Reject]:
        """Return the copies that were dropped."""
        return self._read_rejects("duplicates.parquet")

    def _read_rejects(self, name: str) -> list[Reject]:
        path = storage.join(self.root, name)
        return [Reject(**row) for row in read_shard(path, None).to_pylist()] if storage.exists(path) else []

    def keep(self, wanted: Mapping[str, Utterance | None]) -> set[str]:
        """Take out the rows of all clips but the wanted ones, and rows that stand twice.

        Args:
            wanted: The clips that may stay, by utterance_id; one whose record is given has it written anew.

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
            if not all(stays) or any(wanted[i] for i in ids):
                rest = _described(read_shard(path, None).filter(pa.array(stays)), wanted)
                rewritten.add(self.write_shard(rest, []))  # first: a crash in between leaves copies, not gaps
                if path not in rewritten:
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
    told, wanted = info.get("told", {}), settings.pop("told", {})
    moved = [name for name in wanted if told.get(name, wanted[name]) != wanted[name]]
    have, want = flat({key: info.get(key) for key in settings}, ""), flat(settings, "")
    changed = sorted(key for key in (have.keys() | want.keys()) - {*without} if have.get(key) != want.get(key))
    texts = [f"{name.removesuffix('_id')} of clips: corrected since" for name in moved]
    return "; ".join([*texts, *(f"{key}: {have.get(key)}, wanted {want.get(key)}" for key in changed)])


def _described(rows: pa.Table, records: Mapping[str, Utterance | None]) -> pa.Table:
    """Return rows of a shard with what is known of their clips put in anew, where a record is given."""
    ids = rows["utterance_id"].to_pylist()
    for name in {field.name for field in UTTERANCE_SCHEMA} & set(METADATA):
        old = rows[name].to_pylist()
        new = [getattr(record, name) if (record := records[i]) else value for i, value in zip(ids, old, strict=True)]
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(new, rows.schema.field(name).type))
    return rows
