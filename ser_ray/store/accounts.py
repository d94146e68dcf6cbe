"""The end of featurization: every clip found is accounted for, in `store.json` and on the terminal."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from importlib.metadata import version

import pyarrow as pa
import pyarrow.compute as pc

from ser_ray import __version__
from ser_ray.base.console import say, show_table
from ser_ray.base.errors import UserError
from ser_ray.features.arrays import widened
from ser_ray.speech.audio import DECODER
from ser_ray.speech.corpora import Manifest, audit
from ser_ray.speech.utterance import Reject
from ser_ray.store.shards import widen_shards
from ser_ray.store.store import FOUND, Store

ACCOUNTS = ("featurized", "rejected", "duplicates")
VERSIONED = ("ray", "torch", "numpy", "soxr", "soundfile", "pyarrow")
MAX_LISTED = 8  # kinds of rejects, and label conflicts, shown on the terminal; all stand in the store
# What a reason says of one file alone: quoted text; a path, which may hold blanks before its suffix; words with digits,
# slashes or a dot inside, such as numbers and file names; words in capitals, which are codes.
_PARTICULAR = re.compile(
    r"""(?<!\w)(['"`]).*?\1(?!\w)"""
    r"""|[“„«‘][^”“»’]*[”“»’]"""
    r"""|(?<!\S)(?:[A-Za-z][\w+.-]*:|~)?[/\\](?:.*?\.\w{1,5}(?=[,;:\s]|$)|(?:\S*[^\s,;:])?)"""
    r"""|[^\s,;:]*(?:[\d/\\]|\w\.\w)(?:\S*[^\s,;:])?"""
    r"""|\b[A-Z]{2,}\b"""
)
_LIST = re.compile(r"#(?:[\s,;:]*(?:(?:and|or|to)\s+)?#)+")  # several particulars, which may be many or few


def settle(store: Store, manifest: Manifest, rows_per_clip: int) -> None:
    """Check that every clip found is accounted for, mark the store complete, and say what was left out and why.

    Args:
        store: Holds the rows and rejects of all of the manifest's clips.
        manifest: What was found.
        rows_per_clip: The number of augmentations, `none` among them.

    Raises:
        UserError: None of the clips could be used.
        RuntimeError: A clip is missing or counted twice.
    """
    store.write_rejects(FOUND, manifest.rejects)
    store.write_duplicates(manifest.duplicates)
    # Tasks of a killed driver may have ended late.
    store.keep(dict.fromkeys(clip.utterance_id for clip in manifest.utterances))
    if widened(type_ := store.recipe().features.arrow_type()) != type_:
        widen_shards(store.shards())
    rejects = store.rejects()
    if not store.shards() and rejects:
        raise UserError(f"none of the clips could be read, the first because: {rejects[0].path}: {rejects[0].reason}")
    clips = store.table(["utterance_id", "corpus", "emotion", "sha256", "augmentation"], augmentation="none")
    counts = _count(manifest, _tally(clips.column("corpus")), Counter(reject.corpus for reject in rejects))
    store.write_info(
        {
            **store.info(),
            "complete": True,
            "clips_digest": clips_digest(clips),
            "rows": clips.num_rows * rows_per_clip,
            "counts": counts,
            "audit": [row._asdict() for row in audit(manifest)],
            "label_conflicts": conflicts(clips),
            "made_speech": manifest.made_speech,
            "decoder": DECODER,
            "versions": {"ser_ray": __version__, **{name: version(name) for name in VERSIONED}},
        }
    )
    tell_accounts(store, rejects, manifest.duplicates)


def is_settled(store: Store, manifest: Manifest, passing: tuple[str, ...]) -> bool:
    """Tell whether a store is complete and just what a manifest asks for, so that nothing of it need be touched.

    Args:
        store: Swept of damaged files.
        manifest: What was found.
        passing: How reasons begin that may be gone, so that their clips are tried again.
    """
    info = store.info()
    if info is None or not info["complete"] or info.get("made_speech", []) != manifest.made_speech:
        return False
    rejects, found = store.rejects(), store.found()
    return (
        list(store.plan()) == manifest.utterances
        and not any(reject.reason.startswith(passing) for reject in rejects)
        and (info.get("decoder") == DECODER or len(rejects) == len(found))
        and sorted(found, key=repr) == sorted(manifest.rejects, key=repr)
        and store.duplicates() == manifest.duplicates
    )


def tell_accounts(store: Store, rejects: list[Reject], duplicates: list[Reject]) -> None:
    """Say what a finished store holds, what was left out, and why."""
    info = store.info()
    show_table("Clips", [{"corpus": corpus, **numbers} for corpus, numbers in info["counts"].items()])
    _say_rejects(rejects, store)
    if duplicates:
        copy = duplicates[0]
        say(f"Copies dropped: {len(duplicates)}, such as {copy.path}, {copy.reason}")
    if clashes := info["label_conflicts"]:
        say(f"Label conflicts, the same audio under several labels, kept out of training and test: {len(clashes)}")
        for group in clashes[:MAX_LISTED]:
            say(f"  {' = '.join(group)}")
        if len(clashes) > MAX_LISTED:
            say(f"  and {len(clashes) - MAX_LISTED} more: see label_conflicts in {store.root}/store.json")


def _say_rejects(rejects: list[Reject], store: Store) -> None:
    """Name the kinds of reasons, the most frequent first, each with an example."""
    kinds: dict[str, list[Reject]] = {}
    for reject in rejects:
        kinds.setdefault(kind_of_reason(reject.reason), []).append(reject)
    ordered = sorted(kinds.values(), key=len, reverse=True)
    for alike in ordered[:MAX_LISTED]:
        say(f"Rejected: {len(alike)} × {alike[0].reason}, such as {alike[0].path}")
    if others := ordered[MAX_LISTED:]:
        say(f"Rejected: {sum(map(len, others))} more, for {len(others)} other reason{'s' if len(others) > 1 else ''}")
    if rejects:
        say(f"All rejects with their reasons: {store.root}/rejects")


def kind_of_reason(reason: str) -> str:
    """Return what the reasons of one kind share: the reason with `#` for each particular of one file.

    Names are told by their quotes, so a reason quotes those it holds.
    """
    return _LIST.sub("#", _PARTICULAR.sub("#", re.sub("[()]", "", reason)))


def _tally(column: pa.ChunkedArray) -> Counter[str]:
    """Return how often each value occurs, without a Python object for each row."""
    return Counter({pair["values"]: pair["counts"] for pair in column.value_counts().to_pylist()})


def _count(manifest: Manifest, featurized: Counter[str], rejected: Counter[str]) -> dict[str, dict[str, int]]:
    """Return found, featurized, rejected and duplicates per corpus.

    Raises:
        RuntimeError: A clip is missing or counted twice.
    """
    parts = [featurized, rejected, Counter(record.corpus for record in manifest.duplicates)]
    records = [*manifest.utterances, *manifest.rejects, *manifest.duplicates]
    counts = {
        corpus: {"found": found, **dict(zip(ACCOUNTS, (part[corpus] for part in parts), strict=True))}
        for corpus, found in sorted(Counter(record.corpus for record in records).items())
    }
    for corpus, numbers in counts.items():
        if numbers["found"] != sum(numbers[account] for account in ACCOUNTS):
            raise RuntimeError(f"the accounts of {corpus} do not add up: {numbers}; please report this")
    return counts


def clips_digest(rows: pa.Table) -> str:
    """Return the sha256 over the ids and contents of clips, of which each has one row, sorted by id."""
    digest = hashlib.sha256()
    for batch in rows.to_batches(max_chunksize=10_000):
        pairs = zip(batch.column("utterance_id").to_pylist(), batch.column("sha256").to_pylist(), strict=True)
        digest.update("".join(f"{name} {content}\n" for name, content in pairs).encode())
    return digest.hexdigest()


def conflicts(rows: pa.Table) -> list[tuple[str, ...]]:
    """Return the groups of utterance_ids that carry the same audio under different emotions."""
    contents = rows.column("sha256").value_counts()
    doubled = contents.field("values").filter(pc.greater(contents.field("counts"), 1))
    groups: dict[str, dict[str, str]] = {}
    for row in rows.filter(pc.is_in(rows.column("sha256"), value_set=doubled)).to_pylist():
        groups.setdefault(row["sha256"], {})[row["utterance_id"]] = row["emotion"]
    return sorted(tuple(sorted(group)) for group in groups.values() if len(set(group.values())) > 1)
