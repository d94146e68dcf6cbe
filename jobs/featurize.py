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
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.features.spec import find_features
from ser_ray.store.pipeline import featurize, find_and_connect


@dataclass(frozen=True)
class Flags:
    """Flags of this job alone.

    Attributes:
        features: Kind of features: `summary` (162 means over frames), `log_mel` (frames × bands, dB), or `waveform`
            (16-bit samples), or `encoder` (states of a pretrained speech encoder).
        data: Folders, URIs or tables (CSV, Parquet) that hold corpora.
        store: The feature store's folder or URI; by default `stores/` and a name drawn from settings and data.
        device: `cpu`; `cuda` for all GPUs, with CPUs that read for them; or `auto`: GPUs, where there are any, for an
            encoder, and else CPUs.
        verbose: Show Ray's own log lines.
        config: YAML or JSON file of flags and values; flags beat it.
    """

    features: str = "log_mel"
    data: tuple[str, ...] = ()
    store: str | None = None
    device: str = "auto"
    verbose: bool = False
    config: str | None = None


def main(argv: Sequence[str]) -> None:
    """Parse flags, featurize, say where the store is."""
    kind = find_features(peek_flag(argv, "features") or Flags.features)
    values = parse_flags(argv, __doc__, Flags, FeaturizeConfig, kind, without=("kind",))
    flags = pick_config(Flags, values)
    if not flags.data:
        raise UserError("--data is missing: name the folders that hold your corpora")
    recipe = FeaturizeConfig(pick_config(kind, values), values["augment"], values["seed"])
    recipe.identity()  # features that cannot be made are refused now
    manifest = find_and_connect(flags.data, flags.verbose)
    store = featurize(manifest, recipe, flags.store, flags.device)
    say(f"Store: {store.root}")


if __name__ == "__main__":
    run_job(main)
