"""The task table: one row holds all that is intrinsic to one task, and a new task is one more row.

```python
>>> from transformers_sem import TASKS
>>> list(TASKS)
['semseg', 'depth', 'normal', 'boundary', 'parsing', 'saliency']

```
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .evaluation.boundary import boundary_statistics, to_levels
from .evaluation.metrics import (
    class_ious,
    class_scores,
    class_statistics,
    depth_scores,
    depth_statistics,
    normal_scores,
    normal_statistics,
    odsf_scores,
    saliency_scores,
    saliency_statistics,
)
from .losses import (
    INVALID_ID,
    balanced_binary_cross_entropy,
    balanced_cross_entropy,
    cross_entropy,
    l1,
    unit_length,
    unit_vector_l1,
)
from .task_kinds import class_palette, colorize_depth, colorize_ids, colorize_normal, colorize_probability


@dataclass(frozen=True, kw_only=True)
class LabelFormat:
    """How the labels of a task are laid out in memory.

    Args:
        dtype (`torch.dtype`): int64 for class ids, float32 for measurements and probabilities.
        num_channels (`int`): 0 for maps of shape `(height, width)`, else the C of `(C, height, width)`.
        invalid_value (`float`): 255 for ids and boundaries, NaN for measurements.
        resampling (`str`): `"nearest-exact"`, or `"bilinear"` where a value between two values makes sense.
        value_range (`tuple[float, float]`, *optional*): What 0 and 255 of an 8-bit picture stand for; `None` where a
            picture holds the values themselves.
        is_valid_value (`Callable`): Tells for a tensor of labels which values the task allows besides the invalid one.
        rule (`str`): The same in words, for error messages.
    """

    dtype: torch.dtype
    num_channels: int
    invalid_value: float
    resampling: Literal["nearest-exact", "bilinear"]
    value_range: tuple[float, float] | None = None
    is_valid_value: Callable[[Tensor], Tensor]
    rule: str

    def batch_shape(self, num_images: int, size: tuple[int, int]) -> tuple[int, ...]:
        """Shape of the labels of several images of `size`, height and width."""
        channels = (self.num_channels,) if self.num_channels else ()
        return (num_images, *channels, *size)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric as a sum over images.

    Args:
        statistics (`Callable`): `(prediction, label, num_labels, **kwargs) -> dict[str, Tensor]` of one image, summable.
        reduce (`Callable`): `dict[str, Tensor] -> dict[str, float]`, scores of summed statistics; none where no pixel of
            any image was valid.
        main (`str`): The score by which the task is judged.
        lower_is_better (`bool`): Whether that score is an error.
        title (`str`): That score in words, with its unit, for people.
        per_class (`Callable`, *optional*): `dict[str, Tensor] -> Tensor (num_labels,)`, the main score class by class.
        is_slow (`bool`): Whether the statistics of one image take long enough to be worth another process, which has NumPy
            arrays to work on.
    """

    statistics: Callable[..., dict[str, Tensor]]
    reduce: Callable[[dict[str, Tensor]], dict[str, float]]
    main: str
    lower_is_better: bool
    title: str = ""
    per_class: Callable[[dict[str, Tensor]], Tensor] | None = None
    is_slow: bool = False


def keep_values(values: Tensor, zoom: float = 1.0) -> Tensor:
    """The rule of tasks whose values a flip, a zoom or a resampling does not change."""
    return values


