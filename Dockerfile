# The image of cluster.yaml and docs/rayjob.yaml, for CPU and GPU nodes alike: torch brings its own CUDA libraries.
#   docker build -t REGISTRY/ser-ray:0.1.0 . && docker push REGISTRY/ser-ray:0.1.0
FROM python:3.11-slim-bookworm

# rsync and ssh for `ray up`, wget for Kubernetes' probes, procps for Ray.
RUN apt-get update && apt-get install -y --no-install-recommends rsync openssh-client wget procps \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 ray
WORKDIR /home/ray/ser_ray
COPY --chown=ray pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=ray ser_ray ser_ray
COPY --chown=ray jobs jobs
RUN pip install --no-cache-dir -c constraints.txt '.[tune,encoders]'

# Pretrained encoders, if any, lie here on every node: mounted (cluster.yaml), or in an image made from this one.
ENV SER_RAY_ENCODERS=/home/ray/encoders

USER ray
WORKDIR /home/ray
