"""Turn corpora of emotional speech into a feature store.

    python jobs/featurize.py --data ~/corpora                      # every corpus below, 162 averaged numbers per row
    python jobs/featurize.py --data ~/corpora --features log_mel --augment none
    ray job submit --working-dir . -- python jobs/featurize.py --data s3://bucket/corpora --store s3://bucket/store

Killed and started again, it goes on where it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.base.settings import parse_flags, peek_flag, pick_config, run_job
from ser_ray.features.settings import DEFAULT_MODEL, FEATURES_OF, FeatureConfig, FeaturizeConfig
from ser_ray.store.pipeline import featurize, find_and_connect


@dataclass(frozen=True)
class Flags:
    """Flags of this job alone.

    Attributes:
        data: Folders, URIs or tables (CSV, Parquet) that hold corpora.
        store: The feature store's folder or URI; by default `stores/` and a name drawn from settings and data.
        device: `cpu`, or `cuda` for one GPU per task.
        verbose: Show Ray's own log lines.
        config: YAML or JSON file of flags and values; flags beat it.
    """

    data: tuple[str, ...] = ()
    store: str | None = None
    device: str = "cpu"
    verbose: bool = False
    config: str | None = None


def main(argv: Sequence[str]) -> None:
    """Parse flags, featurize, say where the store is."""
    usual = FeatureConfig.for_kind(peek_flag(argv, "features") or FEATURES_OF[DEFAULT_MODEL])
    values = parse_flags(argv, __doc__, Flags, FeaturizeConfig, defaults=vars(usual))
    if not values["data"]:
        raise UserError("--data is missing: name the folders that hold your corpora")
    config = pick_config(FeaturizeConfig, values)
    manifest = find_and_connect(values["data"], values["verbose"])
    store = featurize(manifest, config, values["store"], values["device"])
    say(f"Store: {store.root}")


if __name__ == "__main__":
    run_job(main)
