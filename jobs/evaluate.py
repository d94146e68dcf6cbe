"""`ser-ray evaluate` as a file, for clusters.

ray job submit --working-dir . -- python jobs/evaluate.py ...
"""

from ser_ray.base.settings import run_job
from ser_ray.commands.evaluate import evaluate_job as main

if __name__ == "__main__":
    run_job(main)
