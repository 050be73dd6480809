"""The pipeline `"multi-task-dense-prediction"`, which predicts every task of an image.

Reads image files of any mode and orientation. The file imports only what a checkpoint with custom code carries.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from transformers import AutoModelForUniversalSegmentation, Pipeline
from transformers.image_utils import load_image
from transformers.pipelines import PIPELINE_REGISTRY

from .modeling_outputs import SEMMultiTaskOutput
from .modeling_sem import SEMForSingleTask
from .tasks import get_task


PIPELINE_TAG = "multi-task-dense-prediction"
# Pillow decodes these itself; EPS, for example, would start another program
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 256_000_000  # slightly more than the largest phone camera; 768 MB as RGB


class UnreadableImageError(ValueError):
    """Raised when an image file cannot be read; `reason` omits the path."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"Cannot read {path}: {reason}")
        self.reason = reason[0].upper() + reason[1:]


def read_image_file(path: str | Path) -> Image.Image:
    """Reads an image file as RGB in upright orientation; of an animation, the first frame.

    Raises:
        UnreadableImageError: If the file cannot be read, is not an image or has more than `MAX_PIXELS` pixels.
    """
    try:
        with _no_pillow_limit(), Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"an image has at most {MAX_PIXELS // 10**6} million pixels; got {image.width:,} x "
                    f"{image.height:,}. Shrink it first."
                )
            return to_upright_rgb(image)
    except UnidentifiedImageError as error:
        is_empty = Path(path).stat().st_size == 0
        reason = "it is empty (0 bytes)" if is_empty else f"it is not an image of {', '.join(IMAGE_FORMATS)}"
        raise UnreadableImageError(path, f"{reason}. Save it as JPEG or PNG.") from error
    except Exception as error:  # Pillow raises many types of exceptions on damaged files
        raise UnreadableImageError(path, str(error) or f"{type(error).__name__}.") from error


