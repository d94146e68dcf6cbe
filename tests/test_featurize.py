import errno
import os
import random
import shutil
import signal
import threading
import tracemalloc
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
import ray
import soundfile as sf
import torch
from hypothesis import given
from hypothesis import strategies as st
from local_cluster import LocalCluster

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.features.spec import find_features
from ser_ray.features.summary import Summary
from ser_ray.speech.audio import NOTES
