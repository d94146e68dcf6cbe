"""Jobs on a cluster of three nodes that was there before them, and on one whose autoscaler brings nodes."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from local_cluster import PATIENCE_S, ROOT, LocalCluster

from ser_ray.experiment.protocols import SplitConfig
from ser_ray.experiment.splits import split
from ser_ray.speech.emotions import LabelSet
from ser_ray.store.rows import open_rows
from ser_ray.store.shards import METADATA
from ser_ray.store.store import Store

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc"),
    pytest.mark.timeout(300),
]
JOBS = ROOT / "jobs"
# The job whose tasks wait until one has begun on each node: else the first one that is ready may do all of them.
TOGETHER = """
import os, runpy, sys, time
from pathlib import Path
import ray
from ser_ray.store import pipeline

begun, nodes, write_in_task = Path(sys.argv[1]), int(sys.argv[2]), pipeline.write_in_task

def write(tasks, arguments):
    (begun / ray.get_runtime_context().get_node_id()).touch()
    while len(list(begun.iterdir())) < nodes:
        time.sleep(0.05)
    return write_in_task(tasks, arguments)

pipeline.write_in_task = write
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster() as cluster:
        cluster.add_node()
        cluster.add_node()
        yield cluster


@pytest.fixture(scope="module")
def store(cluster, made, tmp_path_factory):
    """A store that a submitted job made on three nodes, and what that job printed."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "begun").mkdir()
    (folder / "together.py").write_text(TOGETHER)
    wish = ("jobs/featurize.py", "--features", "summary", "--data", *made, "--store", folder / "store")
    done = cluster.submit(folder / "together.py", folder / "begun", "3", *wish)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "store", done.stdout


def test_a_submitted_job_featurizes_on_all_nodes_what_one_machine_does(store, made_store):
    root, said = store
    (line,) = (line for line in said.splitlines() if line.startswith("Clips by node: "))
    by_node = [int(count) for count in line.removeprefix("Clips by node: ").split(", ")]
    assert len(by_node) == 3 and min(by_node) > 0 and sum(by_node) == 96
    assert "Featurizing: " in said and f"Store: {root}" in said
    columns = [*METADATA, "features"]
    assert Store(str(root)).table(columns).equals(made_store.table(columns))


def test_a_submitted_job_trains_on_all_nodes_and_drops_no_test_row(cluster, store, tmp_path):
    root, _ = store
    tested = len(split(open_rows(Store(str(root))), LabelSet(), SplitConfig()).test)
    assert tested % 3, "the workers do not divide the clips"
    flags = ("--store", root, "--output", tmp_path / "run", "--model", "cnn1d", "--epochs", "2", "--num-workers", "3")
    done = cluster.submit("jobs/train.py", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("3 workers on 3 nodes") == 2 and "succeeded" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert scores["timing"]["num_workers"] == 3 and scores["num_test"] == tested


def test_a_wrong_token_is_refused(cluster):
    for token in ("0" * 64, ""):
        refused = cluster.ray("job", "list", RAY_ADDRESS=cluster.dashboard, RAY_AUTH_TOKEN=token or " ")
        assert refused.returncode != 0 and "uthentication" in refused.stdout + refused.stderr
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{cluster.dashboard}/api/jobs/")
    assert error.value.code in (401, 403)
    intruder = cluster.start("-c", "import ray; ray.init()", RAY_AUTH_TOKEN="0" * 64)
    said, _ = intruder.communicate()
    assert intruder.returncode != 0 and "uthentication" in said


@pytest.mark.parametrize("given", [{"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}])
def test_a_job_with_a_wrong_token_or_none_says_so_in_one_line(cluster, tmp_path, given):
    job = cluster.start(JOBS / "train.py", "--output", tmp_path / "run", **given)
    said, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 2 and said.count("\n") == 1, said
    assert f"the Ray cluster at RAY_ADDRESS={cluster.address} wants its token" in said and "RAY_AUTH_MODE=token" in said


def test_a_job_on_a_laptop_that_is_no_node_of_the_cluster_is_told_how_to_submit_it(cluster):
    code = (
        "from ser_ray.base import cluster; from ser_ray.base.settings import run_job; "
        "cluster.services.find_node_ids = set; run_job(lambda _: cluster.connect())"
    )
    said, _ = (job := cluster.start("-c", code)).communicate(timeout=PATIENCE_S)
    assert job.returncode == 2 and said.count("\n") == 1, said
    assert "this machine is no node of the Ray cluster" in said and "`ray job submit`" in said


def test_the_upload_is_small(cluster, store):
    packages = list(Path(cluster.folder).glob("session_*/runtime_resources/working_dir_files/_ray_pkg_*"))
    sizes = [sum(path.stat().st_size for path in package.rglob("*") if path.is_file()) for package in packages]
    assert sizes and max(sizes) < 5e6


def test_more_cpus_than_any_node_brings_are_refused_in_time(cluster, store, tmp_path):
    root, _ = store
    wish = ("--store", root, "--output", tmp_path / "run", "--model", "cnn1d", "--num-workers", "9")
    code = (
        "import runpy, sys; from ser_ray.base import workers; workers.LAUNCH_S = 2.0; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    job = cluster.start("-c", code, JOBS / "train.py", *wish)
    said, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 2 and "Traceback" not in said
    assert "9 CPUs are needed and this cluster has 3: asking its autoscaler for more" in said
    assert "use fewer --num-workers" in said.splitlines()[-1]


def test_nodes_that_an_autoscaler_brings_are_waited_for(made_store, tmp_path):
    with LocalCluster(node_types={"pretended": ({"CPU": 1, "GPU": 1}, 2)}) as cluster:
        code = (
            "from ser_ray.base.cluster import connect; from ser_ray.base.workers import plan_workers; "
            "connect(); print(plan_workers('2', 'cuda'))"
        )
        job = cluster.start("-c", code)
        said, _ = job.communicate(timeout=PATIENCE_S)
        assert job.returncode == 0, said
        assert "2 GPUs are needed and this cluster has 0: asking its autoscaler for more" in said
        assert "Workers(count=2, gpu=True, resources={'CPU': 1" in said
