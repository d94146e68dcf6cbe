"""Actors on GPUs, on a cluster that has one by name alone: what they do there is done on the CPU."""

import pytest
import torch
from local_cluster import LocalCluster
from test_predict import a_model, answer, read, speech, write

from ser_ray.model.files import save_model
from ser_ray.store.shards import METADATA
from ser_ray.store.store import Store

pytestmark = [pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(1, "--num-gpus=1") as cluster:
        yield cluster


WRITE_ON_ACTORS = """
import sys
from ser_ray.base.settings import run_job
from ser_ray.store import pipeline as room
from ser_ray.base.cluster import connect
from ser_ray.speech.audio import NOTES
from ser_ray.speech.corpora import discover
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.features.summary import Summary

Summary.cpu_only = False  # actors are the same for all features

class OnCpu(room.ShardWriter):  # where GPUs are mere names
    where = sys.argv[1]

    def __init__(self, *arguments):
        super().__init__(*arguments[:-1], self.where)

room.ShardWriter = OnCpu
connect()
run_job(lambda argv: room.featurize(discover(argv[2:]), FeaturizeConfig(), argv[1], "cuda"))
"""


def test_actors_on_gpus_write_the_same_rows_or_say_why_not(cluster, made, made_store, tmp_path):
    said, code = {}, {}
    for device in ("cuda", "cpu"):
        job = cluster.start("-c", WRITE_ON_ACTORS, device, tmp_path / "store", *made)
        said[device], _ = job.communicate()
        code[device] = job.returncode
    assert code == {"cuda": 2, "cpu": 0}, said
    assert "torch cannot use the GPU that Ray gave it" in said["cuda"] and "Traceback" not in said["cuda"]
    columns = [*METADATA, "features"]
    assert Store(str(tmp_path / "store")).table(columns).equals(made_store.table(columns))


ANSWER_ON_ACTORS = """
import sys
from ser_ray.base.settings import run_job
from ser_ray.commands.predict import predict_job
from ser_ray.predict import predict_on_ray

class Pretends(predict_on_ray.Actor):  # where GPUs are mere names
    def __init__(self, answerer):
        super().__init__(answerer)
        self.problem = ""

if sys.argv.pop(1) == "pretends":
    predict_on_ray.Actor = Pretends
run_job(predict_job, sys.argv[1:])
"""


def test_actors_on_gpus_answer_with_the_same_rows_or_say_why_not(cluster, tmp_path):
    save_model(a_model(), str(tmp_path / "run" / "model"))
    run = str(tmp_path / "run")
    for k in range(3):
        write(tmp_path / "in" / f"{k}.wav", speech(7, seed=k))
    flags = ["--run", run, "--input", tmp_path / "in", "--output", tmp_path / "out", "--device", "cuda"]
    said, codes = [], []
    for how in ("plainly", "pretends"):
        job = cluster.start("-c", ANSWER_ON_ACTORS, how, *flags)
        said.append(job.communicate()[0])
        codes.append(job.returncode)
    assert codes == [2, 0], said
    assert "torch cannot use the GPU that Ray gave it" in said[0] and "Traceback" not in said[0]
    assert read(tmp_path / "out")[0].equals(answer(run, tmp_path / "here", tmp_path / "in")[0])
