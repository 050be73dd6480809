"""The demo page, in Gradio: shows all predictions for an image. Sends no requests to other hosts."""

import html
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from ..data.scenes import render_scene
from ..image_files import UnreadableImageError, read_image_file
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..pipeline_sem import MultiTaskDensePredictionPipeline
from ..tasks import get_task
from ..utils.extras import require
from ..utils.loading import load_image_processor, load_model
from .point_cloud import FIELD_OF_VIEW
from .results import TITLE, PageResults, write_results
from .server import ALL_ADDRESSES, GONE, VisitorGate, bind, exit_at_once, make_folder, new_path, running


gr = require("gradio", "demo")
FastAPI = require("fastapi", "demo").FastAPI

HERE = Path(__file__).parent
INVITATION = "<div class='status'>Upload an image, paste one, or use your camera.</div>"
MAX_SIDE = 1024
MAX_PIXELS = 108_000_000  # of large phone cameras; decoding them takes seconds and 3 GB at worst
MAX_WAITING = 32
# Results are deleted when their page is closed, or after this time
MAX_AGE_SECONDS = 3600
NUM_DELETIONS = 3
SYSTEM_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONOSPACE_FONT = ("ui-monospace", "Menlo", "Consolas", "monospace")

POINTS_TEMPLATE = f"""
<div class='map-title'>point cloud</div>
<div class='choices' role='radiogroup' aria-label='colors of the points'></div>
<canvas tabindex='0' aria-label='point cloud'></canvas>
<div class='legend'>Drag to rotate, click and scroll to zoom, double-click to reset. The points assume a camera with a horizontal
field of view of {FIELD_OF_VIEW:.0f} degrees; with another lens the shapes are distorted.</div>
"""


class SessionFolders:
    """The result folders of the open pages, one for each session of a visitor, with names that cannot be guessed."""

    def __init__(self):
        self.folders: dict[tuple[Path, str | None], Path] = {}
        self.lock = threading.Lock()

    def renew(self, visitor: Path, session: str | None) -> Path:
        """Replaces a session's folder by an empty one, and deletes folders older than `MAX_AGE_SECONDS`.

        Args:
            visitor (`Path`): Folder of the visitor.
            session (`str`, *optional*): The session, one for each open page.
        """
        self.remove(visitor, session)
        with self.lock:
            oldest = time.time() - MAX_AGE_SECONDS
            existing = {key: folder for key, folder in self.folders.items() if folder.is_dir()}
            old = [key for key, folder in existing.items() if folder.stat().st_mtime < oldest]
            for key in old:
                shutil.rmtree(existing.pop(key), ignore_errors=True)
            self.folders = existing
            folder = self.folders[visitor, session] = Path(tempfile.mkdtemp(dir=make_folder(visitor)))
            return folder

    def remove(self, visitor: Path, session: str | None) -> None:
        """Deletes a session's folder."""
        with self.lock:
            folder = self.folders.pop((visitor, session), None)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def load_pipeline(model: str | Path) -> MultiTaskDensePredictionPipeline:
    """Loads a model from a folder or the Hub, on the best available device."""
    return MultiTaskDensePredictionPipeline(
        model=load_model(SEMForMultiTaskDensePrediction, model),
        image_processor=load_image_processor(SEMImageProcessor, model),
    )


def draw_scene() -> Image.Image:
    """Renders a random room whose seed is outside the range that training uses."""
    seed = 2 * (10**6 + int.from_bytes(os.urandom(3), "big")) + 1
    return Image.fromarray(render_scene(seed, 240, 320)["image"])


def about(model: str, pipeline: MultiTaskDensePredictionPipeline, max_upload_mb: int) -> str:
    """Returns the introduction of the page as Markdown."""
    titles = ", ".join(get_task(task).title for task in pipeline.model.config.tasks)
    size, parameters = pipeline.image_processor.size, pipeline.model.num_parameters() / 1e6
    return (
        f"# {TITLE}\n"
        f"**{html.escape(model)}** is a Synergy Embedding Model (SEM, CVPR 2024) with {parameters:.1f} M parameters. It predicts "
        f"{titles} in one forward pass at {size['width']} x {size['height']} pixels. It works best on images like those it was "
        "trained on.\n\n"
        f"Images have up to {max_upload_mb} MB and {MAX_PIXELS // 10**6} million pixels, and are reduced to at most {MAX_SIDE} pixels "
        "per side. Images are predicted one at a time. Your results are deleted when you close the page, your uploads within an hour."
    )


