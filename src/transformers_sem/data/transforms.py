"""Transforms of rows for training: joint augmentation of images and labels, and the dataset that applies them.

An image is a uint8 tensor `(3, height, width)`, and labels are `{task: Label}`. The transforms here can be composed with all
of `torchvision.transforms.v2`, see `labels.py`. All random numbers are from the global generator of torch, so a seed fixes
them, and every worker of a `DataLoader` has its own. The image processor normalizes and pads.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import datasets
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import TVTensor
from tqdm.auto import tqdm
from transformers.utils import logging

from ..image_files import to_upright_rgb
from ..task_kinds import CLASS_IDS, is_black_and_white
from ..tasks import VARIANTS, get_task, invalid_labels, register_variant, to_label
from .labels import Label


logger = logging.get_logger(__name__)

Labels = dict[str, Label]


def row_to_tensors(row: dict[str, Any], tasks: Iterable[str]) -> tuple[Tensor, Labels]:
    """Converts a row of images to tensors and checks them.

    Args:
        row (`dict[str, Any]`): "image", a PIL image, and for every task a map, or `None` for a label that is missing.
        tasks (`Iterable[str]`): The tasks to return labels of.

    Returns:
        The image, uint8 `(3, height, width)`, and `{task: label}` with the values that `to_label` returns; all pixels of a
        missing label are invalid.

    Raises:
        ValueError: If the row lacks the image or the column of a task, or a map has another size than the image.
    """
    tasks = list(tasks)
    missing = [column for column in ("image", *tasks) if column not in row]
    if missing or row["image"] is None:
        present = sorted(column for column, value in row.items() if value is not None)
        raise ValueError(
            f"A row needs an image and the columns {tasks}; it lacks {missing or ['image']} and has {present}. The map of a "
            "task that an image has no label of is None."
        )
    image = functional.pil_to_tensor(to_upright_rgb(row["image"]))
    labels = {task: Label(read_label(task, row[task], tuple(image.shape[-2:])), task) for task in tasks}
    for task, label in labels.items():
        if label.shape[-2:] != image.shape[-2:]:
            raise ValueError(
                f"A map must have the size of its image; the {task} map is {tuple(label.shape[-2:])}, the image "
                f"{tuple(image.shape[-2:])} (height, width). Resize the map when you prepare the data."
            )
    return image, labels


class RowError(ValueError):
    """Raised when a row cannot be used; the message is one line that names it."""

    def __init__(self, message: str) -> None:
        # `DataLoader` raises the error of a worker again with the whole traceback as its message, which ends in ours.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


def read_row(
    rows: datasets.Dataset | Sequence[dict[str, Any]], index: int, tasks: Iterable[str]
) -> tuple[Tensor, Labels]:
    """Reads one row as [`row_to_tensors`] does.

    Raises:
        RowError: If it cannot be read or used; the message names row and file.
    """
    try:
        return row_to_tensors(rows[index], tasks)
    except Exception as error:  # PIL raises errors of any type on broken images
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RowError(f"Cannot use {describe_row(rows, index)}: {reason}") from error


def describe_row(rows: datasets.Dataset | Sequence[dict[str, Any]], index: int) -> str:
    """Returns number, id and file of a row, as far as they are known, without reading its images."""
    if not isinstance(rows, datasets.Dataset):
        return f"row {index}"
    name = f" ({rows.select_columns(['id'])[index]['id']!r})" if "id" in rows.column_names else ""
    files = " or ".join(sorted(file["filename"] for file in rows.cache_files)[:3])
    return f"row {index}{name}" + (f" of {files}" if files else "")


def read_label(task: str, value: Image.Image | None, size: tuple[int, int]) -> Tensor:
    """Converts a map to a label; a missing one is invalid everywhere."""
    if value is None:
        return invalid_labels(task, 1, size)[0]
    label = to_label(task, value)
    if get_task(task).num_labels == 2 and is_black_and_white(label):
        logger.warning_once(
            f"A {task} map has no pixel of id 1, and 255 marks pixels without a class. Divide a mask by 255."
        )
    return label


def check_probability(name: str, value: float) -> float:
    """Returns a probability.

    Raises:
        ValueError: If it is not in [0, 1].
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability, 0 to 1; got {value}.")
    return value