def describe_range(values: np.ndarray, names: dict[int, str]) -> dict:
    """Smallest, largest and mean value of a map."""
    return {
        "minimum": float(values.min()),
        "maximum": float(values.max()),
        "mean": float(values.mean(dtype=np.float64)),
    }


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """All that is intrinsic to one task.

    Args:
        name (`str`): Key in the task table, in configurations, labels, logits and predictions.
        title (`str`, *optional*): The task in words, for people; without it the name.
        prediction (`str`, *optional*): What a predicted map holds, in words, for people.
        unit (`str`, *optional*): Unit of a prediction, as it stands behind a number.
        color_key (`str`, *optional*): How to read the colours of a map, where they need a word.
        hub_task (`str`): What the Hub calls the task.
        num_labels (`int`): Default head width.
        label_format (`LabelFormat`): Layout of the labels.
        loss (`Callable`): `(logits, labels, **loss_kwargs) -> scalar`, at the size of the labels.
        loss_weight (`float`): Default weight in the total loss.
        post_process (`Callable`): Logits `(batch_size, num_labels, height, width)` -> predictions in physical units.
        constant (`"majority"` or `"mean"`): The best prediction that does not look at the image.
        metric (`Metric`, *optional*): How predictions are judged.
        colorize (`Callable`): Map in physical units -> uint8 `(height, width, 3)`, for people.
        encode (`Callable`, *optional*): Map in physical units -> picture of the values, for other programs.
        encoding (`str`): What the values of that picture stand for, in words.
        describe (`Callable`): `(map in physical units, {id: class name}) -> dict`, what JSON says about a prediction.
        prepare_mean (`Callable`): Brings logits `(batch_size, num_labels, height, width)` of one view of a photo to what
            may be averaged with those of others, pixel by pixel; the mean is post-processed as logits are.
        flip_values (`Callable`): What a horizontal flip does to the values, the pixels being flipped already.
        zoom_values (`Callable`): `(values, zoom) -> values`, what enlarging the picture by `zoom` does to the values.
        measure_zoom (`Callable`, *optional*): `(values, reference) -> zoom`, by how much more than the reference a picture of
            the same was enlarged whose values are these; none where a zoom does not change values.
        project_values (`Callable`): Brings decoded or interpolated values back to what the task allows.
    """

    name: str
    title: str = ""
    prediction: str = ""
    unit: str = ""
    color_key: str = ""
    hub_task: str = "other"
    num_labels: int
    label_format: LabelFormat
    loss: Callable[..., Tensor]
    loss_weight: float = 1.0
    post_process: Callable[[Tensor], Tensor]
    constant: Literal["majority", "mean"] = "mean"
    metric: Metric | None = None
    colorize: Callable[[np.ndarray], np.ndarray]
    encode: Callable[[np.ndarray], Image.Image] | None = None
    encoding: str = "the values themselves"
    describe: Callable[[np.ndarray, dict[int, str]], dict] = describe_range
    prepare_mean: Callable[[Tensor], Tensor] = keep_values
    flip_values: Callable[[Tensor], Tensor] = keep_values
    zoom_values: Callable[[Tensor, float], Tensor] = keep_values
    measure_zoom: Callable[[Tensor, Tensor], float] | None = None
    project_values: Callable[[Tensor], Tensor] = keep_values


def predict_ids(logits: Tensor) -> Tensor:
    """Class ids, int64 `(batch_size, height, width)`."""
    return logits.argmax(dim=1)


def predict_depth(logits: Tensor) -> Tensor:
    """Metres >= 0, float32 `(batch_size, height, width)`."""
    return logits[:, 0].float().clamp(min=0)


def predict_unit_vectors(logits: Tensor) -> Tensor:
    """Unit vectors, float32 `(batch_size, 3, height, width)`."""
    return unit_length(logits.float())


def predict_binary_probability(logits: Tensor) -> Tensor:
    """Probability from one logit, float32 `(batch_size, height, width)`."""
    return logits[:, 0].float().sigmoid()


def predict_positive_probability(logits: Tensor) -> Tensor:
    """Probability of class 1 of two, float32 `(batch_size, height, width)`."""
    return logits.float().softmax(dim=1)[:, 1]


def encode_ids(ids: np.ndarray) -> Image.Image:
    """Class ids in 8 bits, with a palette for people."""
    picture = Image.fromarray(ids.astype(np.uint8))
    picture.putpalette(class_palette().tobytes())
    return picture


def encode_millimetres(depth: np.ndarray) -> Image.Image:
    """Metres as millimetres in 16 bits, the usual depth picture; 65.535 m is the most it holds."""
    return Image.fromarray(np.round(depth * 1000).clip(0, 65535).astype(np.uint16))


def encode_unit_vectors(vectors: np.ndarray) -> Image.Image:
    """Unit vectors `(3, height, width)` as RGB = (n + 1) / 2 * 255."""
    levels = [np.round((component + 1) / 2 * 255).clip(0, 255).astype(np.uint8) for component in vectors]
    return Image.fromarray(np.stack(levels, axis=-1))


def encode_probability(probability: np.ndarray) -> Image.Image:
    """Probabilities as 8-bit levels, truncated as the field writes boundaries for SEISM."""
    return Image.fromarray(to_levels(probability))


