"""ser_ray: speech emotion recognition as distributed batch processing on Ray."""

import os

__version__ = "0.1.0"

# Ray reads these when it is first imported. Without a cluster's address Ray starts one on this machine; the first
# setting, named for other systems, keeps that one on the loopback interface on Linux too. The second keeps it quiet
# towards the outside.
if os.environ.get("RAY_ADDRESS", "").strip() in ("", "local"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