class JointTransform(v2.Transform):
    """A change of geometry of one image and its labels."""

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        """Checks that no label is a plain tensor, which torchvision would leave as it is.

        Raises:
            ValueError: If there is a plain tensor besides the image.
        """
        plain = [value for value in flat_inputs if isinstance(value, Tensor) and not isinstance(value, TVTensor)]
        if len(plain) > 1:
            raise ValueError(
                f"A sample is one image with labels of the class `Label`; got {len(plain)} plain tensors. Use "
                "`Label(values, task)`."
            )


class RandomZoom(JointTransform):
    """Resizes image and labels by one factor between `low` and `high`, whose logarithm is drawn uniformly.

    So a range such as 0.5 to 2 enlarges as often as it shrinks, by the same factors, and the depths that are divided by them
    stay unbiased.
    """

    def __init__(self, low: float = 0.5, high: float = 2.0) -> None:
        super().__init__()
        if not 0 < low <= high:
            raise ValueError(f"A range of zooms must be 0 < low <= high; got {low} and {high}.")
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the new size."""
        height, width = v2.query_size(flat_inputs)
        factor = math.exp(torch.empty(()).uniform_(math.log(self.low), math.log(self.high)).item())
        return {"size": [max(1, round(edge * factor)) for edge in (height, width)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resizes the image or a label."""
        return functional.resize(inpt, params["size"], antialias=True)


class RandomCrop(JointTransform):
    """Crops image and labels to at most `size`. The crop is drawn again while one class covers too much of it.

    The class ids are those of the first task of that kind that the image has labels of; without such a task the first crop is
    taken.

    Args:
        size (`tuple[int, int]`): Height and width; an image that is smaller in one of them keeps it.
        max_class_share (`float`): The largest share of the valid pixels of a crop that one class may cover.
        num_tries (`int`): The maximum number of crops that are drawn; the last one is taken in any case.
    """

    def __init__(self, size: tuple[int, int], max_class_share: float = 0.75, num_tries: int = 10) -> None:
        super().__init__()
        if min(size) < 1 or num_tries < 1:
            raise ValueError(f"size and num_tries must be at least 1; got {size} and {num_tries}.")
        self.size, self.num_tries = tuple(size), num_tries
        self.max_class_share = check_probability("max_class_share", max_class_share)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the window."""
        labels = (value for value in flat_inputs if isinstance(value, Label) and value.kind is CLASS_IDS)
        ids = max((label.as_subclass(Tensor) for label in labels), key=has_valid_ids, default=None)
        size = v2.query_size(flat_inputs)
        window = self.sample_window(size)
        for _ in range(self.num_tries - 1):
            if ids is None or self.is_varied(functional.crop(ids, **window)):
                break
            window = self.sample_window(size)
        return window

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crops the image or a label."""
        return functional.crop(inpt, **params)

    def sample_window(self, image_size: tuple[int, int]) -> dict[str, int]:
        """Draws a window anywhere in an image, as arguments of torchvision's `crop`."""
        height, width = (min(wanted, given) for wanted, given in zip(self.size, image_size, strict=True))
        top = int(torch.randint(image_size[0] - height + 1, ()))
        left = int(torch.randint(image_size[1] - width + 1, ()))
        return {"top": top, "left": left, "height": height, "width": width}

    def is_varied(self, ids: Tensor) -> bool:
        """Returns whether some pixels are valid and no class covers more than its share of them."""
        counts = torch.bincount(ids.flatten())[: CLASS_IDS.invalid_value]
        num_valid = int(counts.sum())
        return num_valid > 0 and int(counts.max()) <= self.max_class_share * num_valid


