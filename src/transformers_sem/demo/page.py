"""The page itself, in Gradio: a photo in, every map out. It asks no other host for anything."""

import html
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import torch
from PIL import Image

from ..data.scenes import render_scene
from ..image_files import UnreadablePhotoError, read_photo
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..pipeline_sem import MultiTaskDensePredictionPipeline
from ..tasks import get_task
from .point_cloud import FIELD_OF_VIEW
from .views import Views, write_views


TITLE = "One photo, every dense prediction"
HERE = Path(__file__).parent
INVITATION = "<div class='status'>Drop a photo, paste it, or take one.</div>"
MAX_SIDE = 1024
MAX_WAITING = 32
# Files of a page that was closed go at once; of one left open, or of a program that called the page, after this
MAX_AGE_SECONDS = 3600
SYSTEM_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONOSPACE_FONT = ("ui-monospace", "Menlo", "Consolas", "monospace")

POINTS_TEMPLATE = f"""
<div class='map-title'>points in space</div>
<div class='paints' role='radiogroup' aria-label='what colours the points'></div>
<canvas tabindex='0' aria-label='points in space'></canvas>
<div class='legend'>Drag to turn, click and scroll to come nearer, double-click to start again. A photo does not say through what
lens it was taken: the points assume that its width spans {FIELD_OF_VIEW:.0f} degrees and that the optical axis meets its
centre.</div>
"""


class SessionFolders:
    """One folder of results for each open page, with a name that nobody can guess.

    Args:
        root (`Path`): Where they lie.
    """

    def __init__(self, root: Path):
        self.root = root
        self.folders: dict[str | None, Path] = {}
        self.lock = threading.Lock()

    def renew(self, session: str | None) -> Path:
        """An empty folder in the place of the session's last one; those of pages left open for long go, too."""
        self.remove(session)
        with self.lock:
            oldest = time.time() - MAX_AGE_SECONDS
            for other in [key for key, folder in self.folders.items() if folder.stat().st_mtime < oldest]:
                shutil.rmtree(self.folders.pop(other), ignore_errors=True)
            self.folders[session] = Path(tempfile.mkdtemp(dir=self.root))
            return self.folders[session]

    def remove(self, session: str | None) -> None:
        """Deletes what a session left."""
        with self.lock:
            folder = self.folders.pop(session, None)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def load_pipeline(model: str | Path) -> MultiTaskDensePredictionPipeline:
    """The model in a folder or on the Hub, on the best device there is."""
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return MultiTaskDensePredictionPipeline(
        model=SEMForMultiTaskDensePrediction.from_pretrained(model).eval(),
        image_processor=SEMImageProcessor.from_pretrained(model),
        device=device,
    )


def draw_scene() -> Image.Image:
    """A rendered room that no training with less than a million scenes has seen."""
    seed = 2 * (10**6 + int.from_bytes(os.urandom(3), "big")) + 1
    return Image.fromarray(render_scene(seed, 240, 320)["image"])


def about(model: str, pipeline: MultiTaskDensePredictionPipeline, max_upload_mb: int) -> str:
    """What the page does, in Markdown."""
    titles = ", ".join(get_task(task).title or task for task in pipeline.model.config.tasks)
    size, parameters = pipeline.image_processor.size, pipeline.model.num_parameters() / 1e6
    return (
        f"# {TITLE}\n"
        f"**{html.escape(model)}**, a Synergy Embedding Model (SEM, CVPR 2024) of {parameters:.1f} M parameters: {titles}, all "
        f"in one forward pass. It sees {size['width']} x {size['height']} pixels, and knows what it was trained on, no more.\n\n"
        f"Photos have up to {max_upload_mb} MB; larger ones than {MAX_SIDE} pixels are reduced to that. One photo is "
        "predicted at a time, and others wait in line. Results are deleted when you close the page, uploads within the hour."
    )


def report(photo: Image.Image, size: tuple[int, int], seconds: float) -> str:
    """What was done, as HTML."""
    reduced = "" if photo.size == size else f", reduced to {photo.width} x {photo.height} pixels"
    return f"<div class='status'>Photo of {size[0]:,} x {size[1]:,} pixels{reduced}. {seconds:.1f} s.</div>"


def photo_input() -> gr.Image:
    """Gradio's image, but for reading the file: that is ours, with messages for people."""
    photo = gr.Image(label="Photo", sources=["upload", "clipboard", "webcam"], height=300, elem_id="photo")
    # Not a subclass: Gradio writes a .pyi file beside the module of each
    photo.preprocess = lambda payload: None if payload is None else payload.path
    return photo


def scripted_html(script: str, template: str, elem_id: str) -> gr.HTML:
    """A part of the page that a script of ours draws from its value."""
    code = (HERE / script).read_text(encoding="utf-8")
    return gr.HTML({}, html_template=template, js_on_load=code, elem_id=elem_id)


