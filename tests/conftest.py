"""Shared by all tests: where real speech is, a local Ray of our own, and some made speech."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
from local_cluster import free_ports

# The two processes of pytest share the machine; read before torch, and by the Ray that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from ser_ray.base.settings import run_job
from ser_ray.speech import made as synthetic
from ser_ray.speech.corpora import discover

# Files that take longest, in this order, so that both processes of pytest end together.
LONGEST = [
    "training",
    "tuning",
    "cluster",
    "jobs",
    "object_storage",
    "gpus_by_name",
    "export",
    "own_kinds",
    "featurize",
    "encoders",
    "resume",
    "readme",
    "where_it_runs",
    "predict_inputs",
    "made_speech_is_said",
    "tutorial",
    "experiment",
    "together",
]


def pytest_collection_modifyitems(config, items):
    """Begin with the longest files, but where the order is to be random."""
    if not config.pluginmanager.hasplugin("randomly"):
        ranks = {f"test_{name}": rank for rank, name in enumerate(LONGEST)}
        items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real speech: `corpora/`, `oddities/` and `facts/`."""
    place = os.environ.get("SER_RAY_CORPORA")
    if not place:
        pytest.skip("SER_RAY_CORPORA does not name real speech")
    return Path(place)


@pytest.fixture(scope="session")
def bucket_settings() -> dict[str, str]:
    """Where workers of the tests' Ray look for buckets, and by which secret: `test_object_storage.py` answers there."""
    (port,) = free_ports(1)
    endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    return endpoint | {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "hush-5e0f9a"}


@pytest.fixture(scope="session")
def local_ray(bucket_settings):
    """A Ray of the tests' own; four CPUs by name, whatever the machine has."""
    import ray

    from ser_ray.base import cluster

    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    with pytest.MonkeyPatch.context() as patch:  # workers have the environment in which Ray was started
        for name, value in bucket_settings.items():
            patch.setenv(name, value)
        patch.setenv("RAY_idle_worker_killing_time_threshold_ms", "120000")  # what they imported serves later tests
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    cluster.connect()
    yield
    ray.shutdown()


@pytest.fixture
def train_here():
    """Train in this process; `training_here.py` says why."""
    from training_here import training_here

    with training_here():
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> list[str]:
    """Roots of 96 clips of made speech."""
    return synthetic.write_speech(str(tmp_path_factory.mktemp("made")), clips=96, processes=1)


@pytest.fixture(scope="session")
def made_store(local_ray, made, tmp_path_factory):
    """A finished feature store of the made speech."""
    from ser_ray.features.recipe import FeaturizeConfig
    from ser_ray.store.pipeline import featurize

    return featurize(discover(made), FeaturizeConfig(), str(tmp_path_factory.mktemp("store") / "made"))


@pytest.fixture(scope="session")
def made_plain(local_ray, made, tmp_path_factory):
    """A finished store of the made speech without changed copies of its clips."""
    from ser_ray.features.recipe import FeaturizeConfig
    from ser_ray.features.summary import Summary
    from ser_ray.store.pipeline import featurize

    config = FeaturizeConfig(Summary(), ("none",))
    return featurize(discover(made), config, str(tmp_path_factory.mktemp("store") / "plain"))


@pytest.fixture(scope="session")
def made_frames(local_ray, made, tmp_path_factory):
    """A finished store of the made speech as log-mel frames."""
    from ser_ray.features.log_mel import LogMel
    from ser_ray.features.recipe import FeaturizeConfig
    from ser_ray.store.pipeline import featurize

    return featurize(discover(made), FeaturizeConfig(LogMel()), str(tmp_path_factory.mktemp("store") / "frames"))


@pytest.fixture
def job(monkeypatch, capfd, tmp_path):
    """Run `job("train", "--epochs", "1")` in an empty folder; returns exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def run(name, *argv):
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent / "jobs" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py", *map(str, argv)])
        code = 0
        try:
            run_job(module.main)
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    return run


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A Chromium without a window, whose microphone hears beeps; tests are skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    quiet = ("background-networking", "component-update", "gpu", "quic", "sync")
    microphone = ("use-fake-device-for-media-stream", "use-fake-ui-for-media-stream")
    for flag in ("headless", "no-sandbox", "no-first-run", *(f"disable-{each}" for each in quiet), *microphone):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as opened:
        yield opened