def format_status(image: Image.Image, size: tuple[int, int], seconds: float) -> str:
    """Returns a line about the predicted image, which had `size` (width, height) when uploaded, as HTML."""
    reduced = "" if image.size == size else f", reduced to {image.width} x {image.height} pixels"
    return (
        f"<div class='status'>Image of {size[0]:,} x {size[1]:,} pixels{reduced}, predicted in {seconds:.1f} s.</div>"
    )


def image_input() -> gr.Image:
    """Returns a Gradio image input that passes the path of the file on, so that [`read_image_file`] reads it."""
    image = gr.Image(label="Image", sources=["upload", "clipboard", "webcam"], height=300, elem_id="image")
    # not a subclass, since Gradio writes a .pyi file next to the module of a subclass
    image.preprocess = lambda payload: None if payload is None else payload.path
    return image


def scripted_html(scripts: tuple[str, ...], template: str, elem_id: str) -> gr.HTML:
    """Returns a part of the page that scripts in this folder, joined, draw from the part's value."""
    code = "".join((HERE / script).read_text(encoding="utf-8") for script in scripts)
    return gr.HTML({}, html_template=template, js_on_load=code, elem_id=elem_id)


class Page:
    """The page of one model.

    Args:
        model (`str` or `Path`): Folder or Hub name.
        root (`Path`): Folder for the files of all sessions.
        max_upload_mb (`int`): Maximum upload size in MB.
    """

    def __init__(self, model: str | Path, root: Path, max_upload_mb: int):
        self.pipeline = load_pipeline(model)
        self.folders = SessionFolders()
        self.root, self.max_upload_mb = root, max_upload_mb
        tasks = self.pipeline.model.config.tasks
        with gr.Blocks(title=TITLE, delete_cache=(60, MAX_AGE_SECONDS)) as self.blocks:
            gr.Markdown(about(Path(model).name if Path(model).is_dir() else str(model), self.pipeline, max_upload_mb))
            with gr.Row():
                with gr.Column():
                    self.image = image_input()
                with gr.Column():
                    scene = gr.Button("No image at hand? Render a room", elem_id="scene")
                    self.status = gr.HTML(INVITATION, elem_id="status")
                    self.archive = gr.DownloadButton("Download all maps (zip)", visible=False, elem_id="archive")
            with gr.Column(visible=False, elem_id="results") as self.results:
                table_scripts = ("pixel_text.js", "pixel_values.js")
                self.table = scripted_html(table_scripts, "<div class='values'></div>", elem_id="values")
                self.sliders, self.legends = self.lay_out_maps(tasks)
                self.cloud = scripted_html(("point_cloud.js",), POINTS_TEMPLATE, elem_id="points")
            self.image.change(
                self.show,
                self.image,
                [self.status, self.archive, self.results, self.table, self.cloud]
                + [*self.sliders.values(), *self.legends.values()],
                concurrency_limit=1,
                trigger_mode="always_last",
                show_progress_on=self.status,
            )
            scene.click(self.offer_scene, outputs=self.image, concurrency_limit=1)
            self.blocks.unload(self.delete_results)

    def lay_out_maps(self, tasks: list[str]) -> tuple[dict[str, gr.ImageSlider], dict[str, gr.HTML]]:
        """Adds a slider between image and map, and a legend, for each task."""
        sliders, legends = {}, {}
        with gr.Row():
            for task in tasks:
                with gr.Column(min_width=300):
                    gr.HTML(f"<div class='map-title'>{html.escape(get_task(task).title)}</div>")
                    sliders[task] = gr.ImageSlider(
                        show_label=False, interactive=False, slider_position=25, elem_classes="map-slider"
                    )
                    legends[task] = gr.HTML()
        return sliders, legends

    def offer_scene(self, request: gr.Request) -> str:
        """Writes a rendered room to the visitor's folder and returns its path."""
        path = new_path(request.state.folder, ".png")
        draw_scene().save(path)
        self.blocks.upload_file_set.add(str(path))
        return str(path)

    def show(self, path: str | None, request: gr.Request) -> dict:
        """Predicts an uploaded image and returns the updates of the page; an unreadable file gives a message."""
        if path is None:
            self.folders.remove(request.state.folder, request.session_hash)
            return self.hide(INVITATION)
        start = time.perf_counter()
        try:
            image = read_image_file(path, MAX_PIXELS)
        except UnreadableImageError as error:
            return self.hide(f"<div class='status error'>{html.escape(public_reason(error))}</div>")
        size = image.size
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        maps = self.pipeline(image)["predictions"]
        names = self.pipeline.model.config.task_id2label
        results = write_results(self.folders.renew(request.state.folder, request.session_hash), image, maps, names)
        return self.fill(results) | {self.status: format_status(image, size, time.perf_counter() - start)}

    def hide(self, status: str) -> dict:
        """Returns the updates of a page without results."""
        return {self.status: status, self.results: gr.update(visible=False), self.archive: gr.update(visible=False)}

    def fill(self, results: PageResults) -> dict:
        """Returns the updates of a page with results."""
        return {
            self.results: gr.update(visible=True),
            self.archive: gr.update(value=str(results.archive), visible=True),
            self.table: results.table,
            self.cloud: gr.update(value=results.cloud, visible=results.cloud is not None),
            **{self.sliders[task]: (str(results.image), str(path)) for task, path in results.maps.items()},
            **{self.legends[task]: text for task, text in results.legends.items()},
        }

    def delete_results(self, request: gr.Request) -> None:
        """Deletes the results of a session whose page was closed."""
        self.folders.remove(request.state.folder, request.session_hash)


