"""`ser-ray predict` as a file, for clusters.

ray job submit --working-dir . -- python jobs/predict.py ...
"""

from ser_ray.base.settings import run_job
from ser_ray.commands.predict import predict_job as main

if __name__ == "__main__":
    run_job(main)
