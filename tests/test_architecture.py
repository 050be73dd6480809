"""The structure of the package: imports go one way, task names stay in their tables, and importing it is silent."""

import ast
import configparser
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter

import pytest

import transformers_sem

from .conftest import REPOSITORY


SOURCE = REPOSITORY / "src" / "transformers_sem"
SCRIPTS = REPOSITORY / "scripts"

# A module imports from its own folder and from lower ranks; the folders in `SAME_LEVEL` also import from each other.
RANKS = {
    "utils": 0,
    "losses": 0,
    "image_files": 0,
    "task_kinds": 1,
    "tasks": 2,
    "configuration_sem": 3,
    "backbone_timm": 4,
    "backbone": 5,
    "layers": 4,
    "modeling_outputs": 5,
    "modeling_sem": 6,
    "image_processing_sem": 7,
    "pipeline_sem": 8,
    "evaluation": 9,
    "visualization": 9,
    "data": 9,
    "training": 10,
    "inference": 10,
    "export": 10,
    "hub": 10,
    "ablation": 11,
    "demo": 11,
    "__init__": 11,
    "cli": 12,
    "__main__": 13,
}
SAME_LEVEL = {"evaluation", "visualization", "data"}
IMPORTS_TRAINING = {"training", "ablation", "cli"}

# modeling_sem.py is uploaded to the Hub with every module that it reaches
TOO_HEAVY_FOR_A_CHECKPOINT = {"datasets", "evaluate", "accelerate", "scipy", "matplotlib", "skimage"}

# The only packages that every installation has, besides those that these bring
EXTRAS_ONLY = {
    "gradio",
    "h5py",
    "matplotlib",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "av",
    "pillow_heif",
    "sklearn",
}


def python_files(*folders):
    """All Python files of the folders but those of the Hub Space, which run outside the package."""
    space = SOURCE / "demo" / "space"
    return sorted(path for folder in folders for path in folder.rglob("*.py") if space not in path.parents)


def name_of(path):
    return path.relative_to(REPOSITORY).as_posix()


@cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def import_statements(path):
    """Those anywhere in a file."""
    return [node for node in ast.walk(parse(path)) if isinstance(node, (ast.Import, ast.ImportFrom))]


