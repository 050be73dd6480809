"""The task table: one row holds what is true of one task alone, and a new task is one more row.

```python
>>> from transformers_sem import TASKS
>>> list(TASKS)
['semseg', 'depth', 'normal', 'boundary', 'parsing', 'saliency']

```

How predictions of a task are scored is a second table, `METRICS` in `evaluation/metrics.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .image_files import to_dense_tensor, to_upright
from .losses import balanced_binary_cross_entropy, balanced_cross_entropy, cross_entropy, l1, unit_vector_l1
from .task_kinds import CLASS_IDS, METRES, PROBABILITY, UNIT_VECTORS, TaskKind, is_black_and_white


def describe_widths(widths: range) -> str:
    """Returns the allowed widths of a head in words, for error messages."""
    return f"{widths[0]} to {widths[-1]} channels" if len(widths) > 1 else f"{widths[0]} channel(s)"


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What is true of one task alone.

    Args:
        name (`str`): Key in the task table, in configurations, labels, logits and predictions.
        title (`str`, *optional*): The task in words; the name by default.
        kind (`TaskKind`): What its maps hold.
        num_labels (`int`): Default width of the head.
        loss (`Callable`): `(logits, labels, **loss_kwargs) -> scalar`, at the size of the labels.
        loss_weight (`float`, *optional*, defaults to 1.0): Default weight in the total loss.
        hub_task (`str`, *optional*, defaults to `"other"`): Name of the task on the Hub.

    Raises:
        ValueError: If maps of the kind cannot be predicted by `num_labels` channels.
    """

    name: str
    title: str = ""
    kind: TaskKind
    num_labels: int
    loss: Callable[..., Tensor]
    loss_weight: float = 1.0
    hub_task: str = "other"

    def __post_init__(self):
        object.__setattr__(self, "title", self.title or self.name)
        if self.num_labels not in self.kind.widths:
            raise ValueError(
                f"A head for {self.kind.values} has {describe_widths(self.kind.widths)}; `num_labels` of {self.name!r} is "
                f"{self.num_labels}. Set it to that, or give the task another kind."
            )

    @property
    def widths(self) -> range:
        """Numbers of channels that a head may have: those of the kind, and for probabilities those of the loss, one or two."""
        return range(self.num_labels, self.num_labels + 1) if self.kind is PROBABILITY else self.kind.widths

    @property
    def dtype(self) -> torch.dtype:
        """`torch.dtype` of the labels: that of the kind, and ids 0 and 1 where two logits give a probability."""
        return torch.int64 if self.kind is PROBABILITY and self.num_labels == 2 else self.kind.dtype

    def label_shape(self, num_images: int, size: tuple[int, int]) -> tuple[int, ...]:
        """Returns the shape of the labels of several images of `size`, height and width."""
        channels = (self.kind.num_channels,) if self.kind.num_channels else ()
        return (num_images, *channels, *size)


SEMSEG = TaskSpec(
    name="semseg",
    title="semantic segmentation",
    kind=CLASS_IDS,
    num_labels=40,
    loss=cross_entropy,
    hub_task="image-segmentation",
)
DEPTH = TaskSpec(name="depth", kind=METRES, num_labels=1, loss=l1, hub_task="depth-estimation")
NORMAL = TaskSpec(
    name="normal", title="surface normals", kind=UNIT_VECTORS, num_labels=3, loss=unit_vector_l1, loss_weight=10.0
)
BOUNDARY = TaskSpec(
    name="boundary",
    title="boundaries",
    kind=PROBABILITY,
    num_labels=1,
    loss=balanced_binary_cross_entropy,
    loss_weight=50.0,
)
PARSING = TaskSpec(
    name="parsing",
    title="human parts",
    kind=CLASS_IDS,
    num_labels=7,
    loss=cross_entropy,
    loss_weight=2.0,
    hub_task="image-segmentation",
)
SALIENCY = TaskSpec(
    name="saliency",
    kind=PROBABILITY,
    num_labels=2,
    loss=balanced_cross_entropy,
    loss_weight=5.0,
    hub_task="image-segmentation",
)

NYUD_V2_TASKS = (SEMSEG, DEPTH, NORMAL, BOUNDARY)  # the default tasks of a configuration
TASKS: dict[str, TaskSpec] = {task.name: task for task in (SEMSEG, DEPTH, NORMAL, BOUNDARY, PARSING, SALIENCY)}

# Columns of rows, inputs of the model, and what else is named beside tasks
TAKEN_NAMES = {"image", "id", "derived", "label_map", "labels", "loss", "pixel_values", "target_size"}
VARIANTS: dict[str, str] = {}  # {task: the task that it shares kind, loss and metric with}


