"""`ser-ray train` as a file, for clusters.

ray job submit --working-dir . -- python jobs/train.py ...
"""

from ser_ray.base.settings import run_job
from ser_ray.commands.train import train_job as main

if __name__ == "__main__":
    run_job(main)
