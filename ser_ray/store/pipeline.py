"""The Ray Data pipeline: corpora in, a feature store out, every clip accounted for.

The driver finds the clips, takes out what the store holds already, and deals the rest into tasks of up to 500 clips.
Each task opens its clips, decodes, augments, featurizes and writes one shard by itself; only counts come back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
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
from ser_ray.speech.audio import NOTES
