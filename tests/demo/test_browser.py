"""The page in headless Chromium, and requests that its server rejects. Needs the extra `browser` and Chromium."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from http.client import HTTPConnection
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_sem import TASKS, SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.data.scenes import CLASS_NAMES, render_scene

from ..tiny import tiny_config
from .chromium import ARGUMENTS, CHROMIUM
from .files import write_bad_files, write_good_files
from .visitor import Visitor, image_file


pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="the extra `demo` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (apt-get install chromium)")
MAX_UPLOAD_MB = 2


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(command, port, folder, **environment):
    """Starts a server and waits until it answers."""
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder), **environment},
        )
    for _ in range(600):
        time.sleep(0.5)
        if "The page is at" in (folder / "log.txt").read_text():
            return process
        assert process.poll() is None, (folder / "log.txt").read_text()
    raise TimeoutError((folder / "log.txt").read_text())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    num_labels = {task: len(CLASS_NAMES.get(task, range(spec.num_labels))) for task, spec in TASKS.items()}
    names = {task: dict(enumerate(classes)) for task, classes in CLASS_NAMES.items()}
    torch.manual_seed(0)
    network = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels=num_labels, task_id2label=names))
    network.heads["depth"].classifier.bias.data.fill_(2.0)  # metres; without it a random model predicts depths near 0
    network.save_pretrained(folder)
    SEMImageProcessor(size={"height": 96, "width": 128}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory, repository, model):
    """Returns port and folder of a running page."""
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    options = ["--model", model, "--port", port, "--max-upload-mb", MAX_UPLOAD_MB]
    process = start([repository / "scripts" / "demo.py", *options], port, folder)
    yield port, folder
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    assert list(folder.glob("sem_demo_*")) == [], "the temporary folder is removed at the end"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)


@pytest.fixture
def visit(browser, served):
    """Opens the page. At the end it asserts that no console had errors and no other host was requested."""
    contexts, wrong = [], []

    def is_foreign(url):
        parts = urlsplit(url)
        return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in ("127.0.0.1", "localhost")

    def open_page(width=1280, height=900):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True))
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if is_foreign(request.url) else None)
        page.goto(f"http://127.0.0.1:{served[0]}")
        page.wait_for_selector("#image input[type=file]", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def upload(page, path):
    page.set_input_files("#image input[type=file]", str(path))


def wait_for_maps(page, size):
    page.wait_for_function(f"document.querySelector('#status').innerText.includes('{size}')", timeout=60_000)
    page.wait_for_function(
        "[...document.querySelectorAll('.map-slider')].every(slider => slider.querySelectorAll('img').length == 2 &&"
        " [...slider.querySelectorAll('img')].every(image => image.complete && image.naturalWidth))",
        timeout=60_000,
    )


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / "scene.png"
    Image.fromarray(render_scene(1, 120, 160)["image"]).save(path)
    return path


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_an_image_gives_maps_values_points_and_a_download(visit, scene, tmp_path, width):
    page = visit(width)
    upload(page, scene)
    wait_for_maps(page, "160 x 120")
    assert page.locator(".map-slider").count() == len(TASKS)
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    with page.expect_download() as download:
        page.click("#archive")
    download.value.save_as(tmp_path / "maps.zip")
    with zipfile.ZipFile(tmp_path / "maps.zip") as archive:
        archive.extract("maps.npz", tmp_path)
    with np.load(tmp_path / "maps.npz") as arrays:
        maps = {task: arrays[task] for task in arrays}

    for index in (0, len(TASKS) - 1):  # the values are those under the pointer, for every map
        image = page.locator(".map-slider img").nth(2 * index)
        image.scroll_into_view_if_needed()
        box = image.bounding_box()
        page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.3 * box["height"])
        page.wait_for_function("document.querySelectorAll('#values b').length > 0")
        readout = page.locator("#values").bounding_box()
        assert 0 <= readout["y"] <= 900 - readout["height"], "visible next to every map"
        values = dict(zip(TASKS, page.locator("#values b").all_inner_texts(), strict=True))
        around = {task: array[..., 34:39, 126:131] for task, array in maps.items()}
        assert values["semseg"] in {CLASS_NAMES["semseg"][id] for id in np.unique(around["semseg"])}
        metres = float(values["depth"].removesuffix(" m"))
        assert around["depth"].min() - 0.006 <= metres <= around["depth"].max() + 0.006
        normal = [float(number) for number in re.findall(r"[-\d.]+", values["normal"].replace("\N{MINUS SIGN}", "-"))]
        assert len(normal) == 3
        assert np.abs(around["normal"].reshape(3, -1) - np.array(normal)[:, None]).max(axis=0).min() < 0.011


@needs_chromium
def test_the_slider_moves_between_image_and_map(visit, scene):
    page = visit()
    upload(page, scene)
    wait_for_maps(page, "160 x 120")
    box = page.locator(".map-slider img").first.bounding_box()
    clip = {"x": box["x"] + 0.4 * box["width"], "y": box["y"] + 0.7 * box["height"], "width": 40, "height": 30}
    before = page.screenshot(clip=clip)
    handle = page.locator(".map-slider .inner").first.bounding_box()
    page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], handle["y"], steps=8)
    page.mouse.up()
    time.sleep(0.5)
    assert page.screenshot(clip=clip) != before


@needs_chromium
def test_the_point_cloud_rotates_and_changes_color(visit, scene):
    page = visit()
    upload(page, scene)
    wait_for_maps(page, "160 x 120")
    canvas = page.locator("#points canvas")
    canvas.scroll_into_view_if_needed()
    screenshots = [canvas.screenshot()]
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 420, box["y"] + 180, steps=4)
    page.mouse.up()
    page.wait_for_timeout(300)
    screenshots.append(canvas.screenshot())
    page.get_by_label("semantic segmentation", exact=True).check()
    page.wait_for_timeout(300)
    screenshots.append(canvas.screenshot())
    assert len(set(screenshots)) == 3


@needs_chromium
def test_bad_files_give_messages_and_the_page_still_works(visit, tmp_path, scene):
    page = visit()
    for path, word in write_bad_files(tmp_path / "bad").items():
        upload(page, path)
        page.wait_for_selector(f"#status .error:has-text('{word}')", timeout=30_000)
        assert page.locator(".map-slider").first.is_hidden()
        page.reload()
        page.wait_for_selector("#image input[type=file]", state="attached")
    for path in write_good_files(tmp_path / "good"):
        upload(page, path)
        wait_for_maps(page, "64 x 48")
        page.reload()
        page.wait_for_selector("#image input[type=file]", state="attached")


@needs_chromium
def test_a_file_above_the_limit_gives_a_message(browser, served, tmp_path):
    page = browser.new_page()  # not `visit`: Gradio requests the progress of the rejected upload and gets a 404
    page.goto(f"http://127.0.0.1:{served[0]}")
    (tmp_path / "large.jpg").write_bytes(b"0" * (MAX_UPLOAD_MB * 2**20 + 1000))
    upload(page, tmp_path / "large.jpg")
    page.wait_for_selector(f"text=/maximum.*{MAX_UPLOAD_MB}/i", timeout=15_000)
    page.close()


@needs_chromium
def test_closing_the_page_deletes_its_results(visit, scene, served):
    page = visit()
    upload(page, scene)
    wait_for_maps(page, "160 x 120")
    (root,) = served[1].glob("sem_demo_*")
    results = list(root.glob("*/*/maps.zip"))
    assert results
    page.close()
    for _ in range(100):
        time.sleep(0.2)
        if not any(path.exists() for path in results):
            return
    raise AssertionError([path for path in results if path.exists()])


@needs_chromium
def test_pages_respond_while_an_image_is_predicted(visit, tmp_path, scene):
    large = tmp_path / "large.jpg"
    Image.fromarray(np.zeros((4000, 6000, 3), dtype=np.uint8)).save(large)
    first, second = visit(), visit()
    upload(first, large)
    first.wait_for_selector("#status .wrap:not(.hide)", state="attached")
    start = time.perf_counter()
    third = visit()
    third.wait_for_selector("#scene")
    assert time.perf_counter() - start < 10
    upload(second, scene)
    wait_for_maps(second, "160 x 120")
    wait_for_maps(first, "6,000 x 4,000")


# ----------------------------------------------------------------------------------------------------------------------


def request(port, method, path, body=None, **headers):
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, response.read()


def form(name, content):
    head = f'--cut\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    return head + content + b"\r\n--cut--\r\n"


def send(port, name, content):
    return request(
        port,
        "POST",
        "/gradio_api/upload",
        form(name, content),
        **{"Content-Type": "multipart/form-data; boundary=cut"},
    )


def test_only_this_machine_can_connect(served):
    listening = subprocess.run(["cat", "/proc/net/tcp"], capture_output=True, text=True).stdout
    addresses = {line.split()[1] for line in listening.splitlines()[1:] if line.split()[3] == "0A"}
    assert f"0100007F:{served[0]:04X}" in addresses
    assert f"00000000:{served[0]:04X}" not in addresses


def test_no_file_outside_the_temporary_folder_is_served(served, repository, model):
    port, folder = served
    (root,) = folder.glob("sem_demo_*")
    (folder / "secret.txt").write_text("secret")
    outside = [
        "/etc/passwd",
        repository / "setup.cfg",
        model / "config.json",
        folder / "secret.txt",
        root / ".." / "secret.txt",
    ]
    for path in outside:
        for spelling in (
            f"{path}",
            f"{root}/../../../../../../../..{path}",
            f"{path}".replace("/", "%2F"),
            f"..{path}",
        ):
            for route in (
                "/gradio_api/file=",
                "/file=",
                "/gradio_api/file/",
                "/static/",
                "/assets/",
                "/gradio_api/download=",
            ):
                status, body = request(port, "GET", f"{route}{spelling}")
                assert status != 200 or b"<gradio-app" in body, (route, spelling)
                assert b"root:" not in body and b"transformers" not in body and body != b"secret", (route, spelling)


def test_a_call_cannot_name_a_file_of_the_server(served, repository):
    """The server checks the path that the browser sends as its upload."""
    visitor = Visitor(served[0])
    for path in ("/etc/passwd", str(repository / "docs" / "demo.jpg")):
        for meta in ({}, {"meta": {"_type": "gradio.FileData"}}):
            status, message = visitor.join([{"path": path, **meta}])
            assert status == 404 and path not in message


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_demo_at_once_and_leaves_no_file(repository, model, tmp_path, signum):
    port = free_port()
    process = start([repository / "scripts" / "demo.py", "--model", model, "--port", port], port, tmp_path)
    visitor = Visitor(port)
    path = visitor.upload(image_file(700, 700), "large.png")[1]  # not predicted before the signal
    assert visitor.join([{"path": path}])[0] == 200
    with socket.create_connection(("127.0.0.1", port)) as stream:  # an open page
        stream.sendall(b"GET /gradio_api/heartbeat/a HTTP/1.1\r\nHost: localhost\r\n\r\n")
        stream.recv(1)
        time.sleep(0.5)
        process.send_signal(signum)
        start_time = time.perf_counter()
        assert process.wait(timeout=20) == 130
    assert time.perf_counter() - start_time < 2
    assert list(tmp_path.glob("sem_demo_*")) == []
    assert "Traceback" not in (tmp_path / "log.txt").read_text()


def test_uploads_above_the_limit_are_rejected(served):
    port, folder = served
    assert send(port, "small.jpg", b"0" * 1000)[0] == 200
    assert send(port, "large.jpg", b"0" * (MAX_UPLOAD_MB * 2**20 + 1000))[0] == 413
    assert [
        path for path in folder.rglob("*") if path.is_file() and path.stat().st_size >= MAX_UPLOAD_MB * 2**20
    ] == []


def test_an_upload_cannot_choose_its_folder(served):
    port, folder = served
    (root,) = folder.glob("sem_demo_*")
    status, body = send(port, "../../../escaped.jpg", b"here")
    assert not (folder / "escaped.jpg").exists()
    assert status != 200 or json.loads(body)[0].startswith(str(root))


# ----------------------------------------------------------------------------------------------------------------------


@needs_chromium
def test_a_written_space_is_self_contained(repository, model, tmp_path, browser):
    """It runs from its own folder, with the page, package and model in it."""
    space, port = tmp_path / "space", free_port()
    command = [sys.executable, repository / "scripts" / "demo.py", "--model", model, "--space", space]
    subprocess.run(command, check=True, capture_output=True)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1 and "exists" in again.stderr
    code = (
        "import runpy, sys; sys.path.insert(0, '.'); import transformers_sem;"
        "assert transformers_sem.__file__.startswith(sys.argv[1]), transformers_sem.__file__;"
        "runpy.run_path('app.py', run_name='__main__')"
    )
    environment = {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": ""}
    process = start(["-c", code, space], port, space, **environment)
    try:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}")
        page.wait_for_selector("#scene")
        assert "tiny" in page.inner_text("body")
        page.click("#scene")
        wait_for_maps(page, "320 x 240")
        page.close()
    finally:
        process.kill()
        process.wait()