def describe_classes(ids: np.ndarray, names: dict[int, str]) -> dict:
    """The classes in a map by their area, the largest first."""
    pixels = np.bincount(ids.ravel())
    classes = [
        {"id": int(index), "name": names.get(int(index), str(index)), "pixels": int(pixels[index])}
        for index in np.argsort(-pixels, kind="stable")
        if pixels[index] > 0
    ]
    return {"classes": [{**entry, "fraction": entry["pixels"] / ids.size} for entry in classes]}


def describe_metres(depth: np.ndarray, names: dict[int, str]) -> dict:
    """Range of a depth map."""
    return {"unit": "metres", **describe_range(depth, names)}


def describe_vectors(vectors: np.ndarray, names: dict[int, str]) -> dict:
    """Mean of the vectors; its length tells how alike they are."""
    return {"mean": [float(component.mean(dtype=np.float64)) for component in vectors]}


def describe_probability(probability: np.ndarray, names: dict[int, str]) -> dict:
    """Range of a map of probabilities, and the share of pixels that are rather so than not."""
    likely = int(np.count_nonzero(probability > 0.5))
    return {**describe_range(probability, names), "likely_fraction": likely / probability.size}


def negate_x(vectors: Tensor) -> Tensor:
    """Mirrors vectors of shape `(3, height, width)`: left becomes right."""
    return torch.cat([-vectors[:1], vectors[1:]])


def divide_by_zoom(depth: Tensor, zoom: float) -> Tensor:
    """An object that looks `zoom` times larger stands `zoom` times nearer."""
    return depth / zoom


def ratio_of_means(depth: Tensor, reference: Tensor) -> float:
    """How many times nearer a scene seems than in the reference; 1 where there is no depth to compare."""
    means = [float(values.clamp(min=0).mean()) for values in (depth, reference)]
    return means[1] / means[0] if min(means) > 0 else 1.0


def unit_vectors(vectors: Tensor) -> Tensor:
    """Vectors of shape `(3, height, width)` at unit length; those shorter than a half (unknown, averaged out) are NaN."""
    length = vectors.square().sum(dim=0, keepdim=True).sqrt()  # torch's norm over a leading axis is 40 times slower
    return vectors / length.masked_fill(~(length > 0.5), torch.nan)


def is_class_id(labels: Tensor) -> Tensor:
    """Whole numbers 0 ... 254, and 255 invalid."""
    return (labels >= 0) & (labels <= INVALID_ID) & (labels == labels.round())


def is_binary_id(labels: Tensor) -> Tensor:
    """0, 1, and 255 invalid."""
    return (labels == 0) | (labels == 1) | (labels == INVALID_ID)


def is_probability(labels: Tensor) -> Tensor:
    """[0, 1], and 255 invalid."""
    return ((labels >= 0) & (labels <= 1)) | (labels == INVALID_ID)


def is_distance(labels: Tensor) -> Tensor:
    """Finite and not negative, and NaN invalid."""
    return ~((labels < 0) | labels.isinf())


def is_vector_component(labels: Tensor) -> Tensor:
    """[-1, 1] up to rounding, and NaN invalid."""
    return ~(labels.abs() > 1.01)


CLASS_IDS = LabelFormat(
    dtype=torch.int64,
    num_channels=0,
    invalid_value=INVALID_ID,
    resampling="nearest-exact",
    is_valid_value=is_class_id,
    rule="class ids from 0, 255 invalid",
)
CLASS_METRIC = Metric(
    statistics=class_statistics,
    reduce=class_scores,
    main="miou",
    lower_is_better=False,
    title="mIoU",
    per_class=class_ious,
)

