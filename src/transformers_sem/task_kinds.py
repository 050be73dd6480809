"""The kinds of maps: what is true of every map of class ids, of probabilities, of metres and of unit vectors.

A label is a map of true values and a prediction a map of predicted values, both of one image. Labels of class ids and
probabilities have the shape `(height, width)`, those of measurements `(channels, height, width)`. Predictions have the
shapes that `SEMImageProcessor.post_process_dense_prediction` lists. Colors are for people only and feed no number.
"""

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .losses import INVALID_ID, unit_length


INVALID_COLOR = (60, 60, 60)
# Laser scanners reach some hundred metres; larger depths have another unit.
MAX_DEPTH = 1000.0
MAX_CLASSES_WITH_PRIOR = 10  # of a head that starts at the shares of its classes
# The magma colormap of matplotlib (CC0) at ten evenly spaced points; colors in between are interpolated.
MAGMA = ("000004", "180f3d", "440f76", "721f81", "9e2f7f", "cd4071", "f1605d", "fd9668", "feca8d", "fcfdbf")


# ----------------------------------------------------------------------------------------------------------------------
# Colors


def class_palette() -> np.ndarray:
    """Distinct colors for class ids: light gray for 0 (wall, background), golden-angle hues for the rest.

    Returns:
        `np.ndarray` of shape `(256, 3)`, uint8; the last row is the color of invalid pixels (id 255).
    """
    colors = [(214, 214, 214)]
    for index in range(1, INVALID_ID):
        hue, saturation, value = index * 0.61803398875 % 1, (0.85, 0.55)[index // 2 % 2], (0.95, 0.65)[index % 2]
        colors.append(tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value)))
    return np.array([*colors, INVALID_COLOR], dtype=np.uint8)


def colorize_ids(ids: np.ndarray) -> np.ndarray:
    """Colors class ids of shape `(height, width)` as uint8 `(height, width, 3)`."""
    return class_palette()[ids.astype(np.uint8)]


def colorize_range(values: np.ndarray) -> np.ndarray:
    """Colors numbers of shape `(height, width)` from dark to bright between their 2nd and 98th percentile.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`, uint8; NaN and infinity have the color of invalid pixels.
    """
    valid = np.isfinite(values)
    low, high = np.percentile(values[valid], [2, 98]) if valid.any() else (0.0, 1.0)
    scaled = np.clip((np.where(valid, values, low) - low) / max(high - low, 1e-6), 0, 1)
    anchors = np.array([list(bytes.fromhex(color)) for color in MAGMA])
    places = np.linspace(0, 1, len(anchors))
    colors = np.stack([np.interp(scaled, places, channel) for channel in anchors.T], axis=-1).astype(np.uint8)
    colors[~valid] = INVALID_COLOR
    return colors


def colorize_depth(depth: np.ndarray) -> np.ndarray:
    """Colors metres of shape `(height, width)`: near is bright, far is dark."""
    return colorize_range(-depth)


