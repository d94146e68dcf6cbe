"""Training in this process, for tests of what comes before a training and after it.

Workers of Ray Train cost more than such a training itself, and give the same networks: `test_training.py` says so.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from ser_ray.base.workers import Workers
from ser_ray.training.task import Place

HERE = Workers(1, False, {"CPU": 1})


@contextmanager
def training_here() -> Iterator[None]:
    """Let runs and cross-validations train without workers of Ray Train."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for room in ("run", "crossval"):
            patch.setattr(f"ser_ray.experiment.{room}.Place", partial(Place, here=HERE))
        yield
    torch.set_num_threads(threads)