def register_task(spec: TaskSpec) -> None:
    """Adds a task to the table. Call it before a configuration that names the task is built or loaded.

    Raises:
        ValueError: If a task of that name exists, or the name is not allowed.
    """
    check_name(spec.name)
    if spec.name in TASKS:
        raise ValueError(f"Task {spec.name!r} exists already; give the new task another name than {sorted(TASKS)}.")
    TASKS[spec.name] = spec


def check_name(name: str) -> None:
    """Checks the name of a task, which its modules, columns, files and scores will have.

    Raises:
        ValueError: If it is not allowed.
    """
    taken = {*TAKEN_NAMES, *(f"{task}_classes" for task in TASKS)}
    if not name.isidentifier() or name in taken or hasattr(nn.ModuleDict(), name):
        raise ValueError(
            f"The name of a task has letters, digits and underscores only, and is none of {sorted(TAKEN_NAMES)}, that of "
            f"a task followed by `_classes`, or an attribute of torch's modules; got {name!r}. Choose another name."
        )


def register_variant(name: str, task: str) -> None:
    """Adds a task that differs from another one in its classes only, such as `semseg_voc` of `semseg`.

    Nothing happens where a task of that name, kind and loss exists. A configuration notes the variants among its tasks and adds
    them again when it is loaded.

    Raises:
        ValueError: If `task` is unknown, `name` is not allowed, or a task of that name has another kind or loss.
    """
    spec = get_task(task)
    check_name(name)
    if name not in TASKS:
        TASKS[name] = replace(spec, name=name, title=f"{spec.title} ({name})")
        VARIANTS[name] = VARIANTS.get(task, task)
    known = TASKS[name]
    if (known.kind, known.dtype, known.loss) != (spec.kind, spec.dtype, spec.loss):
        raise ValueError(
            f"Task {name!r} exists and has another kind or loss than {task!r}; choose another name for it."
        )


