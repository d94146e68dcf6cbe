"""`ser-ray export` as a file, for clusters.

ray job submit --working-dir . -- python jobs/export.py ...
"""

from ser_ray.base.settings import run_job
from ser_ray.commands.export import export_job as main

if __name__ == "__main__":
    run_job(main)
