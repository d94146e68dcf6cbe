"""Where a job's store is when nobody says: the one of the same recipe and clips, wherever these have moved."""

from __future__ import annotations

import hashlib

from pyarrow.fs import FileType

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.speech.corpora import Manifest
from ser_ray.store.store import Store

FOLDER = "stores"


def find_store(recipe: FeaturizeConfig, manifest: Manifest) -> str:
    """Return the root of the store of a recipe and clips under `stores/`, or of the one to be made.

    A store's name is the recipe's fingerprint and a digest of the roots. Names of older versions have other
    fingerprints, so stores are known by what they were made by. One of these roots comes first; else one of the same
    clips, by their ids and sizes, under other roots.
    """
    roots = "\n".join(sorted(storage.normalize(root) for root in manifest.roots))
    digest = hashlib.sha256(roots.encode()).hexdigest()[:8]
    alike = [store for store in _stores() if _is_by(store, recipe)]
    for store in alike:
        if store.root.endswith(f"-{digest}"):
            return store.root
    clips = {(clip.utterance_id, clip.size) for clip in manifest.utterances}
    for store in alike:
        if {(clip.utterance_id, clip.size) for clip in store.plan()} == clips:
            return store.root
    return storage.normalize(f"{FOLDER}/{recipe.fingerprint()}-{digest}")


def _stores() -> list[Store]:
    folder = storage.normalize(FOLDER)
    return [Store(storage.join(folder, name)) for name in storage.list_names(folder, FileType.Directory)]


def _is_by(store: Store, recipe: FeaturizeConfig) -> bool:
    try:
        return store.info() is not None and store.recipe().identity() == recipe.identity()
    except UserError:  # of features that are not registered here, or no store of ours
        return False
