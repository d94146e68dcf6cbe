"""One task of featurization: some clips in, their shard out.

A task may be killed and run again: a shard's name and content depend on its clips alone. Workers import this room and
what it needs, and no more of ser_ray, since each second that takes is one that all of them take.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.features.arrays import encode_features
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.features.spec import Features
from ser_ray.speech.audio import NOTES, AudioError, Clip, count_notes, decode