SEMSEG = TaskSpec(
    name="semseg",
    title="semantic segmentation",
    prediction="class ids",
    hub_task="image-segmentation",
    num_labels=40,
    label_format=CLASS_IDS,
    loss=cross_entropy,
    loss_weight=1.0,
    post_process=predict_ids,
    constant="majority",
    metric=CLASS_METRIC,
    colorize=colorize_ids,
    encode=encode_ids,
    encoding="class ids in 8 bits, with a palette",
    describe=describe_classes,
)
DEPTH = TaskSpec(
    name="depth",
    title="depth",
    prediction="metres",
    unit="m",
    color_key="near is bright, far is dark",
    hub_task="depth-estimation",
    num_labels=1,
    label_format=LabelFormat(
        dtype=torch.float32,
        num_channels=1,
        invalid_value=float("nan"),
        resampling="nearest-exact",
        is_valid_value=is_distance,
        rule="metres >= 0, NaN invalid",
    ),
    loss=l1,
    loss_weight=1.0,
    post_process=predict_depth,
    metric=Metric(
        statistics=depth_statistics, reduce=depth_scores, main="rmse", lower_is_better=True, title="RMSE, metres"
    ),
    colorize=colorize_depth,
    encode=encode_millimetres,
    encoding="millimetres in 16 bits, at most 65535",
    describe=describe_metres,
    prepare_mean=F.relu,
    zoom_values=divide_by_zoom,
    measure_zoom=ratio_of_means,
)
NORMAL = TaskSpec(
    name="normal",
    title="surface normals",
    prediction="unit vectors: x right, y down, z forward",
    color_key="red: right, green: down, blue: away from the camera; so olive faces the camera, and purple faces up",
    num_labels=3,
    label_format=LabelFormat(
        dtype=torch.float32,
        num_channels=3,
        invalid_value=float("nan"),
        resampling="bilinear",
        value_range=(-1.0, 1.0),
        is_valid_value=is_vector_component,
        rule="unit vectors (x right, y down, z forward), NaN invalid",
    ),
    loss=unit_vector_l1,
    loss_weight=10.0,
    post_process=predict_unit_vectors,
    metric=Metric(
        statistics=normal_statistics,
        reduce=normal_scores,
        main="mean_error",
        lower_is_better=True,
        title="mean error, degrees",
    ),
    colorize=colorize_normal,
    encode=encode_unit_vectors,
    encoding="unit vectors (x right, y down, z forward) in 8-bit RGB, (n + 1) / 2 * 255",
    describe=describe_vectors,
    prepare_mean=unit_length,
    flip_values=negate_x,
    project_values=unit_vectors,
)
BOUNDARY = TaskSpec(
    name="boundary",
    title="boundaries",
    prediction="probability of a boundary",
    num_labels=1,
    label_format=LabelFormat(
        dtype=torch.float32,
        num_channels=0,
        invalid_value=INVALID_ID,
        resampling="nearest-exact",
        value_range=(0.0, 1.0),
        is_valid_value=is_probability,
        rule="boundary in [0, 1], 255 invalid",
    ),
    loss=balanced_binary_cross_entropy,
    loss_weight=50.0,
    post_process=predict_binary_probability,
    metric=Metric(
        statistics=boundary_statistics,
        reduce=odsf_scores,
        main="odsf",
        lower_is_better=False,
        title="odsF",
        is_slow=True,
    ),
    colorize=colorize_probability,
    encode=encode_probability,
    encoding="probability in 8 bits, 255 for 1",
    describe=describe_probability,
)
PARSING = TaskSpec(
    name="parsing",
    title="human parts",
    prediction="ids of body parts",
    hub_task="image-segmentation",
    num_labels=7,
    label_format=CLASS_IDS,
    loss=cross_entropy,
    loss_weight=2.0,
    post_process=predict_ids,
    constant="majority",
    metric=CLASS_METRIC,
    colorize=colorize_ids,
    encode=encode_ids,
    encoding="class ids in 8 bits, with a palette",
    describe=describe_classes,
)
SALIENCY = TaskSpec(
    name="saliency",
    title="saliency",
    prediction="probability of the salient object",
    hub_task="image-segmentation",
    num_labels=2,
    label_format=LabelFormat(
        dtype=torch.int64,
        num_channels=0,
        invalid_value=INVALID_ID,
        resampling="nearest-exact",
        is_valid_value=is_binary_id,
        rule="0 or 1, 255 invalid",
    ),
    loss=balanced_cross_entropy,
    loss_weight=5.0,
    post_process=predict_positive_probability,
    metric=Metric(
        statistics=saliency_statistics, reduce=saliency_scores, main="maxf", lower_is_better=False, title="maxF"
    ),
    colorize=colorize_probability,
    encode=encode_probability,
    encoding="probability in 8 bits, 255 for 1",
    describe=describe_probability,
)

NYUD_V2_TASKS = (SEMSEG, DEPTH, NORMAL, BOUNDARY)  # what a configuration learns that does not say otherwise
TASKS: dict[str, TaskSpec] = {task.name: task for task in (SEMSEG, DEPTH, NORMAL, BOUNDARY, PARSING, SALIENCY)}


