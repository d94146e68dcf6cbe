"""The house: which room may import what, how long functions are, and that one name is one thing."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import ser_ray

PACKAGE = Path(ser_ray.__file__).parent
ROOMS = sorted(path for path in PACKAGE.rglob("*.py"))
ON_RAY = {
    *("base/cluster.py", "base/workers.py", "store/pipeline.py", "store/task.py"),
    *("training/fit.py", "training/worker.py", "training/worker_rows.py", "search/search.py", "search/tuning_parts.py"),
    "predict/predict_on_ray.py",
}
WITHOUT_TORCH = ("base", "speech", "features", "store", "networks", "scores", "search")  # but where MAY_TORCH says so
MAY_TORCH = ("features/kernels/", "networks/modules/")
# What stands left of a folder, and so may be imported by it.
LEFT_OF = {
    "base": set(),
    "speech": {"base"},
    "features": {"base", "speech"},
    "store": {"base", "speech", "features"},
    "networks": {"base", "features"},
    "model": {"base", "speech", "features", "store", "networks"},
    "training": {"base", "speech", "features", "store", "networks", "model"},
    "scores": {"base", "speech", "features", "store", "model"},
    "predict": {"base", "speech", "features", "store", "networks", "model", "scores"},
    "export": {"base", "speech", "features", "store", "networks", "model", "scores"},
    "experiment": {"base", "speech", "features", "store", "networks", "model", "training", "scores"},
    "search": {"base", "speech", "features", "store", "networks", "model", "training", "scores", "experiment"},
    "commands": {"base", "features", "store", "model", "scores", "predict", "export", "experiment", "search"},
}
MOST_PARAMETERS, MOST_LINES = 6, 60
LONG = {}  # functions that are longer or take more, by room and name, each with a reason


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imported(tree: ast.AST) -> set[str]:
    """Modules that are imported anywhere in a room, but for type checkers alone."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def at_the_top(tree: ast.Module) -> set[str]:
    return imported(ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], []))


def is_of(names: set[str], module: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for name in names)


TREES = {place(path): ast.parse(path.read_text()) for path in ROOMS}


def test_only_the_marked_rooms_import_ray():
    assert {room for room, tree in TREES.items() if is_of(imported(tree), "ray")} == ON_RAY


def test_torch_is_imported_where_networks_and_kernels_are_alone():
    users = {room for room, tree in TREES.items() if is_of(at_the_top(tree), "torch")}
    stray = {room for room in users if room.partition("/")[0] in WITHOUT_TORCH and not room.startswith(MAY_TORCH)}
    assert users and not stray


def test_a_stage_imports_only_what_stands_left_of_it():
    for room, tree in TREES.items():
        folder, _, inner = room.partition("/")
        if not inner:  # the package itself, and what it offers
            continue
        used = {name.split(".")[1] for name in imported(tree) if name.startswith("ser_ray.") and name.count(".") > 1}
        assert used <= LEFT_OF[folder] | {folder}, f"{room} imports {sorted(used - LEFT_OF[folder] - {folder})}"


def test_no_rooms_import_each_other_in_a_circle():
    rooms = {f"ser_ray.{room[:-3].replace('/', '.')}": tree for room, tree in TREES.items() if "__init__" not in room}
    arrows = {name: {other for other in at_the_top(tree) if other in rooms} for name, tree in rooms.items()}
    left = dict(arrows)
    while free := {name for name, others in left.items() if not others & left.keys() - {name}}:
        left = {name: others for name, others in left.items() if name not in free}
    assert not left


def reached_from(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sorted(name for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_answering_and_evaluating_import_no_training():
    modules = ("ser_ray.model.files", "ser_ray.experiment.evaluate", "ser_ray.predict.predict", "ser_ray.export.export")
    reached = reached_from(", ".join(modules))
    assert not is_of(reached, "ser_ray.training") and not is_of(reached, "ray")


def test_training_imports_no_report_and_no_heavy_library():
    reached = reached_from("ser_ray.training.fit")
    assert not any(is_of(reached, name) for name in ("ser_ray.scores", "matplotlib", "librosa", "sklearn"))


def test_featurizing_is_spared_what_it_does_not_need():
    reached = reached_from("ser_ray.store.pipeline")
    assert not any(is_of(reached, name) for name in ("torch", "librosa", "sklearn", "matplotlib"))
    kernels = reached_from("ser_ray.features.kernels.spectra")
    assert not any(is_of(kernels, name) for name in ("ray", "librosa", "sklearn", "ser_ray.speech.corpora"))


def test_the_driver_of_a_featurization_is_spared_torch():
    code = "import sys, runpy; runpy.run_path('jobs/featurize.py'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_importing_the_package_costs_nothing_and_its_names_are_there():
    code = (
        "import sys, ser_ray; heavy = {'torch', 'ray', 'numpy', 'pyarrow'} & set(sys.modules); "
        "names = [getattr(ser_ray, name) for name in ser_ray.__all__]; print(heavy, len(names), dir(ser_ray) != [])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split()[0] == "set()" and done.stdout.split()[2] == "True", done.stderr


def test_networks_and_features_are_found_by_name_without_torch():
    code = (
        "import sys; from ser_ray.networks.spec import NETWORKS, find_network; "
        "from ser_ray.features.spec import FEATURES, find_features; "
        "[find_network(n.name)() for n in NETWORKS]; [find_features(f.name)().arrow_type() for f in FEATURES]; "
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_nothing_on_disk_is_unpickled():
    forbidden = {"pickle", "joblib", "dill", "shelve"}
    for path in ROOMS:
        text = path.read_text()
        assert not forbidden & imported(ast.parse(text)), path
        loads = re.findall(r"(?<!safetensors\.)torch\.load\(.*", text)
        if place(path) == "features/kernels/pretrained.py":  # encoders are published so, too: weights alone are read
            assert len(loads) == 1 and loads.pop().endswith("weights_only=True)")
        assert not loads and "allow_pickle=True" not in text, path


def functions(tree: ast.AST):
    """Yield each function with the class that it is a method of."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from ((node, inner) for inner in node.body if isinstance(inner, ast.FunctionDef))
        elif isinstance(node, ast.FunctionDef):
            yield None, node


def test_functions_are_short_and_take_few_parameters():
    found = {}
    for room, tree in TREES.items():
        for owner, function in functions(tree):
            if function.name.startswith("_") and function.name != "__init__":
                continue
            arguments = function.args
            count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs) - (owner is not None)
            body = function.body[1:] if ast.get_docstring(function) else function.body
            lines = function.end_lineno - body[0].lineno + 1 if body else 0
            if count > MOST_PARAMETERS or lines > MOST_LINES:
                found[f"{room}:{owner.name + '.' if owner else ''}{function.name}"] = (count, lines)
    assert set(found) == set(LONG), found
    assert len(LONG) <= 3


def test_no_two_public_functions_have_one_name():
    rooms = defaultdict(set)
    for room, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                rooms[node.name].add(room)
    grammar = {room for room, tree in TREES.items() if room.startswith("speech/corpora/") and "NAME" in ast.dump(tree)}
    shared = {name: places for name, places in rooms.items() if len(places) > 1 and not places <= grammar}
    assert not shared


def test_rooms_can_be_held_in_the_head():
    lengths = {place(path): len(path.read_text().splitlines()) for path in ROOMS}
    assert not {room: count for room, count in lengths.items() if count > 370}
