"""`ser-ray featurize` as a file, for clusters.

ray job submit --working-dir . -- python jobs/featurize.py ...
"""

from ser_ray.base.settings import run_job
from ser_ray.commands.featurize import featurize_job as main

if __name__ == "__main__":
    run_job(main)
