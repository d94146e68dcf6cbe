"""ser_ray: speech emotion recognition as distributed batch processing on Ray.

What users and notebooks want is here by name and imported when it is first asked for, so that `import ser_ray` itself
costs nothing: neither torch nor Ray.

    import ser_ray
    model = ser_ray.load("runs/first")
    model.predict("recording.wav")
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see of the public names
    from ser_ray.base.cluster import connect as connect
    from ser_ray.experiment.evaluate import evaluate as evaluate
    from ser_ray.experiment.experiment import Experiment as Experiment
    from ser_ray.experiment.run import run as run
    from ser_ray.model.files import load_model
    from ser_ray.model.model import Model as Model
    from ser_ray.registration import register as register
    from ser_ray.speech.corpora import discover as discover
    from ser_ray.store.pipeline import featurize as featurize
    from ser_ray.store.store import Store as Store

    load = load_model

__version__ = "0.2.0"

# Ray reads these when it is first imported. Without a cluster's address Ray starts one on this machine; the first
# setting, named for other systems, keeps that one on the loopback interface on Linux too. The second keeps it quiet
# towards the outside.
if os.environ.get("RAY_ADDRESS", "").strip() in ("", "local"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

__all__ = [
    *("discover", "connect", "featurize", "Store", "Experiment", "run", "Model", "load", "evaluate", "register"),
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    value: Any
    if name == "discover":
        from ser_ray.speech.corpora import discover as value
    elif name == "connect":
        from ser_ray.base.cluster import connect as value
    elif name == "featurize":
        from ser_ray.store.pipeline import featurize as value
    elif name == "Store":
        from ser_ray.store.store import Store as value
    elif name == "Experiment":
        from ser_ray.experiment.experiment import Experiment as value
    elif name == "run":
        from ser_ray.experiment.run import run as value
    elif name == "Model":
        from ser_ray.model.model import Model as value
    elif name == "load":
        from ser_ray.model.files import load_model as value
    elif name == "evaluate":
        from ser_ray.experiment.evaluate import evaluate as value
    elif name == "register":
        from ser_ray.registration import register as value
    else:
        raise AttributeError(f"module 'ser_ray' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
