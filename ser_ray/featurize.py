"""The Ray Data pipeline: corpora in, a feature store out, every clip accounted for.

The driver finds the clips, takes out what the store holds already, and deals the rest into tasks of up to 500 clips.
Each task opens its clips, decodes, augments, featurizes and writes one shard by itself; only counts come back. Tasks
may be killed and run again: a shard's name and content depend on its clips alone.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from ser_ray import storage
from ser_ray.accounts import settle
from ser_ray.audio import AudioError, Clip, decode
from ser_ray.augment import DEFAULT_AUGMENTATIONS, parse_augmentation
from ser_ray.cluster import await_resource, connect, count_resources
from ser_ray.console import say, show_table, track
from ser_ray.corpora import Manifest, audit, discover
from ser_ray.errors import UserError
from ser_ray.features import FeatureConfig, Featurizer, draw_banks, use_one_core
from ser_ray.guard import Attempts, lock
from ser_ray.store import METADATA, Store, default_root, encode, feature_type, name_clips, row_schema
from ser_ray.utterance import Reject, Utterance, from_table, to_table

MAX_CLIPS_PER_TASK = 500  # a task makes a shard; little is lost when it is killed, little waited between tasks
MIN_CLIPS_PER_TASK = 16  # a task for fewer costs more than it does
MAX_WARMED = 64  # workers that are started before there is work for them
WHOLE_FILE_BYTES = 32 << 20  # a smaller file is read once for both its hash and its sound
UNREADABLE, INTERNAL = "cannot be read", "internal error"
CRASHED = f"{INTERNAL}: it kills the worker that takes it; please report it"
PASSING = (UNREADABLE, INTERNAL)  # reasons that may be gone in the next run, which tries such clips again


@dataclass(frozen=True)
class FeaturizeConfig:
    """What to compute from each clip.

    Attributes:
        augment: Rows per clip: `none` is the clip itself; `noise`, `stretch`, `pitch`, `shift`, or chains such as
            `stretch+pitch`. Augmented rows are used in training only. By default none, noise and stretch+pitch for
            `summary`, and none alone for the others, which are changed afresh in every epoch of training.
        seed: Seed of all draws; with it and a clip's id, the clip's rows are always the same.
    """

    features: FeatureConfig = field(default_factory=FeatureConfig)
    augment: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.augment and self.features.kind == "summary":
            object.__setattr__(self, "augment", DEFAULT_AUGMENTATIONS)
        for name in self.augment:
            parse_augmentation(name)
        if len(set(self.augment)) != len(self.augment):
            raise UserError(f"--augment names one augmentation twice: {' '.join(self.augment)}")
        others = sorted(set(self.augment) - {"none"})  # in one order, so that any gives the same store
        object.__setattr__(self, "augment", ("none", *others))

    def settings(self) -> dict[str, Any]:
        """Return what the store's fingerprint covers."""
        return {"features": asdict(self.features), "augmentations": list(self.augment), "seed": self.seed}


def find_and_connect(roots: Sequence[str], verbose: bool = False) -> Manifest:
    """Find the clips under some roots while Ray starts and its workers import what they need.

    Args:
        roots: What `corpora.discover` takes.
        verbose: What `cluster.connect` takes.

    Raises:
        UserError: No usable clip, or no Ray cluster.
    """
    with ThreadPoolExecutor(1) as pool:
        finding = pool.submit(discover, roots)
        wait([finding], timeout=0.5)
        if not (finding.done() and finding.exception()):  # most mistakes are found at once: no need for Ray then
            connect(verbose)
            for _ in range(min(count_resources()[0], MAX_WARMED)):
                _import_kernel.remote()
        return finding.result()


