"""Copies of one file, versions of one clip, and one sound under two labels: found by content, one of each kept.

The usual downloads of RAVDESS and TESS hold every clip twice, CREMA-D comes as WAV and as MP3, and holds the same audio
under two labels.
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from typing import TypeVar

import soundfile as sf

from ser_ray.speech.corpora.manifest import Manifest
from ser_ray.speech.packed import open_sound
from ser_ray.speech.utterance import Reject, Utterance

_SAMPLE_BYTES = 4096
_HEADER_BYTES = 1 << 20  # which tell format and sample rate
_LOSSLESS = ("PCM_", "FLOAT", "DOUBLE", "ALAC_")  # libsndfile's names of encodings that keep every sample
_MAX_RATE = 1_000_000  # Hz; a header that says more is damaged
_THREADS = 16
_BATCH = 64
_T = TypeVar("_T")

# Smaller files hold no speech but may well be alike: empty ones, Git-LFS pointers.
_MIN_COPY_BYTES = 512


def find_copies(utterances: Sequence[Utterance]) -> dict[str, bytes]:
    """Find files that may have the same content and hash them.

    Only files of equal size are opened, and only those that also agree in a sample from their middle are read whole.

    Args:
        utterances: Files with their sizes.

    Returns:
        SHA-256 digest by path, of at least those readable files that have the content of another.
    """
    same_size = _groups(utterances, [u.size for u in utterances])
    same_sample = _groups(same_size, _in_threads(_sample, same_size))
    digests = hash_files(same_sample)
    return {u.path: digest for u, digest in zip(same_sample, digests, strict=True) if digest}


def hash_files(utterances: Sequence[Utterance]) -> list[bytes]:
    """Return the SHA-256 digest of each file, empty for one that cannot be read."""
    return _in_threads(_sha256, utterances)


def drop_copies(found: Sequence[Utterance], digests: dict[str, bytes], manifest: Manifest) -> None:
    """Sort clips into used ones, duplicates and rejects.

    Of clips with one content and label the first by path is used. Of several versions of a clip, which have its
    utterance_id and other contents, the best is used: lossless before lossy, then the higher sample rate, then the
    first by path. A file too small for speech is used where there is nothing else.

    Args:
        found: Clips, sorted by path.
        digests: Of their contents by path, at least of those that have the content of another.
        manifest: Gets the clips, and the groups of those that have one content and several labels.
    """
    ranks = _rank_versions(found, digests)
    by_id: dict[str, Utterance] = {}
    by_content: dict[object, dict[str, Utterance]] = defaultdict(dict)  # content → emotion → clip
    for u in sorted(found, key=lambda u: (u.size < _MIN_COPY_BYTES, ranks.get(u.path, 0))):
        digest = digests.get(u.path)
        kept = by_id.get(u.utterance_id)
        if kept and (digest is None or digest != digests.get(kept.path)):
            manifest.rejects.append(Reject(u.path, u.corpus, u.utterance_id, f"another version of {kept.path}"))
            continue
        if not kept and digest is not None and u.size >= _MIN_COPY_BYTES:
            kept = by_content[digest].setdefault(u.emotion, u)
        if kept and kept is not u:
            manifest.duplicates.append(Reject(u.path, u.corpus, u.utterance_id, f"copy of {kept.path}"))
        else:
            manifest.utterances.append(u)
        by_id[u.utterance_id] = kept or u
    for kept_or_not in (manifest.utterances, manifest.duplicates):
        kept_or_not.sort(key=attrgetter("path", "utterance_id"))
    manifest.conflicts += sorted(
        tuple(sorted(u.utterance_id for u in clips.values())) for clips in by_content.values() if len(clips) > 1
    )


def _rank_versions(found: Sequence[Utterance], digests: dict[str, bytes]) -> dict[str, int]:
    """Return for each clip with several versions the place among them by path, 0 for the best one."""
    first: dict[str, Utterance] = {}
    several: dict[str, list[Utterance]] = {}
    for u in found:
        other = first.setdefault(u.utterance_id, u)
        if other is not u:
            several.setdefault(u.utterance_id, [other]).append(u)
    versions = [clips for clips in several.values() if len({digests.get(clip.path, clip.path) for clip in clips}) > 1]
    flat = [clip for clips in versions for clip in clips]
    quality = {clip.path: value for clip, value in zip(flat, _in_threads(_quality, flat), strict=True)}
    return {
        clip.path: place
        for clips in versions
        for place, clip in enumerate(sorted(clips, key=lambda clip: quality[clip.path]))
    }


def _quality(utterance: Utterance) -> tuple[bool, bool, int]:
    """Return what orders versions, the best first: whether the header is not read, the loss, the rate."""
    try:
        with open_sound(utterance.path) as stream:
            header = io.BytesIO(stream.read(_HEADER_BYTES))
        with sf.SoundFile(header) as sound:
            rate, lossless = sound.samplerate, sound.subtype.startswith(_LOSSLESS)
    except (OSError, sf.LibsndfileError):
        return True, True, 0
    return rate > _MAX_RATE, not lossless, -rate


def _groups(utterances: Iterable[Utterance], keys: Sequence[Hashable]) -> list[Utterance]:
    """Keep the utterances that share their key with another; an empty key is shared by none."""
    count: dict[Hashable, int] = defaultdict(int)
    for key in keys:
        count[key] += 1
    return [u for u, key in zip(utterances, keys, strict=True) if count[key] > 1 and key != b""]


def _in_threads(function: Callable[[Utterance], _T], items: Sequence[Utterance]) -> list[_T]:
    batches = [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]
    with ThreadPoolExecutor(_THREADS) as pool:
        results = pool.map(lambda batch: [function(item) for item in batch], batches)
        return [result for batch in results for result in batch]


def _sample(utterance: Utterance) -> bytes:
    try:
        with open_sound(utterance.path) as stream:
            stream.seek(max(0, utterance.size - _SAMPLE_BYTES) // 2)
            content = stream.read(_SAMPLE_BYTES)
    except OSError:
        return b""  # decoding will say why
    return utterance.size.to_bytes(8, "little") + hashlib.sha256(content).digest()


def _sha256(utterance: Utterance) -> bytes:
    digest = hashlib.sha256()
    try:
        with open_sound(utterance.path) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError:
        return b""
    return digest.digest()