def has_valid_ids(ids: Tensor) -> bool:
    """Returns whether a map of class ids has a pixel with a class."""
    return bool((ids != CLASS_IDS.invalid_value).any())


class RandomPhotometricDistortion(v2.RandomPhotometricDistort):
    """Changes brightness, contrast, saturation and hue of the image, each with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        # The recipe has 32 of 255 levels and 18 of OpenCV's 180 hues; torchvision takes factors, and hue as a share.
        level, hue = 32 / 255, 18 / 180
        super().__init__((1 - level, 1 + level), (0.5, 1.5), (0.5, 1.5), (-hue, hue), check_probability("p", p))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Leaves out torchvision's permutation of the color channels, which the recipe does not have."""
        return {**super().make_params(flat_inputs), "channel_permutation": None}


class TrainingAugmentation(v2.Compose):
    """Zoom, crop, flip and photometric distortion, in this order; the defaults are the paper's.

    Args:
        size (`tuple[int, int]`): Largest height and width of the crop.
        zoom (`tuple[float, float]`): Range of the zoom.
        flip_probability (`float`): Probability of a horizontal flip.
        distortion_probability (`float`): Probability of each of the four changes of color.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        zoom: tuple[float, float] = (0.5, 2.0),
        flip_probability: float = 0.5,
        distortion_probability: float = 0.5,
    ) -> None:
        super().__init__(
            [
                RandomZoom(*zoom),
                RandomCrop(size),
                v2.RandomHorizontalFlip(check_probability("flip_probability", flip_probability)),
                RandomPhotometricDistortion(distortion_probability),
            ]
        )


class TransformedDataset(Dataset):
    """Rows as inputs of the model, one at a time.

    Args:
        dataset (`datasets.Dataset`, or a sequence of rows): Rows with an "image" and a map or `None` for every task.
        tasks (`Iterable[str]`): The tasks to prepare labels for.
        image_processor (`Callable`): Called as `SEMImageProcessor` with one image and its `labels`.
        augmentation (`v2.Transform`, *optional*): `(image, labels) -> (image, labels)`, for example a
            [`TrainingAugmentation`] or any transform of torchvision; none for evaluation.
    """

    def __init__(
        self,
        dataset: datasets.Dataset | Sequence[dict[str, Any]],
        tasks: Iterable[str],
        image_processor: Callable[..., dict[str, Any]],
        augmentation: v2.Transform | None = None,
    ) -> None:
        self.dataset = dataset
        self.tasks = list(tasks)
        self.image_processor = image_processor
        self.augmentation = augmentation
        self.decoded: list[tuple[Tensor, Labels]] | None = None
        self.variants = {task: VARIANTS[task] for task in self.tasks if task in VARIANTS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Adds the variants among the tasks in a worker process that was not forked, where the task table is new."""
        self.__dict__.update(state)
        for name, task in self.variants.items():
            register_variant(name, task)

    def decode_all(self, *, show_progress: bool) -> None:
        """Decodes all rows and keeps them in memory; processes that are forked afterwards share them."""
        indices = tqdm(range(len(self)), desc="decoding", unit="row", disable=not show_progress)
        self.decoded = [read_row(self.dataset, index, self.tasks) for index in indices]

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor | dict[str, Tensor]]:
        """Prepares one row.

        Returns:
            "pixel_values" `(3, height, width)` and "labels", `{task: label}`.
        """
        image, labels = self.decoded[index] if self.decoded else read_row(self.dataset, index, self.tasks)
        if self.augmentation is not None:
            image, labels = self.augmentation(image, labels)
        batch = self.image_processor(
            [image], labels={task: [label.as_subclass(Tensor)] for task, label in labels.items()}, return_tensors="pt"
        )
        return {
            "pixel_values": batch["pixel_values"][0],
            "labels": {task: label[0] for task, label in batch["labels"].items()},
        }
