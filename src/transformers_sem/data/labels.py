"""Labels for the transforms of `torchvision.transforms.v2`: each change of geometry acts on a label by the rule of its kind.

A plain tensor of normals in a sample stays as it is when torchvision flips the image, and as a mask it is mirrored with
wrong signs. A `Label` knows its task, and kernels registered for it know what each change means:

- A horizontal flip and a zoom change values too, as its `TaskKind` says: flipped normals have another x, and resized depth is
  divided by the zoom. Resizing resamples by the rule of `resize_label`.
- Pixels that come from outside of the image, for example of padding in any mode, are invalid.
- Rotations and other warps move pixels by nearest neighbor. They are errors for kinds whose values they change in a way that
  no rule describes, such as normals.

Changes of color leave labels as they are. torchvision refuses masks, and so labels, in its automatic augmentations.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from ..task_kinds import MAX_DEPTH, METRES, TaskKind, keep_values
from ..tasks import get_task, resize_label


WARPS = (functional.rotate, functional.affine, functional.perspective, functional.elastic)


class Label(tv_tensors.Mask):
    """A label that knows its task.

    ```python
    >>> import torch
    >>> from torchvision.transforms import v2
    >>> from transformers_sem.data.labels import Label

    >>> normal = Label(torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 2, 2), "normal")
    >>> v2.functional.horizontal_flip(normal)[:, 0, 0].tolist()
    [-1.0, 0.0, 0.0]

    ```

    Args:
        values (`torch.Tensor` of shape `(height, width)` or `(num_channels, height, width)`): As `to_label` returns them.
        task (`str`): Name of the task.
    """

    task: str

    def __new__(cls, values: Tensor, task: str) -> "Label":
        """Labels share the memory of `values`."""
        label = super().__new__(cls, values.as_subclass(Tensor))
        label.task = task
        return label

    @property
    def kind(self) -> TaskKind:
        """The kind of its task."""
        return get_task(self.task).kind

    @classmethod
    def wrap(cls, tensor: Tensor, like: "Label", **kwargs: Any) -> "Label":
        """Makes a label of the same task; torchvision calls it."""
        return cls(tensor, like.task)

    @classmethod
    def _wrap_output(cls, output: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        # torchvision keeps the class where a tensor is copied or moved, but not the task
        output = super()._wrap_output(output, args, kwargs)
        source = next(value for value in tree_leaves((args, kwargs)) if isinstance(value, cls))
        for part in tree_leaves(output):
            if isinstance(part, cls):
                part.task = source.task
        return output


def move_pixels(label: Label, move: Callable[[tv_tensors.Mask], Tensor]) -> Label:
    """Moves the pixels of a label; pixels from outside are invalid.

    Args:
        label (`Label`): The label.
        move (`Callable`): Moves the pixels of a mask, and fills with 0 what comes from outside.
    """
    moved = move(tv_tensors.Mask(label.as_subclass(Tensor))).as_subclass(Tensor)
    inside = move(tv_tensors.Mask(torch.ones(label.shape[-2:], dtype=torch.uint8, device=label.device)))
    return Label(torch.where(inside.as_subclass(Tensor) > 0, moved, label.kind.invalid_value), label.task)


@functional.register_kernel(functional.horizontal_flip, Label)
def flip_horizontally(label: Label) -> Label:
    """Mirrors a label."""
    return Label(label.kind.flip_values(label.as_subclass(Tensor).flip(-1)), label.task)


@functional.register_kernel(functional.vertical_flip, Label)
def flip_vertically(label: Label) -> Label:
    """Turns a label upside down.

    Raises:
        ValueError: If a horizontal flip changes the values of the kind; so would this, and no rule says how.
    """
    if label.kind.flip_values is not keep_values:
        raise ValueError(f"{no_rule('vertical_flip', label)} Flip horizontally.")
    return Label(label.as_subclass(Tensor).flip(-2), label.task)


@functional.register_kernel(functional.resize, Label)
def resize(label: Label, size: list[int] | None, max_size: int | None = None, **kwargs: Any) -> Label:
    """Resizes a label. The interpolation is that of its kind, whatever `kwargs` say.

    Resizing is a zoom: what looks twice as large is half as far. The zoom is the mean of that of height and width.
    """
    height, width = label.shape[-2:]
    outline = torch.empty(1, height, width, device="meta")
    new_height, new_width = functional.resize(outline, size, max_size=max_size).shape[-2:]
    resized = resize_label(label.task, label.as_subclass(Tensor), (new_height, new_width))
    values = label.kind.zoom_values(resized, (new_height / height + new_width / width) / 2)
    if label.kind is METRES:  # farther than any sensor sees: the model would take it for another unit
        values = values.where(values <= MAX_DEPTH, torch.nan)
    return Label(values, label.task)


@functional.register_kernel(functional.crop, Label)
def crop(label: Label, top: int, left: int, height: int, width: int) -> Label:
    """Crops a label; the window may reach out of it."""
    return move_pixels(label, lambda mask: functional.crop(mask, top, left, height, width))


@functional.register_kernel(functional.center_crop, Label)
def center_crop(label: Label, output_size: list[int]) -> Label:
    """Crops the middle of a label, or pads around it."""
    return move_pixels(label, lambda mask: functional.center_crop(mask, output_size))


@functional.register_kernel(functional.resized_crop, Label)
def resized_crop(label: Label, top: int, left: int, height: int, width: int, size: list[int], **kwargs: Any) -> Label:
    """Crops and resizes a label."""
    return resize(crop(label, top, left, height, width), size)


@functional.register_kernel(functional.pad, Label)
def pad(label: Label, padding: list[int], **kwargs: Any) -> Label:
    """Pads a label with invalid pixels, whatever value or mode `kwargs` give."""
    return move_pixels(label, lambda mask: functional.pad(mask, padding))


def register_warp(function: Callable) -> None:
    """Registers the kernel of a change that moves every pixel in its own way."""

    @functional.register_kernel(function, Label)
    def warp(label: Label, *args: Any, **kwargs: Any) -> Label:
        if label.kind.flip_values is not keep_values or label.kind.zoom_values is not keep_values:
            raise ValueError(f"{no_rule(function.__name__, label)} Flip, crop, pad or resize instead.")
        return move_pixels(label, lambda mask: function(mask, *args, **{**kwargs, "fill": None}))


def no_rule(name: str, label: Label) -> str:
    """Returns the first half of an error message."""
    return f"torchvision's `{name}` changes the values of {label.kind.values}, and no rule says how; got a {label.task} label."


for warp in WARPS:
    register_warp(warp)
