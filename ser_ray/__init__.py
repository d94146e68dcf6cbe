"""ser_ray: speech emotion recognition as distributed batch processing on Ray.

What users and notebooks want is here by name and imported when it is first asked for, so that `import ser_ray` itself
costs nothing: neither torch nor Ray.

    import ser_ray
    model = ser_ray.load("runs/first")
    model.predict("recording.wav")
"""

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Ray reads these when it is first imported. Without a cluster's address Ray starts one on this machine; the first
# setting, named for other systems, keeps that one on the loopback interface on Linux too. The second keeps it quiet
# towards the outside.
if os.environ.get("RAY_ADDRESS", "").strip() in ("", "local"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

_ROOMS = {  # where each public name is, and what it is called there
    "discover": "speech.corpora.discover:discover",
    "connect": "base.cluster:connect",
    "featurize": "store.pipeline:featurize",
    "Store": "store.store:Store",
    "Experiment": "experiment.experiment:Experiment",
    "run": "experiment.run:run",
    "Model": "model.model:Model",
    "load": "model.files:load_model",
    "evaluate": "experiment.evaluate:evaluate",
    "register": "registration:register",
}
__all__ = [*_ROOMS, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'ser_ray' has no attribute {name!r}")
    room, _, own = _ROOMS[name].partition(":")
    value = getattr(import_module(f"ser_ray.{room}"), own)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
