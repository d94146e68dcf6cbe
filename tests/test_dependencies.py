"""Every dependency earns its place: what is installed for use is imported by the package, and nothing else is."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {"scikit-learn": "sklearn", "pyyaml": "yaml", "mlflow-skinny": "mlflow", "protobuf": "google"}
# Extras of Ray that are asked for what they bring with them, and where that is used.
RAY_EXTRAS = {
    "data": ("store/pipeline.py", "ray.data"),
    "train": ("training/fit.py", "ray.train"),
    "tune": ("search/search.py", "ray.tune"),
    "default": ("base/cluster.py", "ray"),  # the dashboard, to which jobs are submitted
}
BROUGHT_BY_RAY = {"grpc"}  # errors of its client, which Ray raises


def distribution(requirement):
    name, extras = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", requirement).groups()
    return name.lower(), (extras or "").split(",") if extras else []


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


IMPORTED = {name.partition(".")[0] for path in (ROOT / "ser_ray").rglob("*.py") for name in imports(path)}
EXTRAS = {name: [distribution(one)[0] for one in wanted] for name, wanted in PROJECT["optional-dependencies"].items()}
RUNTIME = dict(map(distribution, PROJECT["dependencies"]))


@pytest.mark.parametrize("name", sorted(RUNTIME))
def test_what_is_installed_for_use_is_imported(name):
    assert MODULES.get(name, name.replace("-", "_")) in IMPORTED


@pytest.mark.parametrize("name", ["encoders", "tune", "mlflow"])
def test_what_an_extra_brings_is_imported(name):
    assert all(MODULES.get(one, one.replace("-", "_")) in IMPORTED for one in EXTRAS[name])


def test_extras_of_ray_are_those_that_are_used():
    assert set(RUNTIME["ray"]) == set(RAY_EXTRAS)
    for room, module in RAY_EXTRAS.values():
        assert any(one == module or one.startswith(f"{module}.") for one in imports(ROOT / "ser_ray" / room)), room


def test_what_is_imported_is_installed():
    offered = {
        *RUNTIME,
        *(one for name in ("encoders", "tune", "mlflow", "media", "vad", "onnx") for one in EXTRAS[name]),
    }
    offered = {MODULES.get(name, name.replace("-", "_")) for name in offered}
    assert not IMPORTED - offered - BROUGHT_BY_RAY - set(sys.stdlib_module_names) - {"ser_ray"}


def test_versions_that_were_tested_together_are_pinned_for_all_that_is_listed():
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").open()}
    wanted = {*RUNTIME, *(one for names in EXTRAS.values() for one in names)}
    assert not {name.replace("_", "-") for name in wanted} - pinned