def part_of(path):
    """The entry of `RANKS` that a file of the package belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def relative_imports(path):
    """The files of the package that a file imports, anywhere in it."""
    for node in import_statements(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1]
            module = folder.joinpath(*node.module.split(".")) if node.module else folder
            for alias in node.names:
                inner = resolve(module / alias.name)
                yield inner if inner.exists() else resolve(module)


def resolve(module):
    return module / "__init__.py" if module.is_dir() else module.with_suffix(".py")


def absolute_imports(path):
    """The packages that a file imports, anywhere in it."""
    for node in import_statements(path):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif not node.level:
            yield node.module.split(".")[0]


def imports_at_load(path):
    """The packages that a file imports when it is imported itself: not inside of functions."""
    for node in parse(path).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def reachable(path):
    """A file and all files of the package that it imports, directly or not."""
    reached, waiting = set(), [path]
    while waiting:
        current = waiting.pop()
        if current not in reached:
            reached.add(current)
            waiting.extend(relative_imports(current))
    return reached


def is_allowed(path, imported):
    part, other = part_of(path), part_of(imported)
    if other == "training" and part not in IMPORTS_TRAINING:
        return False
    if part == "cli" and other == "__init__":  # for the version
        return True
    return part == other or {part, other} <= SAME_LEVEL or RANKS[other] < RANKS[part]


def test_imports_go_one_way():
    wrong = []
    for path in python_files(SOURCE):
        for imported in relative_imports(path):
            assert imported.exists(), f"{name_of(path)} imports {imported}, which is not a module"
            if not is_allowed(path, imported):
                wrong.append(f"{name_of(path)} -> {name_of(imported)}")
    assert wrong == []


def test_modules_import_each_other_without_a_cycle():
    graph = {}
    for path in python_files(SOURCE):
        # a package's __init__.py that is only a docstring imports nothing, and closes no cycle
        graph[path] = {imported for imported in relative_imports(path) if imported != path}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_the_package_imports_itself_by_relative_names_only():
    assert [name_of(path) for path in python_files(SOURCE) if "transformers_sem" in set(absolute_imports(path))] == []


def test_the_import_reader_sees_the_graph():
    """A reader that finds nothing would let every other test pass."""
    names = {path.stem for path in reachable(SOURCE / "modeling_sem.py")}
    assert {"modeling_sem", "configuration_sem", "backbone_timm", "tasks", "task_kinds", "losses"} <= names
    assert "torch" in set(absolute_imports(SOURCE / "modeling_sem.py"))
    assert set(RANKS) == {part_of(path) for path in python_files(SOURCE)}


def test_what_the_model_reaches_is_light_and_lies_in_one_folder():
    for name in ("modeling_sem", "image_processing_sem", "pipeline_sem"):
        reached = reachable(SOURCE / f"{name}.py")
        assert {path.parent for path in reached} == {SOURCE}, name
        packages = {package for path in reached for package in absolute_imports(path)}
        assert packages & TOO_HEAVY_FOR_A_CHECKPOINT == set(), name


def test_importing_the_package_and_the_commands_needs_no_extra():
    needed = {}
    for name in ("__init__", "cli/train", "cli/evaluate", "cli/predict", "cli/push", "cli/export", "cli/demo"):
        for path in reachable(SOURCE / f"{name}.py"):
            lazily = {"demo", "export"} if name.startswith("cli") else set()
            extras = EXTRAS_ONLY & set(imports_at_load(path))
            if extras and part_of(path) not in lazily:
                needed[name_of(path)] = extras
    assert needed == {}


def test_every_import_is_a_requirement():
    """A package that is imported but only comes with another requirement is listed here, with the one that brings it."""
    brought_along = {
        "pyarrow": "datasets",
        "jinja2": "torch",
        "requests": "huggingface-hub",
        "deepspeed": "accelerate",
        "httpx": "huggingface-hub",
        "onnx_ir": "onnxscript",
    }
    renamed = {
        "yaml": "pyyaml",
        "PIL": "pillow",
        "pillow_heif": "pillow-heif",
        "sklearn": "scikit-learn",
        "huggingface_hub": "huggingface-hub",
    }
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    listed = setup["options"]["install_requires"] + "".join(setup["options.extras_require"].values())
    requirements = set(re.findall(r"^[A-Za-z0-9-]+", listed, re.MULTILINE))
    for path in python_files(SOURCE):
        for package in set(absolute_imports(path)) - sys.stdlib_module_names:
            name = brought_along.get(package, renamed.get(package, package))
            assert name in requirements, f"{name_of(path)} imports {package}"


def string_constants(path):
    return [
        (node.lineno, node.value)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def may_name_tasks(path):
    return path in (SOURCE / "tasks.py", SOURCE / "evaluation" / "metrics.py") or SOURCE / "data" in path.parents


def test_no_task_is_named_outside_the_tables_and_the_data():
    tasks = set(transformers_sem.TASKS)
    for path in python_files(SOURCE, SCRIPTS):
        if not may_name_tasks(path):
            assert [(line, text) for line, text in string_constants(path) if text in tasks] == [], name_of(path)


def test_no_template_names_a_task():
    templates = sorted(SOURCE.rglob("*.jinja"))
    assert templates
    for path in templates:
        words = re.findall(r"\w+", path.read_text(encoding="utf-8").lower())
        assert words and [word for word in words if word in transformers_sem.TASKS] == [], name_of(path)


def test_only_the_commands_print():
    for path in python_files(SOURCE):
        if part_of(path) == "cli" or path.name == "run_onnx.py":
            continue
        calls = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
        lines = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert lines == [], name_of(path)


def test_the_wheel_brings_what_is_not_python():
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    listed = set()
    for package, patterns in setup["options.package_data"].items():
        folder = SOURCE.joinpath(*package.split(".")[1:])
        for pattern in patterns.replace(",", " ").split():
            found = set(folder.glob(pattern))
            assert found, f"{package}: nothing matches {pattern}"
            listed |= found
    others = {path for path in SOURCE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".pyi")}
    assert sorted(map(name_of, others - listed)) == []


IMPORT = """
import transformers_sem
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForUniversalSegmentation
from transformers.pipelines import PIPELINE_REGISTRY

config = AutoConfig.for_model("sem")
assert type(config) is transformers_sem.SEMConfig
for auto_class, model_class in [
    (AutoModel, transformers_sem.SEMModel),
    (AutoModelForUniversalSegmentation, transformers_sem.SEMForMultiTaskDensePrediction),
]:
    assert auto_class._model_mapping[type(config)] is model_class
assert AutoBackbone._model_mapping[type(config.backbone_config)] is transformers_sem.SEMTimmBackbone
assert "multi-task-dense-prediction" in PIPELINE_REGISTRY.get_supported_tasks()
"""


@pytest.mark.slow
def test_a_fresh_interpreter_imports_silently_and_the_auto_classes_know_the_model():
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", IMPORT]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


IMPORT_FIRST = """
import os
import sys

import timm, torch, torchvision, transformers

for statement in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        exec(statement)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, statement
"""


@pytest.mark.slow
def test_every_flat_module_can_be_imported_first_and_silently():
    modules = sorted(path.stem for path in SOURCE.glob("*.py") if not path.stem.startswith("__"))
    statements = [f"import transformers_sem.{module}" for module in modules]
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", IMPORT_FIRST, *statements]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_every_export_exists():
    assert all(getattr(transformers_sem, name) is not None for name in transformers_sem.__all__)
    assert set(transformers_sem.__all__) <= set(dir(transformers_sem))
