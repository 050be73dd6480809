"""The static page in headless Chromium, and its graphs in Node, with transformers.js from the npm registry.

Needs the extra `browser`, Chromium, Node and a folder of packages: `npm install @huggingface/transformers` in the repository, or
`SEM_NODE_MODULES=FOLDER`.
"""

import functools
import json
import os
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_sem import TASKS, SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.data.scenes import CLASS_NAMES, render_scene
from transformers_sem.demo.web_page import check_runtime
from transformers_sem.modeling_outputs import SEMMultiTaskOutput

from ..cli.commands import run
from ..conftest import REPOSITORY
from ..tiny import tiny_config
from . import chromium


pytestmark = pytest.mark.slow
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
NODE_MODULES = Path(os.environ.get("SEM_NODE_MODULES", REPOSITORY / "node_modules"))
NODE = shutil.which("node")
ARGUMENTS = [
    *chromium.ARGUMENTS,
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
SIZE = (96, 128)
IMAGE_SIZE = (83, 120)  # is padded
TIMEOUT = 240_000  # milliseconds

try:
    check_runtime(NODE_MODULES)
except ValueError as error:
    pytestmark = [pytestmark, pytest.mark.skip(reason=str(error))]


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    num_labels = {task: len(CLASS_NAMES.get(task, range(spec.num_labels))) for task, spec in TASKS.items()}
    names = {task: dict(enumerate(classes)) for task, classes in CLASS_NAMES.items()}
    torch.manual_seed(0)
    network = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels=num_labels, task_id2label=names))
    network.heads["depth"].classifier.bias.data.fill_(2.0)
    network.save_pretrained(folder / "model")
    SEMImageProcessor(do_resize=False, do_pad=True).save_pretrained(folder / "model")
    options = ["--size", *SIZE, "--runtime", NODE_MODULES]
    result = run("export", "--model", folder / "model", "--web", folder / "page", *options)
    assert result.code == 0, result.errors
    return folder / "page"


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """An image that fits into the size that the graphs take, so that no resizing differs."""
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    Image.fromarray(render_scene(1, *IMAGE_SIZE)["image"]).save(path)
    return path