def featurize(manifest: Manifest, config: FeaturizeConfig, store_root: str | None = None, device: str = "cpu") -> Store:
    """Bring a feature store in line with the clips that `corpora.discover` found.

    Rows that are there already stay; clips that are new, changed or unfinished are featurized; rows of clips that
    vanished are taken out. Ray must be connected. Another job on the same store waits until this one is done.

    Args:
        manifest: The clips, and the roots they lie under.
        config: Features and augmentation.
        store_root: The store's folder or URI; None names it after the settings and the manifest's roots.
        device: `cpu`, one thread per task, or `cuda`, one GPU per actor.

    Returns:
        The complete store.

    Raises:
        UserError: No such device, no usable clip, a store of other settings or one that cannot be written or is not
            shared by all nodes, or workers that keep dying.
        RuntimeError: The accounts do not add up.
    """
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: choose cpu or cuda")
    show_table("Corpora", [row._asdict() for row in audit(manifest)])
    store = Store(storage.normalize(store_root) if store_root else default_root(config.settings(), manifest.roots))
    try:
        with lock(store.root, lambda: say(f"Another job is at work on {store.root}: waiting until it is done")):
            store.claim(config.settings())
            todo = _plan(store, manifest)
            if todo:
                _run(store, config, todo, device)
            settle(store, manifest, len(config.augment))
    except OSError as error:
        raise UserError(_unusable(store, error)) from None
    return store


def _plan(store: Store, manifest: Manifest) -> list[Utterance]:
    """Take out of the store what is damaged or not as found, write the new plan, and return the clips still to do."""
    store.sweep()
    now = {clip.utterance_id: clip for clip in manifest.utterances}
    unchanged, vanished = set(), []
    for clip in store.plan():
        if now.get(clip.utterance_id) == clip:
            unchanged.add(clip.utterance_id)
        elif clip.utterance_id not in now:
            vanished.append(clip.utterance_id)
    kept = store.keep(unchanged)
    rejected = store.keep_rejects(lambda r: r.utterance_id in unchanged and not r.reason.startswith(PASSING))
    store.write_plan(manifest.utterances)
    say(f"Store {store.root}{f', {len(kept)} of {len(manifest.utterances)} clips are there already' if kept else ''}")
    if vanished:
        say(f"No longer there, so left out: {len(vanished)} clips of an earlier run, such as {min(vanished)}")
    done = kept | rejected
    todo = [clip for clip in manifest.utterances if clip.utterance_id not in done]
    return sorted(todo, key=lambda clip: clip.utterance_id)


