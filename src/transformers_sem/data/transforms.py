"""The joint training augmentation: image and maps stay aligned, and the task table says what happens to values.

Labels are `{task: tv_tensors.Mask}` in the label format of their task, an image is a uint8 `tv_tensors.Image` `(3, H, W)`.
All randomness comes from torch's global generator, so a seed fixes it and every `DataLoader` worker draws its own.
Each is a transform of torchvision's v2, called with `(image, labels)`, and composes with others. Normalising and padding
belong to the image processor.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from transformers_sem.task_kinds import CLASS_IDS

from ..tasks import get_task, resize_label, to_label


Labels = dict[str, tv_tensors.Mask]


def row_to_tensors(row: dict[str, Any], tasks: Iterable[str]) -> tuple[tv_tensors.Image, Labels]:
    """Turns a row of pictures into tensors.

    Args:
        row (`dict[str, Any]`): "image", a PIL image, and a map for every task.
        tasks (`Iterable[str]`): The tasks whose maps are wanted.

    Returns:
        The image, uint8 `(3, height, width)`, and task name to label in the task's format.

    Raises:
        ValueError: If the row lacks the image or a map, or a map has another size than the image.
    """
    tasks = list(tasks)
    missing = [column for column in ("image", *tasks) if row.get(column) is None]
    if missing:
        present = sorted(column for column, value in row.items() if value is not None)
        raise ValueError(f"A row needs the image and a map for each of {tasks}; it lacks {missing} and has {present}.")
    image = functional.to_image(row["image"].convert("RGB"))
    labels = {task: tv_tensors.Mask(to_label(task, row[task])) for task in tasks}
    for task, label in labels.items():
        if label.shape[-2:] != image.shape[-2:]:
            raise ValueError(
                f"A map must have the size of its image; the {task} map is {tuple(label.shape[-2:])}, the image "
                f"{tuple(image.shape[-2:])} (height, width). Resize the map when you prepare the data."
            )
    return image, labels


def check_probability(name: str, value: float) -> float:
    """Returns a probability.

    Raises:
        ValueError: If it is none.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability, 0 to 1; got {value}.")
    return value


class RandomZoom(v2.Transform):
    """Enlarges or shrinks image and labels by one factor, drawn evenly from `low` to `high`."""

    def __init__(self, low: float = 0.5, high: float = 2.0) -> None:
        super().__init__()
        if not 0 < low <= high:
            raise ValueError(f"A range of zooms must be 0 < low <= high; got {low} and {high}.")
        self.low, self.high = low, high

    def forward(self, image: tv_tensors.Image, labels: Labels) -> tuple[tv_tensors.Image, Labels]:
        """Zooms one sample."""
        height, width = image.shape[-2:]
        drawn = torch.empty(()).uniform_(self.low, self.high).item()
        size = [round(height * drawn), round(width * drawn)]
        # Pixels are whole, so the zoom that takes place differs a little from the one drawn.
        zoom = (size[0] / height + size[1] / width) / 2
        zoomed = {}
        for task, label in labels.items():
            # A plain tensor, not a Mask: torchvision has its own rules for masks.
            resized = resize_label(task, label.as_subclass(Tensor), size)
            zoomed[task] = tv_tensors.Mask(get_task(task).kind.zoom_values(resized, zoom))
        return functional.resize(image, size, antialias=True), zoomed