def public_reason(error: UnreadableImageError) -> str:
    """Returns why an image is unreadable. Errors of the operating system, which name paths, become one sentence."""
    is_system_error = isinstance(error.__cause__, OSError) and error.__cause__.errno is not None
    return GONE if is_system_error else error.reason


@contextmanager
def temporary_root() -> Iterator[Path]:
    """Creates a temporary folder for the files of all visitors, and deletes it at the end."""
    folder = tempfile.mkdtemp(prefix="sem_demo_")
    os.environ["GRADIO_TEMP_DIR"] = os.environ["GRADIO_EXAMPLES_CACHE"] = folder
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        yield Path(folder)
    finally:
        for _ in range(NUM_DELETIONS):  # a prediction in another thread may still write
            shutil.rmtree(folder, ignore_errors=True)


def create_app(page: Page, hosts: Sequence[str]) -> VisitorGate:
    """Returns the ASGI application of a page.

    Args:
        page (`Page`): The page.
        hosts (`Sequence[str]`): Names that the page answers to besides localhost, see [`VisitorGate`].
    """
    page.blocks.queue(max_size=MAX_WAITING, api_open=False)
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page.blocks,
        path="/",
        max_file_size=page.max_upload_mb * 2**20,
        theme=gr.themes.Soft(font=SYSTEM_FONT, font_mono=MONOSPACE_FONT),
        css_paths=HERE / "page.css",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
    )
    return VisitorGate(app, page.root, hosts, page.max_upload_mb, page.blocks.upload_file_set)


def launch(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    max_upload_mb: int = 20,
    allow_hosts: Sequence[str] = (),
) -> None:
    """Serves the page until interrupted, and then ends the process.

    Args:
        model (`str` or `Path`): Folder or Hub name.
        host (`str`): Address to listen on. By default only this machine can connect; `"0.0.0.0"` allows all.
        port (`int`, *optional*): Port to listen on; by default the first free one from 7860.
        max_upload_mb (`int`): Maximum upload size in MB; larger files are rejected.
        allow_hosts (`Sequence[str]`): Names of the page besides `host`, localhost and 127.0.0.1; requests for other names
            are rejected. `"*"` allows all names.

    Raises:
        OSError: If the address or the port cannot be used.
    """
    with exit_at_once(), bind(host, port) as listener, temporary_root() as root:
        app = create_app(Page(model, root, max_upload_mb), [host, *allow_hosts])
        with running(app, listener) as server:
            name = "localhost" if host in ALL_ADDRESSES else host
            sys.stderr.write(f"The page is at http://{name}:{listener.getsockname()[1]}. Ctrl-C stops it.\n")
            server.join()