def deal(clips: int, workers: int) -> list[int]:
    """Return how many clips each task gets: many at first, fewer at the end, so that all workers finish together.

    Guided self-scheduling (Polychronopoulos & Kuck, 1987): a task takes half a worker's share of what is left.
    """
    sizes = []
    while clips:
        sizes.append(min(clips, MAX_CLIPS_PER_TASK, max(MIN_CLIPS_PER_TASK, -(-clips // (2 * workers)))))
        clips -= sizes[-1]
    return sizes


def _run(store: Store, config: FeaturizeConfig, todo: list[Utterance], device: str) -> None:
    """Featurize clips in parallel; every task writes its own shard and returns what became of its clips."""
    if device == "cuda":
        await_resource("GPU", 1, "use --device cpu")
    cpus, gpus = count_resources()
    workers = gpus if device == "cuda" else cpus or MAX_WARMED  # where there are none yet, many may come
    ends = list(accumulate(deal(len(todo), workers)))
    arguments = (store, config, device)
    how = {"batch_size": 1, "batch_format": "pyarrow", "fn_kwargs": {"plan": to_table(todo), "ends": ends}}
    if device == "cuda":
        # Not a range: the tasks that make it could wait for ever for the CPU of an actor that waits for them.
        tasks = ray.data.from_items([{"id": i} for i in range(len(ends))], override_num_blocks=len(ends))
        actors = {"compute": ActorPoolStrategy(size=workers), "num_gpus": 1, "fn_constructor_args": arguments}
        outcomes = tasks.map_batches(ShardWriter, **how, **actors)
    else:
        tasks = ray.data.range(len(ends), override_num_blocks=len(ends))
        outcomes = tasks.map_batches(partial(_write_in_task, arguments=arguments), **how)
    rejected = slid = cut = 0
    nodes: Counter[str] = Counter()
    with track("Featurizing", len(todo)) as progress:
        for outcome in outcomes.iter_rows():
            if outcome["error"]:
                raise UserError(outcome["error"])
            rejected += outcome["rejected"]
            slid += outcome["slid"]
            cut += outcome["cut"]
            nodes[outcome["node"]] += outcome["clips"]
            progress.advance(outcome["clips"], f"{rejected} rejected" if rejected else "")
    elsewhere = set(nodes) - {ray.get_runtime_context().get_node_id()}
    if elsewhere and not storage.is_uri(store.root) and _is_unseen(store, todo):
        raise UserError(
            f"what other nodes wrote is not in {store.root} as this one sees it: name a --store that all share, such "
            "as s3://bucket/store"
        )
    if len(nodes) > 1:
        say(f"Clips by node: {', '.join(map(str, sorted(nodes.values())))}")
    window_s = config.features.duration_s
    if cut and config.features.kind != "summary":  # whose recipe takes 2.5 s of each clip
        say(f"Longer than the window of {window_s:g} s: {cut} clips; only so much of them is used (--duration-s)")
    if slid:
        say(f"Too short for a window from {config.features.offset_s:g} s: {slid} clips; theirs begins earlier")


def _is_unseen(store: Store, clips: Sequence[Utterance]) -> bool:
    """Tell whether a clip is neither in the store nor among its rejects."""
    seen = {reject.utterance_id for reject in store.rejects()}
    for shard in store.each(["utterance_id"]):
        seen.update(shard["utterance_id"].to_pylist())
    return any(clip.utterance_id not in seen for clip in clips)


@ray.remote
def _import_kernel() -> None:
    """Do nothing: to unpickle this function, a worker imports this module, and torch with it."""


class ShardWriter:
    """Turns clips of the plan into shards and says how many were featurized."""

    def __init__(self, store: Store, config: FeaturizeConfig, device: str) -> None:
        use_one_core()  # Ray runs one task a core
        self.store, self.config = store, config
        self.kernel = Featurizer(config.features, draw_banks(config.features))
        self.problem = ""
        try:
            self.kernel.to(device)
        except (RuntimeError, AssertionError) as error:  # Ray has a GPU there and torch has not
            self.problem = f"torch cannot use the GPU that Ray gave it ({str(error).splitlines()[0]}); use --device cpu"
        self.schema = row_schema(feature_type(config.features))

    def __call__(self, tasks: pa.Table, plan: pa.Table, ends: list[int]) -> pa.Table:
        """Do some tasks.

        Args:
            tasks: Their numbers, in the column `id`.
            plan: Clips to do, a table of `UTTERANCE_SCHEMA`.
            ends: Where in the plan each task ends and the next one begins.

        Returns:
            What `write` returns and the `node` it ran on, one row per task.
        """
        bounds = [0, *ends]
        clips = [from_table(plan[bounds[i] : bounds[i + 1]]) for i in tasks.column("id").to_pylist()]
        node = {"node": ray.get_runtime_context().get_node_id()}
        return pa.Table.from_pylist([self.write(clips_of_task) | node for clips_of_task in clips])

    def write(self, clips: list[Utterance]) -> dict[str, Any]:
        """Featurize some clips and write their shard.

        Returns:
            The numbers of `clips`, of those `rejected`, of windows that `slid` back and of clips that were `cut` at the
            window's end, and the `error` that stopped the task, or an empty text.
        """
        outcome = {"clips": len(clips), "rejected": 0, "slid": 0, "cut": 0, "error": self.problem}
        if self.problem:
            return outcome
        try:
            rejects, outcome["slid"], outcome["cut"] = self._write(clips)
            outcome["rejected"] = len(rejects)
        except UserError as error:
            outcome["error"] = str(error)
        except OSError as error:
            outcome["error"] = _unusable(self.store, error)
        return outcome

    def _write(self, clips: list[Utterance]) -> tuple[list[Reject], int, int]:
        """Write the shard of some clips; return rejects and the numbers of windows that slid back and of clips cut."""
        attempts = Attempts(self.store.attempts_path(clips))
        columns: dict[str, list[Any]] = {name: [] for name in self.schema.names}
        rejects, slid, cut = [], 0, 0
        offset_s, duration_s = self.config.features.offset_s, self.config.features.duration_s
        for utterance in clips:
            if not attempts.take(utterance.utterance_id):
                rejects.append(Reject(utterance.path, utterance.corpus, utterance.utterance_id, CRASHED))
                continue
            try:
                digest, clip = read_clip(utterance, self.config.features)
                features = self.kernel.clip_rows(
                    clip.waveform_T, utterance.utterance_id, self.config.augment, self.config.seed
                )
            except Exception as error:  # whatever is wrong with a clip, it costs that clip only
                rejects.append(Reject(utterance.path, utterance.corpus, utterance.utterance_id, _reason(error)))
                continue
            slid += bool(clip.note)
            cut += duration_s is not None and clip.duration_s > offset_s + duration_s
            facts = {"sha256": digest, "duration_s": clip.duration_s, "sample_rate": clip.sample_rate}
            for augmentation, values in zip(self.config.augment, features, strict=True):
                row = facts | {"augmentation": augmentation, "features": values}
                for name, column in columns.items():
                    column.append(row[name] if name in row else getattr(utterance, name))
        arrays = [pa.array(columns[name], self.schema.field(name).type) for name in METADATA]
        arrays.append(encode(columns["features"], self.schema.field("features").type))
        name = name_clips(clip.utterance_id for clip in clips)
        if attempts.again:
            self.store.write_rejects(name, [])  # a reason of the attempt before may be gone
        self.store.write_shard(pa.Table.from_arrays(arrays, schema=self.schema), rejects, name)
        attempts.end()
        return rejects, slid, cut


_WRITERS: dict[tuple[Store, FeaturizeConfig, str], ShardWriter] = {}


def _write_in_task(
    tasks: pa.Table, plan: pa.Table, ends: list[int], arguments: tuple[Store, FeaturizeConfig, str]
) -> pa.Table:
    if arguments not in _WRITERS:  # a worker process runs many tasks
        _WRITERS[arguments] = ShardWriter(*arguments)
    return _WRITERS[arguments](tasks, plan, ends)


def read_clip(utterance: Utterance, config: FeatureConfig) -> tuple[str, Clip]:
    """Read a clip without taking more into memory than its window needs.

    Returns:
        The file's sha256, and the window at the features' sample rate.

    Raises:
        AudioError: The file cannot be used.
        OSError: It cannot be read.
    """
    window = {"sample_rate": config.sample_rate, "offset_s": config.offset_s, "duration_s": config.duration_s}
    with storage.open_read(utterance.path) as stream:
        if utterance.size <= WHOLE_FILE_BYTES:
            data = stream.read()
            return hashlib.sha256(data).hexdigest(), decode(io.BytesIO(data), **window)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        stream.seek(0)
        return digest, decode(stream, **window)


def _reason(error: Exception) -> str:
    """Say in one line why a clip could not be used."""
    if isinstance(error, AudioError):
        return str(error)
    if isinstance(error, OSError):
        return f"{UNREADABLE}: {_what(error)}"
    return f"{INTERNAL}: {type(error).__name__}: {' '.join(str(error).split())}; please report it"


def _unusable(store: Store, error: OSError) -> str:
    return (
        f"the store {store.root} cannot be read or written: {_what(error)}; "
        "put that right or name another --store, and the same command goes on from here"
    )


def _what(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())
