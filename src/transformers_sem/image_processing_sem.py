"""Image processor of SEM: images and maps to tensors, and logits to predictions at the size of the image."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF
from transformers import PreTrainedConfig
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import logging

from .backbone import pretraining_normalization
from .image_files import (
    MAX_PIXELS,
    check_layout,
    check_levels,
    load_image,
    to_pixel_tensor,
    to_upright,
    to_upright_rgb,
)
from .task_kinds import CLASS_IDS, METRES, UNIT_VECTORS, TaskKind, is_black_and_white
from .tasks import get_task, invalid_labels, resize_label, to_label


logger = logging.get_logger(__name__)


class TaskLabels(dict):
    """Labels `{task: tensor}` of a batch. A number or a slice selects images, so that `datasets` can split the batch by row."""

    def __getitem__(self, key: str | int | slice) -> Tensor | dict[str, Tensor]:
        """Returns the labels of a task or, for a number or slice, of all tasks of these images."""
        if isinstance(key, (int, slice)):
            return {task: labels[key] for task, labels in self.items()}
        return super().__getitem__(key)


# Arguments of other processors of transformers that would have no effect here, and what to do instead
OTHER_ARGUMENTS = {
    "do_reduce_labels": "Give class ids from 0, and 255 for pixels without a class.",
    "do_center_crop": "Crop images and maps before.",
    "reduce_labels": "Give class ids from 0, and 255 for pixels without a class.",
    "ignore_index": "Pixels without a class have the id 255.",
    "do_flip_channel_order": "Give RGB images, as in `image[..., ::-1]` of OpenCV's.",
    "keep_aspect_ratio": "Set `do_pad=True` and `pad_size`.",
    "ensure_multiple_of": "The model pads images itself.",
    "size_divisor": "The model pads images itself.",
    "segmentation_maps": "Give `maps={task: ...}`.",
}
MAX_EDGE = 10_000  # pixels: an image of that height and width takes 1.2 GB
MAX_NUMBER = 1e12  # of a setting; float32 holds the product of any three
MAX_BAND_VALUES = 2**24  # of logits that are resized at once: 64 MiB of float32


class SEMBatchFeature(BatchFeature):
    """A batch whose `labels` are [`TaskLabels`]."""

    def to(self, *args, **kwargs) -> "SEMBatchFeature":
        """Moves and casts the images; moves the labels without a cast, because bfloat16 metres lose centimetres."""
        super().to(*args, **kwargs)
        device = self["pixel_values"].device if isinstance(self["pixel_values"], Tensor) else None
        if device is not None and "labels" in self:
            self["labels"] = TaskLabels({task: labels.to(device) for task, labels in self["labels"].items()})
        return self


class SEMImageProcessor(TorchvisionBackend):
    r"""Prepares images together with the maps of any tasks, and post-processes logits.

    Images of a batch get a common size in one of two ways. `do_resize` stretches them to `size`. `do_pad` centers them in
    `pad_size`; images that are larger are shrunk first, with their aspect ratio kept. With both, the padded image is stretched,
    so that all images are scaled alike. The field's evaluation protocol is `do_resize=False, do_pad=True`. Post-processing
    reverts both, given the original sizes. It reads the attributes of the processor, so set those instead of overriding them
    for one call.

    Args:
        do_resize (`bool`, *optional*, defaults to `True`):
            Whether to stretch images (bilinear) and labels (by the rule of their kind, see [`~tasks.resize_label`]) to
            `size`.
        size (`dict[str, int]`, *optional*, defaults to `{"height": 448, "width": 576}`):
            Size to resize to.
        do_rescale (`bool`, *optional*, defaults to `True`):
            Whether to multiply the pixels by `rescale_factor`, 1 / 255.
        do_normalize (`bool`, *optional*, defaults to `True`):
            Whether to normalize by `image_mean` and `image_std`, ImageNet's by default.
        do_pad (`bool`, *optional*, defaults to `False`):
            Whether to pad around the image: pixels with 0 after normalization, labels with their invalid value.
        pad_size (`dict[str, int]`, *optional*):
            Size to pad to, before `size` applies; `None` is the largest height and width of the batch.
        image_mean (`list[float]`, *optional*, defaults to ImageNet's):
            Mean of the pixels, after rescaling, of the images that the encoder was pretrained on; see [`for_backbone`].
        image_std (`list[float]`, *optional*, defaults to ImageNet's):
            Their standard deviation.
    """

    model_input_names = ["pixel_values"]
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 448, "width": 576}
    default_to_square = True
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_pad = False
    do_convert_rgb = True

    def __init__(self, **kwargs: Unpack[ImagesKwargs]):
        _refuse_other_arguments(kwargs)
        check_settings(kwargs)
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> "SEMImageProcessor":
        """Builds a processor from the values of a file; `kwargs` replace some. transformers ignores those it does not know."""
        _refuse_other_arguments(kwargs)
        return super().from_dict(image_processor_dict, **kwargs)

    @classmethod
    def for_backbone(
        cls, backbone_config: PreTrainedConfig, source: str | None = None, **kwargs: Unpack[ImagesKwargs]
    ) -> "SEMImageProcessor":
        """Builds a processor that normalizes pixels as in the pretraining of an encoder.

        Args:
            backbone_config (`PreTrainedConfig`):
                Configuration of the encoder.
            source (`str`, *optional*):
                Folder or Hub name of the weights of a transformers encoder; `None` is the place that its configuration was
                loaded from.
            **kwargs:
                Any attribute of the processor; `image_mean` and `image_std` replace those of the encoder.
        """
        mean, std = pretraining_normalization(backbone_config, source)
        return cls(**{"image_mean": mean, "image_std": std, **kwargs})

    def preprocess(
        self,
        images: ImageInput,
        maps: dict[str, ImageInput] | None = None,
        labels: dict[str, list[Tensor]] | None = None,
        **kwargs: Unpack[ImagesKwargs],
    ) -> BatchFeature:
        r"""Prepares a batch.

        Args:
            images (`ImageInput`):
                One image or several. PIL images and the paths and URLs of files may have any mode and EXIF orientation:
                they become upright RGB, 16-bit gray is scaled and transparent pixels are white. Arrays and tensors, channels
                first or last or gray without channels, hold levels 0..255 (for values in [0, 1] set
                `do_rescale=False`). Maps and target sizes are those of the upright image.
            maps (`dict[str, ImageInput]`, *optional*):
                For each task one map per image, of the image's size, as [`~tasks.to_label`] reads them; `None` for an
                image without a map.
            labels (`dict[str, list[torch.Tensor]]`, *optional*):
                The same as labels that [`~tasks.to_label`] has returned. They are not checked again.
            **kwargs:
                Any attribute of the processor, for this call only.

        Returns:
            `BatchFeature`: `pixel_values` of shape `(batch_size, 3, height, width)` and, with maps, `labels`
            `{task: (batch_size, height, width) or (batch_size, channels, height, width)}`.

        Raises:
            ValueError: If there is no image, an image cannot be read or leaves open which value is white, images of a batch
                have several sizes that nothing brings to one, or a map's task, number, size, shape or values do not fit;
                a mask of 0 and 255, for example, is no map of two classes.
        """
        _refuse_other_arguments(kwargs)
        check_settings(kwargs)
        for name, value in (("maps", maps), ("labels", labels)):
            if value is not None and not isinstance(value, dict):
                raise ValueError(f"`{name}` is {{task: {name}}}; got {type(value).__name__}.")
        return super().preprocess(images, maps, labels, **kwargs)

    def read_image(self, image: str | Path | Image.Image | np.ndarray | Tensor) -> Tensor:
        """Reads one image as `preprocess` does: RGB `(3, height, width)`, upright, before resizing."""
        return self.process_image(image, do_convert_rgb=self.do_convert_rgb)

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> list:
        images = _flatten(images)
        if not images:
            raise ValueError("An empty list of images was given; give at least one image.")
        return images

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, device=None, **kwargs) -> Tensor:
        """Reads one image as RGB `(3, height, width)`: upright, uint8, or float32 where the image is floating point."""
        if isinstance(image, (str, Path)):
            image = load_image(image)
        if isinstance(image, Image.Image):
            image = to_upright_rgb(image) if do_convert_rgb else to_upright(image)
        elif isinstance(image, (np.ndarray, Tensor)):
            if isinstance(image, np.ndarray) and input_data_format is None:
                check_layout(image)
            image = to_pixel_tensor(image)
        else:
            raise ValueError(f"An image is a path, a PIL image, an array or a tensor; got {type(image).__name__}.")
        return super().process_image(image, do_convert_rgb, input_data_format, device, **kwargs)

    def convert_to_rgb(self, image: Tensor, input_data_format: str | ChannelDimension | None = None) -> Tensor:
        """Converts gray or RGBA `(channels, height, width)` to RGB. transformers takes floating-point RGBA in [0, 1] only."""
        if image.is_floating_point() and image.shape[0] == 4 and (image.min() < 0 or image.max() > 1):
            check_levels(image)
            return super().convert_to_rgb(image / 255, input_data_format) * 255
        return super().convert_to_rgb(image, input_data_format)

    def _preprocess_image_like_inputs(
        self, images, maps, labels, do_convert_rgb, input_data_format, return_tensors=None, device=None, **kwargs
    ) -> BatchFeature:
        images = self._prepare_image_like_inputs(
            images=images, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, device=device
        )
        for image in images:
            check_levels(image, kwargs["rescale_factor"] if kwargs["do_rescale"] else 1.0)
        sizes = [tuple(image.shape[-2:]) for image in images]
        layout = {key: kwargs[key] for key in ("do_resize", "size", "do_pad", "pad_size")}
        content_sizes, padded_sizes = self._plan_sizes(sizes, **layout)
        if return_tensors is not None and len(set(padded_sizes)) > 1:
            raise ValueError(
                f"Images of a batch have one size; got (height, width) {sorted(set(padded_sizes))}. Set do_resize=True or "
                "do_pad=True, or pass them one by one."
            )
        pixel_values = [
            self._preprocess_image(image, content_size, padded_size, **kwargs)
            for image, content_size, padded_size in zip(images, content_sizes, padded_sizes, strict=True)
        ]
        batch = SEMBatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)
        if maps is not None:
            labels = {**(labels or {}), **{task: self._read_maps(task, maps[task], sizes) for task in maps}}
        if labels is not None:
            layout = images, content_sizes, padded_sizes
            maps = {task: self._preprocess_labels(task, labels[task], *layout) for task in labels}
            batch["labels"] = TaskLabels({task: self._stack(maps[task], return_tensors) for task in maps})
        return batch

    @staticmethod
    def _plan_sizes(sizes, do_resize, size: SizeDict, do_pad, pad_size: SizeDict | None):
        """Returns for each image the size it is resized to and the size it is padded to."""
        if do_resize and not (size and size.height and size.width):
            raise ValueError(f"`size` needs a height and a width; got {size}.")
        if not do_pad:
            content_sizes = [(size.height, size.width)] * len(sizes) if do_resize else list(sizes)
            return content_sizes, content_sizes
        if pad_size is not None and not (pad_size.height and pad_size.width):
            raise ValueError(f"`pad_size` needs a height and a width; got {pad_size}.")
        if pad_size is None:
            padded_size = (max(height for height, _ in sizes), max(width for _, width in sizes))
            content_sizes = list(sizes)
        else:
            padded_size = (pad_size.height, pad_size.width)
            content_sizes = [shrink_to_fit(image_size, padded_size) for image_size in sizes]
        if do_resize:  # in one step: the content is resized to its share of the stretched image
            stretched_size = (size.height, size.width)
            content_sizes = [stretch(content_size, padded_size, stretched_size) for content_size in content_sizes]
            padded_size = stretched_size
        return content_sizes, [padded_size] * len(sizes)

    def plan_sizes(self, sizes: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Returns for images of these (height, width) the sizes they are resized to and the sizes they are padded to."""
        size, pad_size = (None if size is None else SizeDict(**dict(size)) for size in (self.size, self.pad_size))
        return self._plan_sizes(sizes, self.do_resize, size, self.do_pad, pad_size)

    def _preprocess_image(
        self,
        image,
        content_size,
        padded_size,
        resample,
        do_rescale,
        rescale_factor,
        do_normalize,
        image_mean,
        image_std,
        **_,
    ) -> Tensor:
        if tuple(image.shape[-2:]) != content_size:
            image = self.resize(image, SizeDict(height=content_size[0], width=content_size[1]), resample=resample)
        for name, values in (("image_mean", image_mean), ("image_std", image_std)):
            if do_normalize and isinstance(values, (list, tuple)) and len(values) not in (1, len(image)):
                raise ValueError(f"`{name}` has one value per channel, {len(image)}; got {list(values)}.")
        image = self.rescale_and_normalize(
            image.unsqueeze(0), do_rescale, rescale_factor, do_normalize, image_mean, image_std
        )
        return tvF.pad(image[0], center_padding(content_size, padded_size))

    @staticmethod
    def _read_maps(task: str, maps: ImageInput, image_sizes: list[tuple[int, int]]) -> list[Tensor]:
        """Reads one label per image, of the size of the image."""
        num_channels = get_task(task).kind.num_channels
        if not isinstance(maps, Sequence) or isinstance(maps, (str, bytes)):
            ndim = getattr(maps, "ndim", 0)  # 0 for a PIL image
            is_batch = ndim == 4 or (ndim == 3 and num_channels <= 1 and len(maps) == len(image_sizes))
            maps = list(maps) if is_batch else [maps]
        if len(maps) != len(image_sizes):
            raise ValueError(f"Give one {task} map per image; got {len(maps)} for {len(image_sizes)} images.")
        labels = [
            invalid_labels(task, 1, size)[0] if task_map is None else to_label(task, task_map)
            for task_map, size in zip(maps, image_sizes, strict=True)
        ]
        for label, image_size in zip(labels, image_sizes, strict=True):
            if tuple(label.shape[-2:]) != image_size:
                raise ValueError(
                    f"A {task} map has the size of its image, {image_size[0]} x {image_size[1]}; got "
                    f"{label.shape[-2]} x {label.shape[-1]}."
                )
            check_mask(task, label)
        return labels

    def _preprocess_labels(self, task, labels, images, content_sizes, padded_sizes) -> list[Tensor]:
        """Resizes and pads the labels of a task as their images."""
        layouts = zip(labels, images, content_sizes, padded_sizes, strict=True)
        return [self._preprocess_label(task, label.to(image.device), *sizes) for label, image, *sizes in layouts]

    @staticmethod
    def _preprocess_label(
        task: str, label: Tensor, content_size: tuple[int, int], padded_size: tuple[int, int]
    ) -> Tensor:
        if tuple(label.shape[-2:]) != content_size:
            label = resize_label(task, label, content_size)
        left, top, right, bottom = center_padding(content_size, padded_size)
        return F.pad(label, [left, right, top, bottom], value=get_task(task).kind.invalid_value)

    @staticmethod
    def _stack(labels: list[Tensor], return_tensors) -> Tensor | list:
        if return_tensors is None:
            return labels
        stacked = torch.stack(labels)
        return stacked if return_tensors in ("pt", "PYTORCH") else stacked.cpu().numpy()

    # ------------------------------------------------------------------------------------------------------------------

    def post_process_dense_prediction(
        self, outputs, target_sizes: list[tuple[int, int]] | Tensor | None = None
    ) -> list[dict[str, Tensor]]:
        """Converts logits to predictions in physical units.

        Args:
            outputs (`SEMMultiTaskOutput`):
                Output of [`SEMForMultiTaskDensePrediction`].
            target_sizes (`list[tuple[int, int]]`, *optional*):
                Original (height, width) of each image; the padding is cropped and the logits are resized to it. Without
                it, predictions have the size of the logits.

        Returns:
            `list[dict[str, torch.Tensor]]`: `{task: prediction}` of each image: class ids int64 `(height, width)`,
            probabilities `(height, width)`, metres `(height, width)`, unit vectors `(3, height, width)`.

        Raises:
            ValueError: If there are not as many target sizes as images, or they are no sizes.
        """
        task_logits = _fields_of(outputs).get("logits")
        if not isinstance(task_logits, Mapping) or not task_logits:
            raise ValueError(
                f"The output has the fields {list(outputs)}; `logits` of several tasks are those of "
                "SEMForMultiTaskDensePrediction. Load the model as such, or use the post-processing of one task."
            )
        predicted = {
            task: self._predict(get_task(task).kind, logits, target_sizes) for task, logits in task_logits.items()
        }
        batch_size = len(next(iter(predicted.values())))
        return [{task: maps[index] for task, maps in predicted.items()} for index in range(batch_size)]

    def post_process_semantic_segmentation(
        self,
        outputs,
        target_sizes: list[tuple[int, int]] | Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Returns the class ids `(height, width)` of each image.

        Args:
            outputs (`SemanticSegmenterOutput` or `SEMMultiTaskOutput`):
                Output of the model. Of several tasks, the first one that predicts class ids is taken.
            target_sizes (`list[tuple[int, int]]`, *optional*):
                Original (height, width) of each image.
            return_segmentation_scores (`bool`, *optional*, defaults to `False`):
                Whether to return for each image a [`SemanticSegmentationPostProcessorOutput`] with the logits beside the
                ids.

        Raises:
            ValueError: If no task predicts class ids, there are not as many target sizes as images, or they are no sizes.
        """
        logits = _maps_of(outputs, CLASS_IDS, "logits")
        ids = self._predict(CLASS_IDS, logits, target_sizes)
        if not return_segmentation_scores:
            return ids
        return [
            SemanticSegmentationPostProcessorOutput(data={"segmentation": segmentation, "segmentation_scores": scores})
            for segmentation, scores in zip(ids, self._restore_logits(logits, target_sizes), strict=True)
        ]

    def post_process_depth_estimation(
        self, outputs, target_sizes: list[tuple[int, int]] | Tensor | None = None
    ) -> list[dict[str, Tensor]]:
        """Returns `{"predicted_depth": (height, width)}` in metres of each image.

        Args:
            outputs (`DepthEstimatorOutput` or `SEMMultiTaskOutput`):
                Output of the model. Of several tasks, the first one that predicts metres is taken.
            target_sizes (`list[tuple[int, int]]`, *optional*):
                Original (height, width) of each image.

        Raises:
            ValueError: If no task predicts metres, there are not as many target sizes as images, or they are no sizes.
        """
        depth = _maps_of(outputs, METRES, "predicted_depth")
        depth = depth.unsqueeze(1) if depth.ndim == 3 else depth
        return [{"predicted_depth": metres} for metres in self._predict(METRES, depth, target_sizes)]

    def post_process_normal_estimation(
        self, outputs, target_sizes: list[tuple[int, int]] | Tensor | None = None
    ) -> list[dict[str, Tensor]]:
        """Returns `{"normals": (3, height, width)}` of each image: unit vectors (x right, y down, z forward).

        Args:
            outputs (`SEMNormalEstimatorOutput` or `SEMMultiTaskOutput`):
                Output of the model. Of several tasks, the first one that predicts unit vectors is taken.
            target_sizes (`list[tuple[int, int]]`, *optional*):
                Original (height, width) of each image.

        Raises:
            ValueError: If no task predicts unit vectors, there are not as many target sizes as images, or they are no sizes.
        """
        normals = _maps_of(outputs, UNIT_VECTORS, "normals")
        return [{"normals": vectors} for vectors in self._predict(UNIT_VECTORS, normals, target_sizes)]

    def _predict(self, kind: TaskKind, logits: Tensor, target_sizes) -> list[Tensor]:
        """Returns the prediction for each image at its original size."""
        return [predict_map(kind, *cropped) for cropped in self._crop_logits(logits, target_sizes)]

    def _restore_logits(self, logits: Tensor, target_sizes) -> list[Tensor]:
        """Returns the logits of each image at its original size, without the padding."""
        return [resize_logits(*cropped) for cropped in self._crop_logits(logits, target_sizes)]

    def _crop_logits(self, logits: Tensor, target_sizes) -> list[tuple[Tensor, tuple[int, int]]]:
        """Returns the logits of each image without the padding, and its original size."""
        if target_sizes is None:
            return [(image_logits, tuple(image_logits.shape[-2:])) for image_logits in logits]
        sizes = _read_target_sizes(target_sizes)
        if len(sizes) != len(logits):
            raise ValueError(f"Give one target size per image; got {len(sizes)} for a batch of {len(logits)}.")
        content_sizes, padded_sizes = self.plan_sizes(sizes)
        cropped = map(crop_logits, logits, content_sizes, padded_sizes)
        return list(zip(cropped, sizes, strict=True))


def _refuse_other_arguments(kwargs: dict) -> None:
    for name, remedy in OTHER_ARGUMENTS.items():
        if kwargs.get(name) is not None and kwargs[name] is not False:
            raise ValueError(f"SEMImageProcessor has no `{name}`. {remedy}")
    methods = sorted(name for name in kwargs if callable(getattr(SEMImageProcessor, name, None)))
    if methods:  # transformers would set them
        raise ValueError(f"An image processor sets attributes; {methods} are parts of its class. Leave them out.")


def _fields_of(outputs) -> Mapping:
    """Returns the output of a model with its fields by name."""
    if isinstance(outputs, Mapping):
        return outputs
    raise ValueError(
        f"Post-processing takes the output of a model, with its fields by name; got {type(outputs).__name__}. Call the model "
        "without return_dict=False."
    )


def _read_target_sizes(target_sizes) -> list[tuple[int, int]]:
    """Returns target sizes, of which numbers and pairs may be tensors or arrays."""
    try:
        sizes = [tuple(edge.item() if hasattr(edge, "item") else edge for edge in size) for size in target_sizes]
    except (TypeError, ValueError, RuntimeError):  # a number in place of a pair, or several in place of one
        sizes = [()]
    if not all(map(_is_target_size, sizes)):
        raise ValueError(
            f"`target_sizes` has the (height, width) of each image, whole numbers from 1, of at most {MAX_PIXELS:,} pixels; got "
            f"{target_sizes!r}."
        )
    return sizes


def _is_target_size(size: tuple) -> bool:
    is_whole = all(isinstance(edge, Integral) and not isinstance(edge, bool) and edge > 0 for edge in size)
    return len(size) == 2 and is_whole and size[0] * size[1] <= MAX_PIXELS


def _maps_of(outputs, kind: TaskKind, field: str) -> Tensor:
    """Returns the maps of a model for one task, or those of the first task of a kind."""
    maps = _fields_of(outputs).get(field, outputs.get("logits"))
    if isinstance(maps, Tensor):
        return maps
    for task, logits in (maps or {}).items():
        if get_task(task).kind is kind:
            return logits
    raise ValueError(
        f"An output with `{field}`, or with a task that predicts {kind.values}, is expected; got {list(maps or outputs)}. "
        "Use post_process_dense_prediction, or the post-processing of that task."
    )


def _flatten(images: ImageInput) -> list:
    """Returns the images of nested lists and of arrays of several images."""
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
        return [image for item in images for image in _flatten(item)]
    is_batch = isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4
    return list(images) if is_batch else [images]


def is_edge(value: Any) -> bool:
    """Returns whether a value is a number of pixels that an image may be high or wide."""
    return isinstance(value, Integral) and not isinstance(value, bool) and 1 <= value <= MAX_EDGE


def check_settings(settings: dict[str, Any]) -> None:
    """Checks the settings of a processor.

    Raises:
        ValueError: If one has a value that no image can be processed with.
    """
    _check_sizes(settings)
    _check_numbers(settings)
    for name in ("do_resize", "do_rescale", "do_normalize", "do_pad"):
        if not isinstance(settings.get(name), (bool, int, NoneType)):
            raise ValueError(f"`{name}` is true or false; got {settings[name]!r}.")
    if settings.get("input_data_format") not in (None, *ChannelDimension):
        raise ValueError(
            f"`input_data_format` is 'channels_first' or 'channels_last'; got {settings['input_data_format']!r}."
        )
    if settings.get("data_format") not in (None, ChannelDimension.FIRST):
        raise ValueError(f"`data_format` is 'channels_first'; got {settings['data_format']!r}. Permute the result.")
    if settings.get("resample") not in (None, *range(4)):
        raise ValueError(f"`resample` is a filter of Pillow, 0 to 3; got {settings['resample']!r}.")
    device = settings.get("device")
    try:
        has_values = device is None or torch.device(device).type != "meta"
    except (RuntimeError, TypeError, OverflowError):
        has_values = False
    if not has_values:
        raise ValueError(f"`device` is the name of a device, such as 'cpu'; got {device!r}.")


def _check_sizes(settings: dict[str, Any]) -> None:
    for name in ("size", "pad_size", "crop_size"):
        value = settings.get(name)
        if value is not None and not _is_size(value):
            raise ValueError(f"`{name}` is {{'height': ..., 'width': ...}} of 1 to {MAX_EDGE} pixels; got {value!r}.")


def _is_size(value: Any) -> bool:
    if isinstance(value, (Mapping, SizeDict)):
        edges = [edge for edge in dict(value).values() if edge is not None]
        return len(edges) > 0 and all(map(is_edge, edges))
    edges = value if isinstance(value, (list, tuple)) else (value, value)
    return len(edges) == 2 and all(map(is_edge, edges))


def _check_numbers(settings: dict[str, Any]) -> None:
    for name in ("image_mean", "image_std", "rescale_factor"):
        value = settings.get(name)
        numbers = value if isinstance(value, (list, tuple)) and name != "rescale_factor" else [value]
        is_usable = len(numbers) > 0 and all(isinstance(n, Real) and abs(n) < MAX_NUMBER for n in numbers)
        if value is not None and not (is_usable and (name == "image_mean" or min(numbers) > 1 / MAX_NUMBER)):
            rule = "finite numbers" if name == "image_mean" else "finite and above 0"
            raise ValueError(f"`{name}` is {rule}; got {value!r}.")


def check_mask(task: str, label: Tensor) -> None:
    """Checks that a label of class ids is no mask of 0 and 255, whose foreground would be invalid.

    Most maps of many classes hold others, so one that holds 0 and 255 alone is warned of, once.

    Raises:
        ValueError: If it is, and the task has two classes.
    """
    spec = get_task(task)
    if spec.kind is not CLASS_IDS or not is_black_and_white(label):
        return
    message = f"A {task} map holds 0 and 255 alone, and 255 marks pixels without a class. Divide a mask by 255"
    if spec.num_labels == 2:
        raise ValueError(f"{message}; pass a map whose 255 is invalid as `labels` of the image processor.")
    logger.warning_once(f"{message}.")


def shrink_to_fit(size: tuple[int, int], largest: tuple[int, int]) -> tuple[int, int]:
    """Returns the largest size of the same aspect ratio that fits into `largest`, never larger than `size`."""
    scale = min(1.0, largest[0] / size[0], largest[1] / size[1])
    return tuple(max(1, min(round(edge * scale), limit)) for edge, limit in zip(size, largest, strict=True))


def stretch(size: tuple[int, int], from_size: tuple[int, int], to_size: tuple[int, int]) -> tuple[int, int]:
    """Returns what becomes of `size` where `from_size` is stretched to `to_size`."""
    edges = zip(size, from_size, to_size, strict=True)
    return tuple(max(1, round(edge * stretched / full)) for edge, full, stretched in edges)


def center_padding(size: tuple[int, int], padded_size: tuple[int, int]) -> list[int]:
    """Returns the left, top, right and bottom padding around a centered image; an odd pixel goes right and bottom."""
    rows, columns = padded_size[0] - size[0], padded_size[1] - size[1]
    return [columns // 2, rows // 2, columns - columns // 2, rows - rows // 2]


def crop_logits(logits: Tensor, content_size: tuple[int, int], padded_size: tuple[int, int]) -> Tensor:
    """Crops logits `(channels, height, width)` of a padded image to its content, where it is padded."""
    if content_size == padded_size:
        return logits
    left, top, _, _ = center_padding(content_size, padded_size)
    logits = F.interpolate(logits[None], size=padded_size, mode="bilinear", align_corners=False)[0]
    return logits[..., top : top + content_size[0], left : left + content_size[1]]


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes logits `(channels, height, width)`."""
    if tuple(logits.shape[-2:]) == size:
        return logits
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def predict_map(kind: TaskKind, logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes logits `(channels, height, width)` to `size` and converts them to a prediction.

    Large ones are computed one band of rows at a time, so that many classes at the size of a camera's images do not fill the memory.
    """
    num_rows = max(1, MAX_BAND_VALUES // (len(logits) * size[1]))
    if num_rows >= size[0]:
        return kind.predict(resize_logits(logits, size)[None])[0]
    prediction = None
    for top in range(0, size[0], num_rows):
        bottom = min(top + num_rows, size[0])
        band = kind.predict(upsample_rows(logits, size, top, bottom)[None])[0]
        if prediction is None:
            prediction = band.new_empty(*band.shape[:-2], *size)
        prediction[..., top:bottom, :] = band
    return prediction


def upsample_rows(logits: Tensor, size: tuple[int, int], start: int, stop: int) -> Tensor:
    """Upsamples logits `(num_labels, h, w)` to `size` and returns rows `start` to `stop`; bilinear, as in post-processing."""
    position = (torch.arange(start, stop, device=logits.device) + 0.5) * (logits.shape[1] / size[0]) - 0.5
    position = position.clamp(min=0)
    above = position.long().clamp(max=logits.shape[1] - 1)
    below = (above + 1).clamp(max=logits.shape[1] - 1)
    dtype = torch.promote_types(logits.dtype, position.dtype)  # in half precision, too, as `interpolate` does inside
    rows = torch.lerp(logits[:, above].to(dtype), logits[:, below].to(dtype), (position - above)[:, None].to(dtype))
    rows = rows.to(logits.dtype)
    return F.interpolate(rows[None], size=(stop - start, size[1]), mode="bilinear", align_corners=False)[0]


__all__ = ["SEMImageProcessor"]
