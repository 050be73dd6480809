"""The static page of an exported model: predicts in the browser, with transformers.js. Needs no server of its own."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..task_kinds import CLASS_IDS, MAGMA, METRES, PROBABILITY, UNIT_VECTORS, class_palette
from ..tasks import get_task
from .results import MAX_LEGEND_CLASSES, TITLE, name_class


HERE = Path(__file__).parent
KINDS = ((CLASS_IDS, "class_ids"), (PROBABILITY, "probability"), (METRES, "metres"), (UNIT_VECTORS, "unit_vectors"))
CDN = "https://cdn.jsdelivr.net/npm/@huggingface/transformers@4.3.2/dist"
MODULE, LOADER, BINARY = (
    "transformers.min.js",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)


def check_runtime(node_modules: Path) -> list[Path]:
    """Returns the files of transformers.js that the page needs: the module, and loader and binary of ONNX Runtime.

    Raises:
        ValueError: If one is missing.
    """
    package = node_modules / "@huggingface" / "transformers"
    nested, beside = (folder / "onnxruntime-web" / "dist" for folder in (package / "node_modules", node_modules))
    runtime = nested if nested.is_dir() else beside
    files = [package / "dist" / MODULE, runtime / LOADER, runtime / BINARY]
    for path in files:
        if not path.is_file():
            raise ValueError(
                f"--runtime must be a node_modules folder with @huggingface/transformers; {path} does not exist. Run "
                "npm install @huggingface/transformers."
            )
    return files


def describe_task(task: str, names: dict[int, str], num_labels: int) -> dict[str, Any]:
    """Returns what the page knows of a task.

    Raises:
        ValueError: If the page cannot draw its kind of maps.
    """
    spec = get_task(task)
    kind = next((name for kind, name in KINDS if kind is spec.kind), None)
    if kind is None:
        raise ValueError(
            f"The page draws {', '.join(kind.values for kind, _ in KINDS)}; {task} predicts {spec.kind.values}. Export the "
            "model without --web."
        )
    return {
        "name": task,
        "title": spec.title,
        "kind": kind,
        "unit": spec.kind.unit,
        "key": spec.kind.color_key or spec.kind.values,
        "names": {index: name_class(names, index) for index in range(num_labels)} if spec.kind is CLASS_IDS else None,
    }


def write_page(
    folder: Path,
    model: SEMForMultiTaskDensePrediction,
    name: str,
    precisions: Sequence[str],
    *,
    size: Sequence[int] | None = None,
    node_modules: Path | None = None,
) -> None:
    """Writes the page to the folder of an exported model.

    Args:
        folder (`Path`): With the graphs and configurations that [`~export.folder.export_folder`] writes for a page.
        model ([`SEMForMultiTaskDensePrediction`]): The model.
        name (`str`): Its name on the page.
        precisions (`Sequence[str]`): Of its graphs.
        size (`Sequence[int]`, *optional*): Height and width that the graphs take; `None` is any size.
        node_modules (`Path`, *optional*): Folder to copy transformers.js from; without it the page takes it from a CDN.

    Raises:
        ValueError: If a file is missing there, or a task has a kind of maps that the page cannot draw.
    """
    config = model.config
    facts = {
        "title": TITLE,
        "name": name,
        "parameters": f"{model.num_parameters() / 1e6:.1f}",
        "tasks": [
            describe_task(task, config.task_id2label.get(task, {}), width)
            for task, width in config.task_num_labels.items()
        ],
        "dtypes": list(precisions),
        "palette": class_palette().tolist(),
        "magma": [list(bytes.fromhex(color)) for color in MAGMA],
        "maxLegendClasses": MAX_LEGEND_CLASSES,
        "size": size,
        "wasm": None,
    }
    module = f"{CDN}/{MODULE}"
    if node_modules is not None:
        (folder / "runtime").mkdir()
        for path in check_runtime(node_modules):
            shutil.copy(path, folder / "runtime")
        module, facts["wasm"] = f"./runtime/{MODULE}", {"mjs": f"runtime/{LOADER}", "wasm": f"runtime/{BINARY}"}
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(read("web/index.html.jinja"))
    style = read("page.css") + read("web/web.css")
    titles = ", ".join(task["title"] for task in facts["tasks"])
    page = template.render(facts=facts, titles=titles, style=style, module=module)
    (folder / "index.html").write_text(page, encoding="utf-8")
    (folder / "page.js").write_text(read("pixel_text.js") + read("web/web.js"), encoding="utf-8")
    shutil.copy(HERE / "web" / "README.md", folder)


def read(name: str) -> str:
    """Returns the text of a file in this folder."""
    return (HERE / name).read_text(encoding="utf-8")
