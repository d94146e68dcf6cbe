"""The Ray Data pipeline: corpora in, a feature store out, every clip accounted for.

The driver finds the clips, takes out what the store holds already, and deals the rest into tasks of up to 500 clips.
Each task opens its clips, decodes, augments, featurizes and writes one shard by itself; only counts come back.
With GPUs a task has two parts: CPUs read and decode, and one actor on each GPU does the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from ser_ray.base import storage
from ser_ray.base.cluster import carry_registered, check_address, connect
from ser_ray.base.console import say, show_table, track
from ser_ray.base.errors import UserError
from ser_ray.base.workers import await_resource, count_resources
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.speech.audio import DECODER, NOTES
from ser_ray.speech.corpora import Manifest, audit, discover
from ser_ray.speech.corpora.copies import hash_files
from ser_ray.speech.utterance import Utterance, to_table
from ser_ray.store.accounts import is_settled, settle, tell_accounts
from ser_ray.store.place import find_store
from ser_ray.store.shards import read_shard
from ser_ray.store.store import Store
from ser_ray.store.task import PASSING, ShardWriter, import_kernel, read_in_task, unusable, write_in_task

MAX_CLIPS_PER_TASK = 500  # a task makes a shard; little is lost when it is killed, little waited between tasks
MAX_CLIPS_READ = 128  # of a task whose decoded clips are in memory all at once, on their way to a GPU
MIN_CLIPS_PER_TASK = 16  # a task for fewer costs more than it does
MAX_WARMED = 64  # workers that are started before there is work for them


def find_and_connect(roots: Sequence[str], verbose: bool = False) -> Manifest:
    """Find the clips under some roots while Ray starts and its workers import what they need.

    Args:
        roots: Local folders, URIs, and CSV or Parquet tables.
        verbose: Show Ray's own log lines and warnings.

    Raises:
        UserError: No usable clip, or no Ray cluster.
    """
    check_address()
    with ThreadPoolExecutor(1) as pool:
        finding = pool.submit(discover, roots)
        wait([finding], timeout=0.5)
        if not (finding.done() and finding.exception()):  # most mistakes are found at once: no need for Ray then
            connect(verbose)
            for _ in range(min(count_resources()[0], MAX_WARMED)):
                import_kernel.remote()
        return finding.result()


def featurize(
    manifest: Manifest, config: FeaturizeConfig, store_root: str | None = None, device: str = "auto"
) -> Store:
    """Bring a feature store in line with the clips that `corpora.discover` found.

    Rows that are there already stay; clips that are new, changed or unfinished are featurized; rows of clips that
    vanished are taken out. Ray must be connected. Another job on the same store waits until this one is done.

    Args:
        manifest: The clips, and the roots they lie under.
        config: Features and augmentation.
        store_root: The store's folder or URI; None names it after the settings and the manifest's roots.
        device: `cpu`, one thread per task; `cuda`, one GPU per actor, with CPUs that read for them; or `auto`, which is
            `cuda` for features that gain much by it, where there are GPUs.

    Returns:
        The complete store.

    Raises:
        UserError: No such device, or not for such features; no usable clip, a store of other settings or one that
            cannot be written or is not shared by all nodes, or workers that keep dying.
        RuntimeError: The accounts do not add up.
    """
    device = choose_device(device, config)
    show_table("Corpora", [row._asdict() for row in audit(manifest)])
    root = storage.normalize(store_root) if store_root else find_store(config, manifest)
    try:
        with storage.lock(root, lambda: say(f"Another job is at work on {root}: waiting until it is done")):
            store = Store(root)
            if store.info() is not None:
                store.sweep()
            if store.info() and store.recipe().identity() == config.identity() and is_settled(store, manifest, PASSING):
                say(f"Store {root}, {len(manifest.utterances)} of {len(manifest.utterances)} clips are there already")
                tell_accounts(store, store.rejects(), manifest.duplicates)
                return store
            store.claim(config)
            if todo := _plan(store, manifest):
                if hasattr(config.features, "locate"):  # here, so that no worker looks for the encoder by itself
                    config = replace(config, features=config.features.locate())
                _run(store, config, todo, device)
            settle(store, manifest, len(config.augment))
    except OSError as error:
        raise UserError(unusable(Store(root), error)) from None
    return store


def choose_device(device: str, config: FeaturizeConfig) -> str:
    """Return `cpu` or `cuda` for what `--device` says, which may be `auto`.

    Raises:
        UserError: It says something else, or `cuda` for features that gain nothing by it.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: choose auto, cpu or cuda")
    if device == "cuda" and getattr(config.features, "cpu_only", False):
        raise UserError(f"--device cuda: CPUs make {config.features.name} features faster; leave it out")
    if device != "auto":
        return device
    return "cuda" if getattr(config.features, "wants_gpu", False) and count_resources()[1] else "cpu"


def _plan(store: Store, manifest: Manifest) -> list[Utterance]:
    """Take out of the store what is not as found, write the new plan, and return the clips still to do.

    Rows depend on a clip's content and id alone. So a clip whose file was moved, or of which something else is told
    now, keeps its rows, with what is told of it written anew.
    """
    now = {clip.utterance_id: clip for clip in manifest.utterances}
    unchanged, vanished, other = set(), [], []
    for clip in store.plan():
        if now.get(clip.utterance_id) == clip:
            unchanged.add(clip.utterance_id)
        elif clip.utterance_id not in now:
            vanished.append(clip.utterance_id)
        else:
            other.append(now[clip.utterance_id])
    same = _same_content(store, other)
    kept = store.keep(dict.fromkeys(unchanged) | {clip.utterance_id: clip for clip in same})
    again = PASSING if store.info().get("decoder") == DECODER else ("",)  # what an older one refused may be read now
    rejected = store.keep_rejects(lambda r: r.utterance_id in unchanged and not r.reason.startswith(again))
    store.write_plan(manifest.utterances)
    say(f"Store {store.root}{f', {len(kept)} of {len(manifest.utterances)} clips are there already' if kept else ''}")
    if vanished:
        say(f"No longer there, so left out: {len(vanished)} clips of an earlier run, such as {min(vanished)}")
    done = kept | rejected
    todo = [clip for clip in manifest.utterances if clip.utterance_id not in done]
    return sorted(todo, key=lambda clip: clip.utterance_id)