@contextmanager
def _no_pillow_limit() -> Iterator[None]:
    """Disables Pillow's own size limit, which warns and raises at sizes that today's cameras have."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to 8-bit RGB and applies its EXIF orientation.

    16-bit gray is scaled (Pillow's own conversion clips it to white); transparent pixels become white.

    Raises:
        ValueError: If the image holds floating-point values or integers outside 0..65535.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return _scale_16_bits(np.asarray(image)).convert("RGB")
    if image.mode == "F":
        raise ValueError("an image has integer levels; this one holds floating-point values. Save it with 8 bits.")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _scale_16_bits(levels: np.ndarray) -> Image.Image:
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(
            f"a gray image has levels from 0 to 65535; got {levels.min()} to {levels.max()}. Save it with 8 bits."
        )
    return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8))


def read_input(
    image: str | Path | Image.Image | np.ndarray | Tensor | dict[str, Any], timeout: float | None
) -> Image.Image:
    """Converts one input of [`MultiTaskDensePredictionPipeline`] to an upright RGB image.

    Raises:
        ValueError: If the input is not an image or cannot be read.
    """
    if isinstance(image, dict):
        if "image" not in image:
            raise ValueError(f"A dataset row has its image in the column 'image'; got {sorted(image)}. Rename it.")
        image = image["image"]
    if isinstance(image, Tensor):
        image = image.cpu().numpy()
    if isinstance(image, np.ndarray):
        return Image.fromarray(to_channels_last(image))
    if isinstance(image, Image.Image):
        return to_upright_rgb(image)
    return read_image_file(image) if os.path.isfile(image) else load_image(str(image), timeout=timeout)


def to_channels_last(pixels: np.ndarray) -> np.ndarray:
    """Converts an image array to uint8 `(height, width, 3)`.

    Raises:
        ValueError: If it is not uint8 `(height, width)`, `(height, width, 3)` or `(3, height, width)`.
    """
    if pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.shape[-1] != 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 2:
        pixels = pixels[..., None].repeat(3, axis=-1)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.size == 0:
        raise ValueError(
            "An image array is uint8 (height, width), (height, width, 3) or (3, height, width); got "
            f"{pixels.dtype} {pixels.shape}. Scale its values to 0..255, and pass several images as a list."
        )
    return np.ascontiguousarray(pixels)


class MultiTaskDensePredictionPipeline(Pipeline):
    """Predicts all tasks of a [`SEMForMultiTaskDensePrediction`] model for images of any size, in evaluation mode."""

    _load_image_processor = True
    _load_processor = False
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_video_processor = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if isinstance(self.model, SEMForSingleTask):
            raise ValueError(
                f"The pipeline predicts all tasks, but {type(self.model).__name__} returns one. Load the model as "
                "SEMForMultiTaskDensePrediction, or use the pipeline of its task."
            )

    def __call__(self, inputs, **kwargs) -> dict[str, dict] | list[dict[str, dict]]:
        """Predicts all tasks of one or several images.

        Args:
            inputs (`str`, `Path`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `dict`):
                Path or URL, image, array (uint8, channels first or last), or dataset row with the column `image`; or a
                list, dataset or generator of them.
            **kwargs:
                `return_images` (`bool`, defaults to `False`): whether to also return the maps as color images;
                `timeout` (`float`): seconds to wait for a URL, without limit by default;
                `batch_size` (`int`, defaults to 1): number of images of a list or dataset per forward pass.

        Returns:
            `dict`: `predictions`, `{task: torch.Tensor}` of the size of the image, in the physical units of
            [`SEMImageProcessor.post_process_dense_prediction`], and, if requested, `images`, `{task: PIL.Image.Image}`.
            A list of inputs gives a list of dictionaries; a dataset or generator gives an iterator.

        Raises:
            ValueError: If an image cannot be read.
        """
        if isinstance(inputs, Iterable) and not isinstance(inputs, (str, dict, list, np.ndarray, Tensor)):
            inputs = (image for image in inputs)  # the base class streams generators, but not every type of dataset
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, timeout: float | None = None, return_images: bool | None = None):
        preprocess = {} if timeout is None else {"timeout": timeout}
        return preprocess, {}, {} if return_images is None else {"return_images": return_images}

    def preprocess(self, inputs, timeout: float | None = None) -> dict[str, Any]:
        """Reads one image and converts it to the pixel values that the model takes."""
        image = read_input(inputs, timeout)
        pixel_values = self.image_processor(image, return_tensors="pt")["pixel_values"]
        return {
            "pixel_values": pixel_values.to(self.dtype),
            "target_size": torch.tensor([[image.height, image.width]]),
        }

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Tensor]:
        # A model that has just been trained is in training mode, where every forward pass moves the bases
        outputs = self.model.eval()(pixel_values=model_inputs["pixel_values"])
        return {"target_size": model_inputs["target_size"], **outputs.logits}

    def postprocess(self, model_outputs: dict[str, Tensor], return_images: bool = False) -> dict[str, dict]:
        """Converts the logits of one image to predictions in physical units, at the size of the image."""
        target_size, *_ = model_outputs.pop("target_size")
        predictions = self.image_processor.post_process_dense_prediction(
            SEMMultiTaskOutput(logits=dict(model_outputs)), target_sizes=[tuple(target_size.tolist())]
        )[0]
        if not return_images:
            return {"predictions": predictions}
        images = {
            task: Image.fromarray(get_task(task).kind.colorize(prediction.float().cpu().numpy()))
            for task, prediction in predictions.items()
        }
        return {"predictions": predictions, "images": images}


# Custom code of a checkpoint registers it only where there is none, so that it does not replace that of the package
if __name__.startswith("transformers_sem.") or PIPELINE_TAG not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        PIPELINE_TAG,
        pipeline_class=MultiTaskDensePredictionPipeline,
        pt_model=AutoModelForUniversalSegmentation,  # the Auto class of [`SEMForMultiTaskDensePrediction`]
        type="image",
    )


__all__ = ["MultiTaskDensePredictionPipeline"]