def colorize_unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Colors unit vectors of shape `(3, height, width)`: x, y, z in [-1, 1] become red, green, blue in [0, 255]."""
    colors = unit_vectors_to_rgb(vectors)
    colors[~np.isfinite(vectors).all(axis=0)] = INVALID_COLOR
    return colors


def colorize_probability(probability: np.ndarray) -> np.ndarray:
    """Colors a probability of shape `(height, width)` from black (0) to white (1); values outside [0, 1] are invalid."""
    valid = (probability >= 0) & (probability <= 1)
    gray = np.round(np.where(valid, probability, 0) * 255).astype(np.uint8)
    colors = np.repeat(gray[..., None], 3, axis=-1)
    colors[~valid] = INVALID_COLOR
    return colors


# ----------------------------------------------------------------------------------------------------------------------
# Images for other programs


def unit_vectors_to_rgb(vectors: np.ndarray) -> np.ndarray:
    """Encodes unit vectors `(3, height, width)` as RGB = (n + 1) / 2 * 255, uint8 `(height, width, 3)`.

    NaN becomes (128, 128, 128), the zero vector, as the datasets of the field mark invalid normals.
    """
    levels = np.round((np.nan_to_num(vectors) + 1) / 2 * 255).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


def probability_to_levels(probability: np.ndarray) -> np.ndarray:
    """Encodes a probability in [0, 1] as 8-bit levels, truncated and not rounded, as SEISM reads boundaries."""
    return (probability.astype(np.float32) * np.float32(255)).astype(np.uint8)


def encode_ids(ids: np.ndarray) -> Image.Image:
    """Encodes class ids in 8 bits, with a palette for image viewers."""
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette(class_palette().tobytes())
    return image


def encode_millimetres(depth: np.ndarray) -> Image.Image:
    """Encodes metres as millimetres in 16 bits, the usual depth image; 65.535 m is the largest value."""
    return Image.fromarray(np.round(depth * 1000).clip(0, 65535).astype(np.uint16))


def encode_unit_vectors(vectors: np.ndarray) -> Image.Image:
    """Encodes unit vectors `(3, height, width)` as an RGB image."""
    return Image.fromarray(unit_vectors_to_rgb(vectors))


def encode_probability(probability: np.ndarray) -> Image.Image:
    """Encodes a probability as an 8-bit gray image."""
    return Image.fromarray(probability_to_levels(probability))


# ----------------------------------------------------------------------------------------------------------------------
# Descriptions for JSON


def describe_range(values: np.ndarray, names: dict[int, str]) -> dict:
    """Returns the smallest, largest and mean value of a map."""
    return {
        "minimum": float(values.min()),
        "maximum": float(values.max()),
        "mean": float(values.mean(dtype=np.float64)),
    }


def describe_classes(ids: np.ndarray, names: dict[int, str]) -> dict:
    """Returns the classes in a map with their areas, the largest first."""
    pixels = np.bincount(ids.ravel())
    classes = [
        {"id": int(index), "name": names.get(int(index), str(index)), "pixels": int(pixels[index])}
        for index in np.argsort(-pixels, kind="stable")
        if pixels[index] > 0
    ]
    return {"classes": [{**entry, "fraction": entry["pixels"] / ids.size} for entry in classes]}


def describe_metres(depth: np.ndarray, names: dict[int, str]) -> dict:
    """Returns the range of a depth map."""
    return {"unit": "metres", **describe_range(depth, names)}


def describe_unit_vectors(vectors: np.ndarray, names: dict[int, str]) -> dict:
    """Returns the mean vector; its length is 1 where all vectors are equal."""
    return {"mean": [float(component.mean(dtype=np.float64)) for component in vectors]}


def describe_probability(probability: np.ndarray, names: dict[int, str]) -> dict:
    """Returns the range of a probability map, and the share of pixels above 0.5."""
    likely = int(np.count_nonzero(probability > 0.5))
    return {**describe_range(probability, names), "likely_fraction": likely / probability.size}


# ----------------------------------------------------------------------------------------------------------------------
# Values


def keep_values(values: Tensor, zoom: float = 1.0) -> Tensor:
    """Returns the values as they are: the rule of kinds that a flip, a zoom or a resampling does not change."""
    return values


def predict_ids(logits: Tensor) -> Tensor:
    """Returns the class ids of logits, int64 `(batch_size, height, width)`."""
    return logits.argmax(dim=1)


def predict_probability(logits: Tensor) -> Tensor:
    """Returns the sigmoid of one logit or, of two, the softmax of the second; float32 `(batch_size, height, width)`."""
    return logits[:, 0].float().sigmoid() if logits.shape[1] == 1 else logits.float().softmax(dim=1)[:, 1]


def predict_metres(logits: Tensor) -> Tensor:
    """Returns metres >= 0, float32 `(batch_size, height, width)`."""
    return logits[:, 0].float().clamp(min=0)


def predict_unit_vectors(logits: Tensor) -> Tensor:
    """Returns unit vectors, float32 `(batch_size, 3, height, width)`."""
    return unit_length(logits.float())


def start_at_mean(mean_label: Tensor, num_labels: int) -> Tensor:
    """Returns the mean label, which is what the logits of measurements predict."""
    return mean_label


def start_at_zero(mean_label: Tensor, num_labels: int) -> Tensor:
    """Returns zeros, close to the best constant under a loss that balances two classes."""
    return torch.zeros(num_labels)


def start_at_shares(mean_label: Tensor, num_labels: int) -> Tensor:
    """Returns the logarithm of the share of each class, or zeros for many classes.

    Rare classes start low. Among few classes that is where the frequent ones end soon anyway; among many, the rare ones need
    many steps to come back.
    """
    if num_labels > MAX_CLASSES_WITH_PRIOR:
        return torch.zeros(num_labels)
    return mean_label.clamp(min=1e-4).log()


def check_metres(depth: Tensor) -> None:
    """Checks that depth is floating point, and not so large that it must have another unit.

    Raises:
        ValueError: If it is not.
    """
    largest = depth.nan_to_num(posinf=math.inf).amax().item() if depth.numel() else 0.0
    if not depth.is_floating_point() or largest > MAX_DEPTH:
        raise ValueError(
            f"Depth is floating-point metres, at most {MAX_DEPTH:g}; got {depth.dtype} up to {largest:g}, which looks like "
            "millimetres. Divide millimetres by 1000; unknown depth is 0 or NaN."
        )


def known_metres(depth: Tensor) -> Tensor:
    """Returns depth with NaN where it is not positive: sensors write 0 where they see nothing.

    Raises:
        ValueError: If a depth on a CPU is larger than `MAX_DEPTH`. On a GPU the check would have to wait for it.
    """
    if depth.device.type == "cpu" and not torch.compiler.is_compiling():
        check_metres(depth)
    return depth.where(depth > 0, torch.nan)


def negate_x(vectors: Tensor) -> Tensor:
    """Mirrors vectors of shape `(3, height, width)`: left becomes right."""
    return torch.cat([-vectors[:1], vectors[1:]])


def divide_by_zoom(depth: Tensor, zoom: float) -> Tensor:
    """Divides depth by the zoom: an object that appears `zoom` times larger is `zoom` times nearer."""
    return depth / zoom


def ratio_of_means(depth: Tensor, reference: Tensor) -> float:
    """Returns the mean of the reference over the mean of a depth map, and 1 where one of them is not positive."""
    means = [float(values.clamp(min=0).mean()) for values in (depth, reference)]
    return means[1] / means[0] if min(means) > 0 else 1.0


def normalize_vectors(vectors: Tensor) -> Tensor:
    """Brings vectors of shape `(3, height, width)` to unit length; those shorter than a half become NaN.

    Such short vectors are unknown in the file, or the interpolation of contradicting neighbors.
    """
    length = vectors.square().sum(dim=0, keepdim=True).sqrt()  # torch's norm over a leading axis is 40 times slower
    return vectors / length.masked_fill(~(length > 0.5), torch.nan)


# ----------------------------------------------------------------------------------------------------------------------
# Kinds


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """A kind of map: layout of the labels, predictions, geometry of the values, images and descriptions.

    Args:
        values (`str`): What a map holds, in words and with the allowed values.
        unit (`str`, *optional*): Unit behind a number.
        widths (`range`, *optional*): Numbers of channels that a head for such maps may have; any by default.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Of labels.
        num_channels (`int`, *optional*, defaults to 0): C of labels `(C, height, width)`; 0 for `(height, width)`.
        invalid_value (`float`, *optional*, defaults to NaN): Value of pixels without a label.
        value_range (`tuple[float, float]`, *optional*): Smallest and largest allowed value; the levels 0 and 255 of an
            8-bit image stand for them where labels are floating point and both are finite.
        tolerance (`float`, *optional*, defaults to 0.0): How far rounding may carry a value beyond its range.
        resampling (`str`, *optional*, defaults to `"bilinear"`): `"nearest-exact"` where a value between two values makes
            no sense.
        predict (`Callable`): Logits `(batch_size, num_labels, height, width)` -> predictions in physical units.
        start_logits (`Callable`, *optional*): `(mean label, num_labels) -> (num_labels,)`, logits that a head starts training
            with; zeros by default. The mean label is the share of each class, or the mean of the values.
        prepare_mean (`Callable`, *optional*): Logits of one view of an image -> values that can be averaged over several
            views, pixel by pixel; `predict` takes the mean.
        flip_values (`Callable`, *optional*): What a horizontal flip does to values whose pixels are flipped already.
        zoom_values (`Callable`, *optional*): `(values, zoom) -> values`, what enlarging an image does to the values.
        measure_zoom (`Callable`, *optional*): `(values, reference) -> zoom`, the inverse; `None` where a zoom changes no
            values.
        known_values (`Callable`, *optional*): Marks values of labels that stand for "unknown" as invalid, pixel by pixel, and
            raises a `ValueError` for values that must have another unit.
        project_values (`Callable`, *optional*): Brings decoded or interpolated values back to the allowed ones.
        colorize (`Callable`): Map -> uint8 `(height, width, 3)`, for people.
        color_key (`str`, *optional*): How to read the colors.
        encode (`Callable`, *optional*): Map -> image of the values, for other programs.
        encoding (`str`, *optional*): What the values of that image mean.
        describe (`Callable`, *optional*): `(map, {id: class name}) -> dict`, a description of a prediction for JSON.
    """

    values: str
    unit: str = ""
    widths: range = range(1, 2**16)
    dtype: torch.dtype = torch.float32
    num_channels: int = 0
    invalid_value: float = math.nan
    value_range: tuple[float, float] = (-math.inf, math.inf)
    tolerance: float = 0.0
    resampling: Literal["nearest-exact", "bilinear"] = "bilinear"
    predict: Callable[[Tensor], Tensor]
    start_logits: Callable[[Tensor, int], Tensor] = start_at_zero
    prepare_mean: Callable[[Tensor], Tensor] = keep_values
    flip_values: Callable[[Tensor], Tensor] = keep_values
    zoom_values: Callable[[Tensor, float], Tensor] = keep_values
    measure_zoom: Callable[[Tensor, Tensor], float] | None = None
    known_values: Callable[[Tensor], Tensor] = keep_values
    project_values: Callable[[Tensor], Tensor] = keep_values
    colorize: Callable[[np.ndarray], np.ndarray]
    color_key: str = ""
    encode: Callable[[np.ndarray], Image.Image] | None = None
    encoding: str = "the values themselves"
    describe: Callable[[np.ndarray, dict[int, str]], dict] = describe_range

    def is_invalid(self, labels: Tensor) -> Tensor:
        """Returns which values mark pixels without a label."""
        return labels.isnan() if math.isnan(self.invalid_value) else labels == self.invalid_value

    def is_allowed(self, labels: Tensor) -> Tensor:
        """Returns which values are in range or mark pixels without a label."""
        low, high = self.value_range
        in_range = (labels >= low - self.tolerance) & (labels <= high + self.tolerance) & labels.isfinite()
        return in_range | self.is_invalid(labels)


def is_black_and_white(labels: Tensor) -> bool:
    """Returns whether the only values of a map are 0 and 255, and both occur."""
    is_white = labels == INVALID_ID
    return bool(is_white.any() and not is_white.all() and (is_white | (labels == 0)).all())


CLASS_IDS = TaskKind(
    values="class ids from 0",
    widths=range(2, INVALID_ID + 1),  # one class alone is learned by no loss; ids of wider heads are no 8-bit labels
    dtype=torch.int64,
    invalid_value=INVALID_ID,
    value_range=(0, INVALID_ID - 1),
    resampling="nearest-exact",
    predict=predict_ids,
    start_logits=start_at_shares,
    colorize=colorize_ids,
    encode=encode_ids,
    encoding="class ids in 8 bits, with a palette",
    describe=describe_classes,
)
PROBABILITY = TaskKind(
    values="probabilities in [0, 1]",
    widths=range(1, 3),
    invalid_value=INVALID_ID,
    value_range=(0, 1),
    resampling="nearest-exact",
    predict=predict_probability,
    colorize=colorize_probability,
    encode=encode_probability,
    encoding="probability in 8 bits, 255 for 1",
    describe=describe_probability,
)
METRES = TaskKind(
    values="metres >= 0",
    unit="m",
    widths=range(1, 2),
    num_channels=1,
    value_range=(0, math.inf),
    resampling="nearest-exact",
    predict=predict_metres,
    start_logits=start_at_mean,
    prepare_mean=F.relu,
    zoom_values=divide_by_zoom,
    measure_zoom=ratio_of_means,
    known_values=known_metres,
    colorize=colorize_depth,
    color_key="near is bright, far is dark",
    encode=encode_millimetres,
    encoding="millimetres in 16 bits, at most 65535",
    describe=describe_metres,
)
UNIT_VECTORS = TaskKind(
    values="unit vectors (x right, y down, z forward)",
    widths=range(3, 4),
    num_channels=3,
    value_range=(-1, 1),
    tolerance=0.01,
    predict=predict_unit_vectors,
    start_logits=start_at_mean,
    prepare_mean=unit_length,
    flip_values=negate_x,
    project_values=normalize_vectors,
    colorize=colorize_unit_vectors,
    color_key="red: right, green: down, blue: away from the camera; so olive faces the camera, and purple faces up",
    encode=encode_unit_vectors,
    encoding="unit vectors (x right, y down, z forward) in 8-bit RGB, (n + 1) / 2 * 255",
    describe=describe_unit_vectors,
)


__all__ = ["CLASS_IDS", "METRES", "PROBABILITY", "UNIT_VECTORS", "TaskKind"]
