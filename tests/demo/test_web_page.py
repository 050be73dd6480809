"""The files of the static page."""

import json
import re

import pytest

from transformers_sem import TASKS, SEMForMultiTaskDensePrediction
from transformers_sem.data.scenes import CLASS_NAMES
from transformers_sem.demo import web_page
from transformers_sem.task_kinds import METRES, TaskKind
from transformers_sem.tasks import TaskSpec

from ..tiny import tiny_config


@pytest.fixture(scope="module")
def model():
    num_labels = {task: len(CLASS_NAMES.get(task, range(spec.num_labels))) for task, spec in TASKS.items()}
    names = {task: dict(enumerate(classes)) for task, classes in CLASS_NAMES.items()}
    return SEMForMultiTaskDensePrediction(tiny_config(task_num_labels=num_labels, task_id2label=names))


@pytest.fixture
def node_modules(tmp_path):
    """A folder with files of the names that the page needs."""
    folder = tmp_path / "node_modules"
    for package, names in {
        "@huggingface/transformers": [web_page.MODULE],
        "onnxruntime-web": [web_page.LOADER, web_page.BINARY],
    }.items():
        (folder / package / "dist").mkdir(parents=True)
        for name in names:
            (folder / package / "dist" / name).write_text(name)
    return folder


def script(page, kind):
    (text,) = re.findall(rf'<script type="{kind}"[^>]*>(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_the_page_describes_every_task_in_order(model, tmp_path):
    web_page.write_page(tmp_path, model, "tiny", ["fp32", "int8"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "index.html", "page.js"]
    page = (tmp_path / "index.html").read_text()
    facts = script(page, "application/json")
    assert [task["name"] for task in facts["tasks"]] == list(TASKS) and facts["dtypes"] == ["fp32", "int8"]
    tasks = {task["name"]: task for task in facts["tasks"]}
    assert tasks["semseg"]["names"] == {str(index): name for index, name in enumerate(CLASS_NAMES["semseg"])}
    assert {name: task["kind"] for name, task in tasks.items()} == {
        "semseg": "class_ids",
        "depth": "metres",
        "normal": "unit_vectors",
        "boundary": "probability",
        "parsing": "class_ids",
        "saliency": "probability",
    }
    assert tasks["depth"]["unit"] == "m" and tasks["depth"]["names"] is None
    assert len(facts["palette"]) == 256 and facts["wasm"] is None and facts["size"] is None
    (module,) = script(page, "importmap")["imports"].values()
    assert module.startswith("https://cdn.jsdelivr.net/npm/@huggingface/transformers@") and module.endswith(".js")
    code = (tmp_path / "page.js").read_text()
    assert "const locate =" in code and "AutoModel.from_pretrained" in code
    assert (tmp_path / "README.md").read_text().startswith("---\n") and "sdk: static" in (
        tmp_path / "README.md"
    ).read_text()


def test_names_are_text_and_not_markup(tmp_path):
    names = {"semseg": {0: "</script><b>", 1: "wall"}}
    model = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels={"semseg": 2}, task_id2label=names))
    web_page.write_page(tmp_path, model, "<img src=x>", ["fp32"])
    page = (tmp_path / "index.html").read_text()
    assert "<img" not in page and '<b>"' not in page
    assert script(page, "application/json")["tasks"][0]["names"] == {"0": "</script><b>", "1": "wall"}


def test_a_runtime_is_copied_and_no_cdn_is_named(model, tmp_path, node_modules):
    folder = tmp_path / "page"
    folder.mkdir()
    web_page.write_page(folder, model, "tiny", ["fp32"], node_modules=node_modules, size=[96, 128])
    assert {path.name for path in (folder / "runtime").iterdir()} == {
        web_page.MODULE,
        web_page.LOADER,
        web_page.BINARY,
    }
    page = (folder / "index.html").read_text()
    assert script(page, "application/json")["size"] == [96, 128]
    assert "https://" not in page + (folder / "page.js").read_text()
    paths = [*script(page, "importmap")["imports"].values(), *script(page, "application/json")["wasm"].values()]
    assert all((folder / path).is_file() for path in paths)


def test_an_incomplete_runtime_is_refused(node_modules):
    (node_modules / "onnxruntime-web" / "dist" / web_page.BINARY).unlink()
    with pytest.raises(ValueError, match="npm install @huggingface/transformers"):
        web_page.check_runtime(node_modules)


def test_a_kind_that_the_page_cannot_draw_is_refused(monkeypatch):
    kind = TaskKind(values="reflectance in [0, 1]", predict=METRES.predict, colorize=METRES.colorize)
    spec = TaskSpec(name="albedo", kind=kind, num_labels=3, loss=TASKS["depth"].loss)
    monkeypatch.setitem(TASKS, "albedo", spec)
    with pytest.raises(ValueError, match=r"albedo predicts reflectance in \[0, 1\]. Export the model without --web"):
        web_page.describe_task("albedo", {}, 3)