class Page:
    """The page of one model.

    Args:
        model (`str` or `Path`): Folder or Hub name.
        root (`Path`): Folder for all files of all visitors.
        max_upload_mb (`int`): Largest upload, for the text; [`launch`] enforces it.
    """

    def __init__(self, model: str | Path, root: Path, max_upload_mb: int):
        self.pipeline = load_pipeline(model)
        self.folders = SessionFolders(root)
        tasks = self.pipeline.model.config.tasks
        with gr.Blocks(title=TITLE, delete_cache=(60, MAX_AGE_SECONDS)) as self.blocks:
            gr.Markdown(about(Path(model).name if Path(model).is_dir() else str(model), self.pipeline, max_upload_mb))
            with gr.Row():
                with gr.Column():
                    self.photo = photo_input()
                with gr.Column():
                    scene = gr.Button("No photo at hand? Render a room", elem_id="scene")
                    self.status = gr.HTML(INVITATION, elem_id="status")
                    self.archive = gr.DownloadButton("Download all maps (zip)", visible=False, elem_id="archive")
            with gr.Column(visible=False, elem_id="results") as self.results:
                self.table = scripted_html("values.js", "<div class='values'></div>", elem_id="values")
                self.sliders, self.legends = self.lay_out_maps(tasks)
                self.cloud = scripted_html("points.js", POINTS_TEMPLATE, elem_id="points")
            self.photo.change(
                self.show,
                self.photo,
                [self.status, self.archive, self.results, self.table, self.cloud]
                + [*self.sliders.values(), *self.legends.values()],
                concurrency_limit=1,
                trigger_mode="always_last",
                show_progress_on=self.status,
            )
            scene.click(draw_scene, outputs=self.photo, concurrency_limit=1)
            self.blocks.unload(self.forget)

    def lay_out_maps(self, tasks: list[str]) -> tuple[dict[str, gr.ImageSlider], dict[str, gr.HTML]]:
        """A slider between photo and map, and a legend, for each task."""
        sliders, legends = {}, {}
        with gr.Row():
            for task in tasks:
                with gr.Column(min_width=300):
                    gr.HTML(f"<div class='map-title'>{html.escape(get_task(task).title or task)}</div>")
                    sliders[task] = gr.ImageSlider(
                        show_label=False, interactive=False, slider_position=25, elem_classes="map-slider"
                    )
                    legends[task] = gr.HTML()
        return sliders, legends

    def show(self, path: str | None, request: gr.Request) -> dict:
        """Predicts one photo, and fills the page; a file that is no photo gives a message."""
        if path is None:
            self.folders.remove(request.session_hash)
            return self.hide(INVITATION)
        start = time.perf_counter()
        try:
            photo = read_photo(path)
        except UnreadablePhotoError as error:
            return self.hide(f"<div class='status error'>{html.escape(error.reason)}</div>")
        size = photo.size
        photo.thumbnail((MAX_SIDE, MAX_SIDE))
        maps = self.pipeline(photo)["predictions"]
        names = self.pipeline.model.config.task_id2label
        views = write_views(self.folders.renew(request.session_hash), photo, maps, names)
        return self.fill(views) | {self.status: report(photo, size, time.perf_counter() - start)}

    def hide(self, status: str) -> dict:
        """Updates of a page without results."""
        return {self.status: status, self.results: gr.update(visible=False), self.archive: gr.update(visible=False)}

    def fill(self, views: Views) -> dict:
        """Updates of a page with results."""
        return {
            self.results: gr.update(visible=True),
            self.archive: gr.update(value=str(views.archive), visible=True),
            self.table: views.table,
            self.cloud: gr.update(value=views.cloud, visible=views.cloud is not None),
            **{self.sliders[task]: (str(views.photo), str(path)) for task, path in views.maps.items()},
            **{self.legends[task]: text for task, text in views.legends.items()},
        }

    def forget(self, request: gr.Request) -> None:
        """Deletes what a visitor who leaves has left."""
        self.folders.remove(request.session_hash)


@contextmanager
def temporary_root() -> Iterator[Path]:
    """A folder for all files of all visitors, the only one that is served; it is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="sem_demo_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = os.environ["GRADIO_EXAMPLES_CACHE"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        yield Path(folder)


def launch(model: str | Path, *, host: str = "127.0.0.1", port: int | None = None, max_upload_mb: int = 20) -> None:
    """Serves the page until it is interrupted.

    Args:
        model (`str` or `Path`): Folder or Hub name.
        host (`str`): Address to listen on; only this machine by default, `"0.0.0.0"` is everybody.
        port (`int`, *optional*): The first free one from 7860 by default.
        max_upload_mb (`int`): Larger files are refused.
    """
    with temporary_root() as root:
        page = Page(model, root, max_upload_mb)
        page.blocks.queue(max_size=MAX_WAITING, api_open=False)
        page.blocks.launch(
            server_name=host,
            server_port=port,
            max_file_size=max_upload_mb * 2**20,
            theme=gr.themes.Soft(font=SYSTEM_FONT, font_mono=MONOSPACE_FONT),
            css_paths=HERE / "page.css",
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            share=False,
        )
