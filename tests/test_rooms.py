import ast
import re
import subprocess
import sys
from pathlib import Path

import ser_ray

ON_RAY = {"base/cluster.py", "base/workers.py", "store/pipeline.py", "store/task.py", "training/fit.py"}
ON_RAY |= {"training/worker_rows.py", "experiment/crossval.py", "search/search.py", "search/tuning_parts.py"}
PACKAGE = Path(ser_ray.__file__).parent


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_only_the_marked_rooms_import_ray():
    users = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(name == "ray" or name.startswith("ray.") for name in imported(path))
    }
    assert users == ON_RAY


def test_featurizing_and_training_are_spared_librosa_and_scikit_learn():
    code = (
        "import sys, ser_ray.store.pipeline, ser_ray.features.kernels.spectra, ser_ray.training.fit; "
        "from ser_ray.features.settings import FeatureConfig, draw_banks; "
        "draw_banks(FeatureConfig()); print({'librosa', 'sklearn'} & set(sys.modules) or 'none')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "none"


def test_the_driver_of_a_featurization_is_spared_torch():
    code = "import sys, runpy; runpy.run_path('jobs/featurize.py'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_nothing_on_disk_is_unpickled():
    forbidden = {"pickle", "joblib", "dill", "shelve"}
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert not forbidden & imported(path), path
        assert not re.search(r"(?<!safetensors\.)torch\.load\(", text) and "allow_pickle=True" not in text, path
