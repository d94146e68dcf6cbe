"""What the manifest tells at once: whether an experiment is possible, before any clip is featurized.

Clips may still turn out to be unreadable; that is looked at again when they are there.
"""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from ser_ray.experiment.experiment import Experiment, choose_corpora
from ser_ray.experiment.run import load_start, refuse_untrained
from ser_ray.experiment.splits import num_folds, split
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.speech.corpora import Manifest
from ser_ray.speech.emotions import parse_labels
from ser_ray.store.rows import Rows, rows_of
from ser_ray.store.shards import METADATA


def refuse_impossible(manifest: Manifest, experiment: Experiment, recipe: FeaturizeConfig, whole: bool) -> None:
    """Refuse an experiment that the clips that were found do not allow.

    Args:
        manifest: What was found.
        experiment: What is asked.
        recipe: What would be computed.
        whole: Whether all folds are asked for, so that the experiment's own counts for nothing.

    Raises:
        UserError: A corpus, a fold, speakers or emotions are missing, or training may not start from that model.
    """
    rows = choose_corpora(_rows_to_come(manifest, recipe), experiment.corpus, "among the clips found, which are of")
    labels = parse_labels(experiment.labels)
    for fold in range(num_folds(rows, experiment.split)) if whole else [experiment.split.fold]:
        parts = split(rows, labels, replace(experiment.split, fold=fold))
        refuse_untrained(parts)
        if experiment.start_from:
            load_start(experiment, recipe.features, parts)


def _rows_to_come(manifest: Manifest, recipe: FeaturizeConfig) -> Rows:
    """Return the rows that clips will have; their contents are known only as far as some are alike."""
    clips = manifest.utterances
    alike = {name: group[0] for group in manifest.conflicts for name in group}
    known = {name: [getattr(clip, name) for clip in clips] for name in METADATA if hasattr(clips[0], name)}
    tables = []
    for augmentation in recipe.augment:
        contents = [alike.get(clip.utterance_id, clip.utterance_id) for clip in clips]
        tables.append(pa.table({**known, "sha256": contents, "augmentation": [augmentation] * len(clips)}))
    return rows_of(pa.concat_tables(tables))