def predict(page_folder, dtype, pixel_values):
    path = page_folder / "onnx" / ("model.onnx" if dtype == "fp32" else f"model_{dtype}.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"pixel_values": pixel_values}), strict=True))


IN_NODE = """
import { readFileSync } from "node:fs";
import { AutoModel, Tensor, env } from "@huggingface/transformers";

env.allowRemoteModels = false;
const pixels = new Float32Array(new Uint8Array(readFileSync(process.argv[3])).buffer);
const model = await AutoModel.from_pretrained(process.argv[2], { dtype: process.argv[4] });
const logits = await model({ pixel_values: new Tensor("float32", pixels, [1, 3, 96, 128]) });
console.log(JSON.stringify(Object.fromEntries(Object.entries(logits).map(([name, { data }]) => [name, [...data]]))));
"""


@pytest.mark.skipif(NODE is None, reason="there is no node")
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_transformers_js_loads_the_graphs_in_node(page_folder, tmp_path, dtype):
    pixel_values = np.random.default_rng(0).standard_normal((1, 3, *SIZE)).astype(np.float32)
    (tmp_path / "pixels").write_bytes(pixel_values.tobytes())
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    (tmp_path / "predict.mjs").write_text(IN_NODE)
    command = [NODE, tmp_path / "predict.mjs", page_folder, tmp_path / "pixels", dtype]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    logits = json.loads(result.stdout.splitlines()[-1])
    tolerance = 1e-3 if dtype == "fp32" else 0.1
    for name, expected in predict(page_folder, dtype, pixel_values).items():
        np.testing.assert_allclose(logits[name], expected.ravel(), atol=tolerance)


@pytest.fixture(scope="module")
def address(page_folder):
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=page_folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def visit(address):
    """Opens the page. At the end it asserts that the console had no errors and no other host was requested."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
    if chromium.CHROMIUM is None:
        pytest.skip("there is no Chromium (apt-get install chromium)")
    wrong = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium.CHROMIUM, args=ARGUMENTS)

        def open_page(query="", width=1280):
            context = browser.new_context(viewport={"width": width, "height": 900}, permissions=["camera"])
            page = context.new_page()
            page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("request", lambda request: wrong.append(request.url) if is_foreign(request.url) else None)
            page.goto(address + query)
            wait_for_status(page, "ready")
            return page

        def is_foreign(url):
            return not url.startswith((address, "data:", "blob:"))

        yield open_page
        browser.close()
    assert wrong == []


def wait_for_status(page, text):
    condition = "text => document.querySelector('#status').matches('.error') || document.querySelector('#status').innerText.includes(text)"
    page.wait_for_function(condition, arg=text, timeout=TIMEOUT, polling=200)  # a still page may draw no frames
    assert text in page.inner_text("#status")


def show(page, path):
    """Chooses a file, and returns what the page has predicted."""
    page.evaluate(
        """() => {
            window.predicted = null;
            document.addEventListener("predicted", ({ detail }) => { window.predicted = detail; }, { once: true });
        }"""
    )
    page.set_input_files("#file", str(path))
    page.wait_for_function("window.predicted", timeout=TIMEOUT, polling=200)
    text = page.evaluate(  # as text: Playwright takes minutes for as many numbers
        """() => {
            const entries = (maps, read) => Object.fromEntries(Object.entries(maps).map(([name, map]) => [name, [...read(map)]]));
            const { pixelValues, logits, maps } = window.predicted;
            return JSON.stringify({
                pixels: [...pixelValues],
                logits: entries(logits, ({ data }) => data),
                maps: entries(maps, (map) => map),
            });
        }"""
    )
    return json.loads(text)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_maps_are_those_of_python(visit, page_folder, scene, width):
    page = visit(width=width)
    shown = show(page, scene)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    image_processor = SEMImageProcessor.from_pretrained(page_folder)
    pixel_values = image_processor(Image.open(scene), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(np.ravel(shown["pixels"]), pixel_values.ravel(), atol=1e-5)
    logits = predict(page_folder, "fp32", pixel_values)
    for name in TASKS:
        np.testing.assert_allclose(shown["logits"][name], logits[name].ravel(), atol=1e-3)
    outputs = SEMMultiTaskOutput(logits={name: torch.from_numpy(values) for name, values in logits.items()})
    (maps,) = image_processor.post_process_dense_prediction(outputs, target_sizes=[IMAGE_SIZE])
    for name, expected in maps.items():
        values = np.reshape(shown["maps"][name], expected.shape)
        if expected.dtype == torch.int64:  # two logits may be equal up to rounding
            assert (values == expected.numpy()).mean() > 0.999
        else:
            np.testing.assert_allclose(values, expected.numpy(), atol=1e-3)
    canvas = page.locator("#maps canvas").nth(2)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.605 * box["width"], box["y"] + 0.405 * box["height"])
    row, column = int(0.405 * IMAGE_SIZE[0]), int(0.605 * IMAGE_SIZE[1])
    texts = dict(zip(TASKS, page.locator("#values b").all_inner_texts(), strict=True))
    assert texts["depth"] == f"{maps['depth'][row, column]:.2f} m"
    assert texts["semseg"] == CLASS_NAMES["semseg"][int(maps["semseg"][row, column])]


def test_a_smaller_graph_a_camera_and_a_file_that_is_no_image(visit, scene, tmp_path):
    page = visit("?dtype=int8")
    assert page.input_value("#precision") == "int8"
    (tmp_path / "text.png").write_text("no image")
    page.set_input_files("#file", str(tmp_path / "text.png"))
    page.wait_for_selector("#status.error:has-text('text.png is not an image')")
    show(page, scene)
    page.click("#camera")
    wait_for_status(page, "frames per second")
    page.click("#camera")
    page.select_option("#precision", "fp16")
    wait_for_status(page, "fp16")
    show(page, scene)
