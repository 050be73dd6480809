"""The pipeline `"multi-task-dense-prediction"`, which predicts every task of an image.

The file imports only what a checkpoint with custom code carries.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForUniversalSegmentation, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .image_files import load_image
from .modeling_outputs import SEMMultiTaskOutput
from .modeling_sem import SEMForSingleTask
from .tasks import get_task


PIPELINE_TAG = "multi-task-dense-prediction"
ImageArray = Image.Image | np.ndarray | Tensor


def find_image(value: str | Path | ImageArray | dict[str, Any], timeout: float | None) -> ImageArray:
    """Returns the image of one input of [`MultiTaskDensePredictionPipeline`], which the image processor reads.

    Raises:
        ValueError: If a row has no image, or a file or URL cannot be read.
    """
    if isinstance(value, dict):
        if "image" not in value:
            raise ValueError(f"A dataset row has its image in the column 'image'; got {sorted(value)}. Rename it.")
        value = value["image"]
    return load_image(value, timeout) if isinstance(value, (str, Path)) else value


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
                Path or URL, image or array as the image processor reads them, or dataset row with the column `image`;
                or a list, dataset or generator of them.
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
        image = self.image_processor.read_image(find_image(inputs, timeout))
        pixel_values = self.image_processor(image, return_tensors="pt")["pixel_values"]
        return {
            "pixel_values": pixel_values.to(self.dtype),
            "target_size": torch.tensor([image.shape[-2:]]),
        }

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Tensor]:
        # A model that has just been trained is in training mode, where every forward pass moves the bases
        outputs = self.model.eval()(pixel_values=model_inputs["pixel_values"], return_dict=True)
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
