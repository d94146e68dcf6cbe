"""`ser-ray tune` as a file, for clusters.

ray job submit --working-dir . -- python jobs/tune.py ...
"""

from ser_ray.base.settings import run_job
from ser_ray.commands.tune import tune_job as main

if __name__ == "__main__":
    run_job(main)