def flip_logits(task: str, logits: Tensor) -> Tensor:
    """Mirrors logits of shape `(num_labels, height, width)`, by the rule of the task for its values."""
    spec, flipped = get_task(task), logits.flip(-1)
    if spec.label_format.dtype.is_floating_point:
        return spec.flip_values(flipped)
    # where a flip changes ids, left hand to right hand, the logits change places
    return torch.empty_like(flipped).index_copy_(
        0, spec.flip_values(torch.arange(len(logits), device=logits.device)), flipped
    )


def register_task(spec: TaskSpec) -> None:
    """Adds a task of your own to the table, before a configuration that names it is built or loaded.

    Raises:
        ValueError: If a task of that name exists.
    """
    if spec.name in TASKS:
        raise ValueError(f"Task {spec.name!r} exists already; give the new task another name than {sorted(TASKS)}.")
    TASKS[spec.name] = spec


def get_task(name: str) -> TaskSpec:
    """Looks a task up.

    Raises:
        ValueError: If there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"Unknown task {name!r}; known tasks are {sorted(TASKS)}. Add one with register_task().")
    return TASKS[name]


def _picture_values(picture: Image.Image, label_format: LabelFormat) -> np.ndarray:
    """Values of a picture: 8-bit levels stand for `value_range` where the task has one."""
    values = np.asarray(picture)
    if label_format.value_range is None and label_format.dtype.is_floating_point and values.dtype.kind != "f":
        raise ValueError(
            f"A map of {label_format.rule} is a floating-point picture (mode F); got mode {picture.mode}. Convert it to the "
            "unit first and pass an array."
        )
    if label_format.value_range is None or values.dtype != np.uint8:
        return values
    low, high = label_format.value_range
    return low + values.astype(np.float32) / 255 * (high - low)


def to_label(task: str, value: Image.Image | np.ndarray | Tensor) -> Tensor:
    """Brings a map of one image into the label format of its task.

    Args:
        task (`str`): Name of the task.
        value (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): A picture (8-bit levels stand for the task's
            `value_range`: RGB for normals, grey for boundaries), or an array or tensor of the values themselves, channels
            first or last.

    Returns:
        `torch.Tensor` of shape `(height, width)` or `(num_channels, height, width)` in the task's label format.

    Raises:
        ValueError: If the map has another number of channels, or values that the task does not know.
    """
    spec = get_task(task)
    label_format = spec.label_format
    values = _picture_values(value, label_format) if isinstance(value, Image.Image) else value
    labels = torch.as_tensor(np.array(values) if isinstance(values, np.ndarray) else values)
    if label_format.value_range is not None and labels.dtype == torch.uint8 and (labels > 1).any():
        raise ValueError(
            f"A {task} map holds {label_format.rule}; got 8-bit levels up to {labels.max().item()}. An 8-bit picture of a "
            "measurement must be passed as a PIL image, not as its array."
        )
    labels = labels.float() if labels.is_floating_point() else labels.long()
    labels = _arrange_channels(task, labels, label_format.num_channels)
    if not label_format.is_valid_value(labels).all():
        raise ValueError(
            f"A {task} map holds {label_format.rule}; got values from {labels.min().item()} to "
            f"{labels.max().item()} ({labels.dtype})."
        )
    return spec.project_values(labels.to(label_format.dtype))


def resize_label(task: str, label: Tensor, size: tuple[int, int]) -> Tensor:
    """Resamples a label by the rule of its task.

    An interpolated pixel is the mean of its valid neighbours, or invalid where those weigh less than the others, so
    that invalid holes neither grow nor shrink.

    Args:
        task (`str`): Name of the task.
        label (`torch.Tensor` of shape `(height, width)` or `(num_channels, height, width)`): In the task's format.
        size (`tuple[int, int]`): New height and width.

    Returns:
        `torch.Tensor` of shape `(*size)` or `(num_channels, *size)`, in the task's format.
    """
    spec = get_task(task)
    label_format = spec.label_format
    values = label.reshape(1, -1, *label.shape[-2:]).float()
    if label_format.resampling == "nearest-exact":  # copies one pixel, valid or not
        resized = F.interpolate(values, size=tuple(size), mode=label_format.resampling)
    else:
        valid = (values != label_format.invalid_value) & ~values.isnan()
        total, share = (
            F.interpolate(part, size=tuple(size), mode=label_format.resampling)
            for part in (torch.where(valid, values, 0.0), valid.float())
        )
        resized = torch.where(share > 0.5, total / share, label_format.invalid_value)
    return spec.project_values(resized.to(label_format.dtype).reshape(*label.shape[:-2], *size))


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