def get_task(name: str) -> TaskSpec:
    """Returns the row of a task.

    Raises:
        ValueError: If there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"Unknown task {name!r}; known tasks are {sorted(TASKS)}. Add one with register_task().")
    return TASKS[name]


def to_label(task: str, value: Image.Image | np.ndarray | Tensor) -> Tensor:
    """Converts a map of one image to a label of its task, and checks its values.

    Args:
        task (`str`): Name of the task.
        value (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): An image, whose 8-bit levels stand for the
            `value_range` of the kind (RGB for normals, gray for boundaries), or an array or tensor of the values
            themselves, channels first or last. A saliency image of 0 and 255 alone is a mask of 0 and 1. A depth of 0 is
            unknown and becomes NaN.

    Returns:
        `torch.Tensor` of shape `(height, width)` or `(num_channels, height, width)`, of the `dtype` of the task.

    Raises:
        ValueError: If the map has another number of channels, or values that the kind does not allow: depth in whole
            numbers or above 1,000 m, for example, which has another unit. An array of 0 and 255 alone is refused for
            saliency and boundaries, because 255 may be white or invalid.
    """
    spec = get_task(task)
    values = _image_values(value, spec) if isinstance(value, Image.Image) else value
    labels = to_dense_tensor(values.copy() if isinstance(values, np.ndarray) else values, f"A {task} map")
    if _has_levels(spec) and labels.dtype == torch.uint8 and (labels > 1).any():
        raise ValueError(
            f"A {task} map holds {_rule(spec)}; got 8-bit levels up to {labels.max().item()}. An 8-bit image of a "
            "measurement must be passed as a PIL image, not as its array."
        )
    labels = labels.float() if labels.is_floating_point() else labels.long()
    labels = _arrange_channels(task, labels, spec.kind.num_channels)
    is_whole = spec.dtype.is_floating_point or labels == labels.round()
    if not (spec.kind.is_allowed(labels) & is_whole).all():
        raise ValueError(
            f"A {task} map holds {_rule(spec)}; got values from {labels.min().item()} to "
            f"{labels.max().item()} ({labels.dtype})."
        )
    if spec.kind is PROBABILITY and is_black_and_white(labels):
        raise ValueError(
            f"A {task} map holds {_rule(spec)}; got an array of 0 and 255 alone, where 255 may be white. Divide a mask by 255, or "
            "pass it as a PIL image; pass a map whose 255 is invalid as `labels` of the image processor."
        )
    return spec.kind.project_values(spec.kind.known_values(labels).to(spec.dtype))


def _rule(spec: TaskSpec) -> str:
    """The allowed values in words, for error messages."""
    values = "0 or 1" if spec.dtype != spec.kind.dtype else spec.kind.values
    return f"{values}, {'NaN' if math.isnan(spec.kind.invalid_value) else spec.kind.invalid_value} invalid"


def _has_levels(spec: TaskSpec) -> bool:
    """Whether the levels of an 8-bit image stand for the range of the values, and not for the values themselves."""
    return spec.dtype.is_floating_point and all(map(math.isfinite, spec.kind.value_range))


def _image_values(image: Image.Image, spec: TaskSpec) -> np.ndarray:
    values = np.asarray(to_upright(image))
    if not spec.dtype.is_floating_point or values.dtype.kind == "f":
        # no dataset of this package stores saliency that is invalid in some pixels and 0 in all others
        is_mask = spec.kind is PROBABILITY and values.dtype == np.uint8 and is_black_and_white(torch.tensor(values))
        return values // 255 if is_mask else values
    if not _has_levels(spec):
        raise ValueError(
            f"A map of {_rule(spec)} is a floating-point image (mode F); got mode {image.mode}. Convert it to the unit "
            "first, such as millimetres / 1000, and pass an array."
        )
    low, high = spec.kind.value_range
    return low + values.astype(np.float32) / 255 * (high - low) if values.dtype == np.uint8 else values


def _arrange_channels(task: str, labels: Tensor, num_channels: int) -> Tensor:
    """`(height, width)` for no channels, else channels first."""
    if num_channels <= 1 and labels.ndim == 3 and 1 in (labels.shape[0], labels.shape[-1]):
        labels = labels.squeeze(0 if labels.shape[0] == 1 else -1)
    if num_channels == 1 and labels.ndim == 2:
        return labels.unsqueeze(0)
    if num_channels == 0 and labels.ndim == 2:
        return labels
    if num_channels > 1 and labels.ndim == 3:
        if labels.shape[0] == num_channels:
            return labels
        if labels.shape[-1] == num_channels:
            return labels.movedim(-1, 0)
    expected = "(height, width)" if num_channels <= 1 else f"({num_channels}, height, width)"
    raise ValueError(f"A {task} map has the shape {expected}; got {tuple(labels.shape)}.")


def invalid_labels(task: str, num_images: int, size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Returns labels of a task in which every pixel is invalid."""
    spec = get_task(task)
    return torch.full(spec.label_shape(num_images, size), spec.kind.invalid_value, dtype=spec.dtype, device=device)


def resize_label(task: str, label: Tensor, size: tuple[int, int]) -> Tensor:
    """Resamples a label by the rule of its kind.

    An interpolated pixel is the mean of its valid neighbors, or invalid where those weigh less than the invalid ones, so
    that holes neither grow nor shrink. Interpolated values are brought back to the allowed ones.

    Args:
        task (`str`): Name of the task.
        label (`torch.Tensor` of shape `(height, width)` or `(num_channels, height, width)`): As `to_label` returns it.
        size (`tuple[int, int]`): New height and width.

    Returns:
        `torch.Tensor` of shape `(*size)` or `(num_channels, *size)`.
    """
    kind = get_task(task).kind
    values = label.reshape(1, -1, *label.shape[-2:]).float()
    if kind.resampling == "nearest-exact":  # copies one pixel, valid or not
        resized = F.interpolate(values, size=tuple(size), mode=kind.resampling)
        return resized.to(label.dtype).reshape(*label.shape[:-2], *size)
    valid = ~(kind.is_invalid(values) | values.isnan())
    total, share = (
        F.interpolate(part, size=tuple(size), mode=kind.resampling)
        for part in (torch.where(valid, values, 0.0), valid.float())
    )
    resized = torch.where(share > 0.5, total / share, kind.invalid_value)
    return kind.project_values(resized.to(label.dtype).reshape(*label.shape[:-2], *size))


def flip_logits(task: str, logits: Tensor) -> Tensor:
    """Mirrors logits of shape `(num_labels, height, width)`, by the rule of the kind for its values."""
    kind, flipped = get_task(task).kind, logits.flip(-1)
    if kind.dtype.is_floating_point:
        return kind.flip_values(flipped)
    # where a flip changes class ids, such as left hand to right hand, their logits change places
    ids = kind.flip_values(torch.arange(len(logits), device=logits.device))
    return torch.empty_like(flipped).index_copy_(0, ids, flipped)


__all__ = ["TASKS", "TaskSpec", "get_task", "register_task"]
