"""The files that bring clusters up: cluster.yaml, docs/rayjob.yaml, Dockerfile; no cloud or Docker engine is asked."""

import re
import shlex
from pathlib import Path

import pytest
import ray
import yaml

import ser_ray
from ser_ray.commands.train import _Flags
from ser_ray.experiment.flags import parse_experiment

ROOT = Path(__file__).parent.parent
IMAGE = f"REGISTRY/ser-ray:{ser_ray.__version__}"


@pytest.fixture(scope="module")
def cluster():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def job():
    return yaml.safe_load((ROOT / "docs" / "rayjob.yaml").read_text())


def test_the_installed_ray_takes_the_cluster(cluster):
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    validate_config(fillout_defaults(cluster))
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(fillout_defaults({**cluster, "max_wrokers": 1}))


def test_the_cluster_starts_from_zero_and_costs_little_when_idle(cluster):
    types = cluster["available_node_types"]
    assert set(types) == {"head", "cpu", "gpu"} and cluster["idle_timeout_minutes"] <= 5
    assert all(types[name]["min_workers"] == 0 for name in ("cpu", "gpu"))
    assert types["head"]["resources"] == {"CPU": 0} and "InstanceMarketOptions" not in types["head"]["node_config"]
    assert types["cpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["gpu"]["resources"]["GPU"] == 1
    assert sum(types[name]["max_workers"] for name in ("cpu", "gpu")) == cluster["max_workers"]


def test_the_cluster_is_closed(cluster):
    (rule,) = cluster["provider"]["security_group"]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    (start,) = (line for line in cluster["head_start_ray_commands"] if "--head" in line)
    assert "--dashboard-host=127.0.0.1" in start and "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
    profiles = [kind["node_config"]["IamInstanceProfile"] for kind in cluster["available_node_types"].values()]
    assert len(profiles) == 3, "no keys on the nodes: a role gives them the bucket"


def test_the_rayjob_is_the_main_job_on_a_closed_cluster(job):
    spec = job["spec"]["rayClusterSpec"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert spec["rayVersion"] == ray.__version__ and spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] and job["spec"]["shutdownAfterJobFinishes"]
    python, script, *flags = shlex.split(job["spec"]["entrypoint"])
    assert (python, script) == ("python", "/home/ray/ser_ray/jobs/train.py")
    wish = parse_experiment([*flags], "", _Flags)
    assert (wish.compute.device, wish.compute.num_workers) == ("cuda", "4")
    assert all(wish.values[name].startswith("s3://") for name in ("store", "output"))
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] == IMAGE
        assert container["resources"]["limits"] == container["resources"]["requests"]
    assert all((group["replicas"], group["minReplicas"]) == (0, 0) for group in groups[1:])


def test_one_image_serves_both(cluster):
    assert cluster["docker"]["image"] == IMAGE
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[2:-1]]
    assert {"pyproject.toml", "constraints.txt", "ser_ray", "jobs"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    assert IMAGE in lines[1] and lines[-2:] == ["USER ray", "WORKDIR /home/ray"]
    (base,) = re.findall(r"^FROM (.*)$", "\n".join(lines), re.MULTILINE)
    assert base.startswith("python:3.11")


def test_ray_is_one_version_everywhere(job):
    pinned = re.search(r"^ray(?:\[.*\])?==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned[1] == job["spec"]["rayClusterSpec"]["rayVersion"]
