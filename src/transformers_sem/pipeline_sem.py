"""`pipeline("multi-task-dense-prediction")`: a photo in, a map per task out."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForSemanticSegmentation, Pipeline
from transformers.image_utils import load_image
from transformers.pipelines import PIPELINE_REGISTRY

from .hub.card import PIPELINE_TAG
from .image_files import read_photo, upright_rgb
from .modeling_sem import SEMMultiTaskOutput
from .visualization.colors import colorize_pair


def read_image(
    image: str | Path | Image.Image | np.ndarray | Tensor | dict[str, Any], timeout: float | None
) -> Image.Image:
    """Reads what [`MultiTaskDensePredictionPipeline`] takes as one image: upright, RGB.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(image, dict):
        if "image" not in image:
            raise ValueError(
                f"A row of a data set has its picture in the column 'image'; got {sorted(image)}. Rename it."
            )
        image = image["image"]
    if isinstance(image, Tensor):
        image = image.cpu().numpy()
    if isinstance(image, np.ndarray):
        return Image.fromarray(read_pixels(image))
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    return read_photo(image) if os.path.isfile(image) else load_image(str(image), timeout=timeout)


def read_pixels(pixels: np.ndarray) -> np.ndarray:
    """Brings an array to uint8 `(height, width, 3)`.

    Raises:
        ValueError: If it is not uint8 `(height, width)`, `(height, width, 3)` or `(3, height, width)`.
    """
    if pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.shape[-1] != 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 2:
        pixels = pixels[..., None].repeat(3, axis=-1)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.size == 0:
        raise ValueError(
            "An image as an array is uint8 (height, width), (height, width, 3) or (3, height, width); got "
            f"{pixels.dtype} {pixels.shape}. Scale its values to 0..255 and give a list of several images."
        )
    return np.ascontiguousarray(pixels)


class MultiTaskDensePredictionPipeline(Pipeline):
    """Every dense prediction of [`SEMForMultiTaskDensePrediction`] for photos of any size."""

    _load_image_processor = True
    _load_processor = False
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_video_processor = False

    def __call__(self, inputs, **kwargs) -> dict[str, dict] | list[dict[str, dict]]:
        """Predicts every task.

        Args:
            inputs (`str`, `Path`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `dict`, a list, data set or generator of them):
                Path or URL, picture, array (uint8, channels first or last), or row of a data set with the column `image`.
            **kwargs:
                `return_images` (`bool`, defaults to `False`), whether to colour the maps, too; `timeout` (`float`), seconds to
                wait for a URL, without it for ever; `batch_size` (`int`, defaults to 1), how many images of a list or data
                set go through the model at once.

        Returns:
            `dict`: for each image `predictions`, `{task: torch.Tensor}` of the size of the image and in the physical units of
            [`SEMImageProcessor.post_process_dense_prediction`], and on request `images`, `{task: PIL.Image.Image}`; for
            several images a list of them, for a data set or generator an iterator.

        Raises:
            ValueError: If an image cannot be read.
        """
        if isinstance(inputs, Iterable) and not isinstance(inputs, (str, dict, list, np.ndarray, Tensor)):
            inputs = (image for image in inputs)  # the base class streams generators, but not every kind of data set
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, timeout: float | None = None, return_images: bool | None = None):
        preprocess = {} if timeout is None else {"timeout": timeout}
        return preprocess, {}, {} if return_images is None else {"return_images": return_images}

    def preprocess(self, inputs, timeout: float | None = None) -> dict[str, Any]:
        """Reads one image, and prepares it."""
        image = read_image(inputs, timeout)
        pixel_values = self.image_processor(image, return_tensors="pt")["pixel_values"]
        return {
            "pixel_values": pixel_values.to(self.dtype),
            "target_size": torch.tensor([[image.height, image.width]]),
        }

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Tensor]:
        outputs = self.model(pixel_values=model_inputs["pixel_values"])
        return {"target_size": model_inputs["target_size"], **outputs.logits}

    def postprocess(self, model_outputs: dict[str, Tensor], return_images: bool = False) -> dict[str, dict]:
        """Brings the logits of one image to its size, and to physical units."""
        target_size, *_ = model_outputs.pop("target_size")
        predictions = self.image_processor.post_process_dense_prediction(
            SEMMultiTaskOutput(logits=dict(model_outputs)), target_sizes=[tuple(target_size.tolist())]
        )[0]
        if not return_images:
            return {"predictions": predictions}
        images = {
            task: Image.fromarray(colorize_pair(task, prediction, None)[0]) for task, prediction in predictions.items()
        }
        return {"predictions": predictions, "images": images}


PIPELINE_REGISTRY.register_pipeline(
    PIPELINE_TAG,
    pipeline_class=MultiTaskDensePredictionPipeline,
    pt_model=AutoModelForSemanticSegmentation,  # the host that [`SEMForMultiTaskDensePrediction`] is registered with
    type="image",
)


__all__ = ["MultiTaskDensePredictionPipeline"]