class RandomCrop(v2.Transform):
    """Crops image and labels to at most `size`, and again while one class fills the crop.

    The first task whose labels are class ids is the judge; without such a task the first crop is taken.

    Args:
        size (`tuple[int, int]`): Height and width; an image that is smaller in one of them keeps it.
        max_class_share (`float`): The share of the crop's valid pixels that no class should exceed.
        num_tries (`int`): After so many crops the last one is taken as it is.
    """

    def __init__(self, size: tuple[int, int], max_class_share: float = 0.75, num_tries: int = 10) -> None:
        super().__init__()
        if min(size) < 1 or num_tries < 1:
            raise ValueError(f"size and num_tries must be at least 1; got {size} and {num_tries}.")
        self.size, self.num_tries = tuple(size), num_tries
        self.max_class_share = check_probability("max_class_share", max_class_share)

    def forward(self, image: tv_tensors.Image, labels: Labels) -> tuple[tv_tensors.Image, Labels]:
        """Crops one sample."""
        judge = next((task for task in labels if get_task(task).kind is CLASS_IDS), None)
        window = self.sample_window(image)
        for _ in range(self.num_tries - 1):
            if judge is None or self.is_varied(functional.crop(labels[judge], *window), judge):
                break
            window = self.sample_window(image)
        return functional.crop(image, *window), {
            task: functional.crop(label, *window) for task, label in labels.items()
        }

    def sample_window(self, image: Tensor) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop anywhere in the image."""
        height, width = (min(wanted, given) for wanted, given in zip(self.size, image.shape[-2:], strict=True))
        top = int(torch.randint(image.shape[-2] - height + 1, ()))
        left = int(torch.randint(image.shape[-1] - width + 1, ()))
        return top, left, height, width

    def is_varied(self, ids: Tensor, task: str) -> bool:
        """Whether there are valid pixels, and no class has more than its share of them."""
        valid_ids = ids[ids != get_task(task).kind.invalid_value]
        return len(valid_ids) > 0 and bool(torch.bincount(valid_ids).max() <= self.max_class_share * len(valid_ids))


class RandomHorizontalFlip(v2.Transform):
    """Mirrors image and labels with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_probability("p", p)

    def forward(self, image: tv_tensors.Image, labels: Labels) -> tuple[tv_tensors.Image, Labels]:
        """Mirrors one sample, or leaves it as it is."""
        if torch.rand(()) >= self.p:
            return image, labels
        flipped = {
            task: tv_tensors.Mask(get_task(task).kind.flip_values(functional.horizontal_flip(label)))
            for task, label in labels.items()
        }
        return functional.horizontal_flip(image), flipped


class RandomPhotometricDistortion(v2.RandomPhotometricDistort):
    """Changes brightness, contrast, saturation and hue of the image, each with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        # The recipe's 32 of 255 levels and 18 of OpenCV's 180 hues, as factors and as a part of torchvision's circle.
        level, hue = 32 / 255, 18 / 180
        super().__init__((1 - level, 1 + level), (0.5, 1.5), (0.5, 1.5), (-hue, hue), check_probability("p", p))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Leaves out torchvision's permutation of the colour channels, which the recipe does not have."""
        return {**super().make_params(flat_inputs), "channel_permutation": None}


class TrainingAugmentation(v2.Compose):
    """Zoom, crop, flip and photometric distortion, in this order; the defaults are the paper's.

    Args:
        size (`tuple[int, int]`): Largest height and width of the crop.
        zoom (`tuple[float, float]`): Range of the zoom.
        max_class_share (`float`): See `RandomCrop`.
        flip_probability (`float`): Of mirroring.
        distortion_probability (`float`): Of each of the four changes of colour.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        zoom: tuple[float, float] = (0.5, 2.0),
        max_class_share: float = 0.75,
        flip_probability: float = 0.5,
        distortion_probability: float = 0.5,
    ) -> None:
        super().__init__(
            [
                RandomZoom(*zoom),
                RandomCrop(size, max_class_share),
                RandomHorizontalFlip(flip_probability),
                RandomPhotometricDistortion(distortion_probability),
            ]
        )


class TransformedDataset(Dataset):
    """Rows made ready for the model, one at a time.

    Args:
        dataset (`datasets.Dataset`, or a sequence of rows): Rows with an "image" and a map for every task.
        tasks (`Iterable[str]`): The tasks to prepare labels for.
        image_processor (`Callable`): Called as `SEMImageProcessor` with one image and `maps`.
        augmentation (`TrainingAugmentation`, *optional*): `(image, labels) -> (image, labels)`; none for evaluation.
    """

    def __init__(
        self,
        dataset: datasets.Dataset | Sequence[dict[str, Any]],
        tasks: Iterable[str],
        image_processor: Callable[..., dict[str, Any]],
        augmentation: TrainingAugmentation | None = None,
    ) -> None:
        self.dataset = dataset
        self.tasks = list(tasks)
        self.image_processor = image_processor
        self.augmentation = augmentation

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor | dict[str, Tensor]]:
        """Prepares one row.

        Returns:
            "pixel_values" `(3, height, width)` and "labels", task name to label.
        """
        image, labels = row_to_tensors(self.dataset[index], self.tasks)
        if self.augmentation is not None:
            image, labels = self.augmentation(image, labels)
        # Plain tensors, because torchvision treats a Mask in its own way wherever the processor hands it on.
        maps = {task: [label.as_subclass(Tensor)] for task, label in labels.items()}
        batch = self.image_processor([image.as_subclass(Tensor)], maps=maps, return_tensors="pt")
        return {
            "pixel_values": batch["pixel_values"][0],
            "labels": {task: label[0] for task, label in batch["labels"].items()},
        }
