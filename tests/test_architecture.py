"""What keeps the package one way: imports, the names of tasks, silence."""

import ast
import re
import subprocess
import sys

import pytest

import transformers_sem

from .conftest import REPOSITORY


SOURCE = REPOSITORY / "src" / "transformers_sem"
SCRIPTS = REPOSITORY / "scripts"

# A module imports only from lower ranks; inside data/, prediction/ and training/ also from its own.
RANKS = {
    "losses": 0,
    "boundary": 0,
    "photos": 0,
    "visualization": 0,
    "statistics_file": 0,
    "hub": 0,
    "metrics": 1,
    "boundary_files": 1,
    "tasks": 2,
    "configuration_sem": 3,
    "scoring": 3,
    "panels": 3,
    "data": 4,
    "evaluation": 4,
    "image_processing_sem": 4,
    "model_card": 4,
    "backbone_timm": 4,
    "modeling_sem": 5,
    "pipeline_sem": 6,
    "inside": 6,
    "publishing": 7,
    "training": 7,
    "demo": 8,
    "auto_registration": 7,
    "prediction": 8,
    "__init__": 9,
}
FOLDERS = {"data", "demo", "prediction", "training"}

# modeling_sem.py is uploaded to the Hub with what it reaches
TOO_HEAVY_FOR_A_CHECKPOINT = {"datasets", "evaluate", "accelerate", "scipy", "skimage"}


def python_files(*folders):
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def name_of(path):
    return str(path.relative_to(REPOSITORY))


def parse(path):
    return ast.parse(path.read_text())


def part_of(path):
    """The entry of `RANKS` that a file of the package belongs to."""
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def relative_imports(path):
    """The files of the package that a file imports, wherever in it."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1]
            if node.module:
                yield resolve(folder.joinpath(*node.module.split(".")))
            else:
                yield from (resolve(folder / alias.name) for alias in node.names)


def resolve(module):
    return module / "__init__.py" if module.is_dir() else module.with_suffix(".py")


def absolute_imports(path):
    """The packages that a file imports, wherever in it."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def reachable(path):
    """A file and all that it imports from the package, directly or not."""
    reached, waiting = set(), [path]
    while waiting:
        current = waiting.pop()
        if current not in reached:
            reached.add(current)
            waiting.extend(relative_imports(current))
    return reached


@pytest.mark.parametrize("path", python_files(SOURCE), ids=name_of)
def test_imports_go_one_way(path):
    part = part_of(path)
    for imported in relative_imports(path):
        assert imported.exists(), f"{imported} is not a module"
        other = part_of(imported)
        if part == other and part in FOLDERS:
            continue
        assert RANKS[other] < RANKS[part], f"{part} (rank {RANKS[part]}) imports {other} (rank {RANKS[other]})"


@pytest.mark.parametrize("path", python_files(SOURCE), ids=name_of)
def test_the_package_imports_itself_by_relative_names_only(path):
    assert "transformers_sem" not in set(absolute_imports(path))


def test_the_import_reader_sees_the_graph():
    """A reader that finds nothing would let everything pass."""
    names = {path.stem for path in reachable(SOURCE / "modeling_sem.py")}
    assert {
        "modeling_sem",
        "configuration_sem",
        "backbone_timm",
        "tasks",
        "losses",
        "metrics",
        "visualization",
    } <= names
    assert "torch" in set(absolute_imports(SOURCE / "modeling_sem.py"))


def test_what_the_model_reaches_is_light_and_lies_in_one_folder():
    reached = reachable(SOURCE / "modeling_sem.py")
    assert {path.parent for path in reached} == {SOURCE}
    packages = {package for path in reached for package in absolute_imports(path)}
    assert packages & TOO_HEAVY_FOR_A_CHECKPOINT == set()


def string_constants(path):
    return [
        (node.lineno, node.value)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def may_name_tasks(path):
    return path == SOURCE / "tasks.py" or SOURCE / "data" in path.parents


@pytest.mark.parametrize(
    "path", [path for path in python_files(SOURCE, SCRIPTS) if not may_name_tasks(path)], ids=name_of
)
def test_no_task_is_named_outside_the_task_table_and_the_data(path):
    assert [(line, text) for line, text in string_constants(path) if text in transformers_sem.TASKS] == []


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.jinja")), ids=name_of)
def test_no_template_names_a_task(path):
    words = re.findall(r"\w+", path.read_text(encoding="utf-8").lower())
    assert words
    assert [word for word in words if word in transformers_sem.TASKS] == []


@pytest.mark.parametrize("path", python_files(SOURCE), ids=name_of)
def test_the_package_does_not_print(path):
    calls = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
    assert [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"] == []


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

AUTO_CLASSES = """
import transformers_sem
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForSemanticSegmentation

config = AutoConfig.for_model("sem")
assert type(config) is transformers_sem.SEMConfig
for auto_class, model_class in [
    (AutoModel, transformers_sem.SEMModel),
    (AutoModelForSemanticSegmentation, transformers_sem.SEMForMultiTaskDensePrediction),
]:
    assert auto_class._model_mapping[type(config)] is model_class
assert AutoBackbone._model_mapping[type(config.backbone_config)] is transformers_sem.SEMTimmBackbone
"""


def import_first(*statements):
    """Runs each statement in an interpreter where nothing of the package has been imported, and returns what they print."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", IMPORT_FIRST, *statements]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


@pytest.mark.slow
def test_any_module_can_be_imported_first_and_silently():
    modules = sorted(path.stem for path in SOURCE.glob("*.py") if path.stem != "__init__")
    assert import_first(AUTO_CLASSES, *(f"import transformers_sem.{module}" for module in modules)) == ""


def test_every_export_exists():
    assert all(getattr(transformers_sem, name) is not None for name in transformers_sem.__all__)
    assert set(transformers_sem.__all__) <= set(dir(transformers_sem))