def _same_content(store: Store, clips: list[Utterance]) -> list[Utterance]:
    """Return those of some clips whose files hold what the store's rows were made from."""
    digests: dict[str, str] = {}
    for path in store.shards() if clips else ():
        shard = read_shard(path, ["utterance_id", "sha256"])
        digests |= dict(zip(*(shard[name].to_pylist() for name in ("utterance_id", "sha256")), strict=True))
    there = [clip for clip in clips if clip.utterance_id in digests]
    return [clip for clip, now in zip(there, hash_files(there), strict=True) if now.hex() == digests[clip.utterance_id]]


def deal_clips(clips: int, workers: int, most: int = MAX_CLIPS_PER_TASK) -> list[int]:
    """Return how many clips each task gets: many at first, fewer at the end, so that all workers finish together.

    Guided self-scheduling (Polychronopoulos & Kuck, 1987): a task takes half a worker's share of what is left.
    """
    sizes = []
    while clips:
        sizes.append(min(clips, most, max(MIN_CLIPS_PER_TASK, -(-clips // (2 * workers)))))
        clips -= sizes[-1]
    return sizes


def _each_task(clips: Sequence[Utterance], sizes: Sequence[int]) -> Iterator[pa.Table]:
    """Yield a block of Ray Data for each task: one row, whose only column holds the task's clips."""
    for start, end in pairwise([0, *accumulate(sizes)]):
        records = to_table(clips[start:end]).to_struct_array().combine_chunks()
        yield pa.table({"clips": pa.ListArray.from_arrays([0, end - start], records)})


def _run(store: Store, config: FeaturizeConfig, todo: list[Utterance], device: str) -> None:
    """Featurize clips in parallel; every task writes its own shard and returns what became of its clips."""
    if device == "cuda":
        await_resource("GPU", 1, "use --device cpu")
    cpus, gpus = count_resources()
    workers = gpus if device == "cuda" else cpus or MAX_WARMED  # where there are none yet, many may come
    carry_registered()
    most = MAX_CLIPS_READ if device == "cuda" else MAX_CLIPS_PER_TASK
    tasks = ray.data.from_blocks(list(_each_task(todo, deal_clips(len(todo), workers, most))))
    arguments, how = (store, config, device), {"batch_size": 1, "batch_format": "pyarrow"}
    if device == "cuda":
        read = tasks.map_batches(partial(read_in_task, arguments=(store, config)), **how)
        actors = {"compute": ActorPoolStrategy(size=workers), "num_gpus": 1, "num_cpus": 0}  # CPUs are left to read
        outcomes = read.map_batches(ShardWriter, fn_constructor_args=arguments, **how, **actors)
    else:
        outcomes = tasks.map_batches(partial(write_in_task, arguments=arguments), **how)
    pa.default_memory_pool().release_unused()  # it keeps what plan and blocks took, which a long job never needs again
    rejected = cut = 0
    nodes: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    busy_s = spent_s = 0.0
    with track("Featurizing", len(todo)) as progress, closing(_each_row(outcomes)) as each:
        for outcome in each:
            if outcome["error"]:
                raise UserError(outcome["error"])
            rejected += outcome["rejected"]
            notes.update(outcome["notes"])
            cut += outcome["cut"]
            nodes[outcome["node"]] += outcome["clips"]
            busy_s, spent_s = busy_s + outcome["busy_s"], spent_s + outcome["spent_s"]
            said = [f"{rejected} rejected"] if rejected else []
            if device == "cuda":  # whose time is dear
                said.append(f"GPUs waited {1 - busy_s / max(spent_s, 1e-9):.0%} of their time")
            progress.advance(outcome["clips"], ", ".join(said))
    elsewhere = set(nodes) - {ray.get_runtime_context().get_node_id()}
    if elsewhere and not storage.is_uri(store.root) and _is_unseen(store, todo):
        raise UserError(
            f"what other nodes wrote is not in {store.root} as this one sees it: name a --store that all share, such "
            "as s3://bucket/store"
        )
    if len(nodes) > 1:
        say(f"Clips by node: {', '.join(map(str, sorted(nodes.values())))}")
    window_s = config.features.duration_s
    if cut:
        say(f"Longer than the window of {window_s:g} s: {cut} clips; only so much of them is used (--duration-s)")
    for kind, count in notes.items():
        if count:
            say(f"{kind.capitalize()}: {count} clips; {NOTES[kind]}")


def _each_row(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """Yield a dataset's rows as they come; closing stops its execution.

    `Dataset.iter_rows` has threads of its own. One that outlives an early end, and then Ray, ends the process with its
    own exit code.
    """
    for bundle in dataset.iter_internal_ref_bundles():
        for block in bundle.blocks:
            yield from ray.get(block.ref).to_pylist()


def _is_unseen(store: Store, clips: Sequence[Utterance]) -> bool:
    """Tell whether a clip is neither in the store nor among its rejects."""
    seen = {reject.utterance_id for reject in store.rejects()}
    for path in store.shards():
        seen.update(read_shard(path, ["utterance_id"])["utterance_id"].to_pylist())
    return any(clip.utterance_id not in seen for clip in clips)
