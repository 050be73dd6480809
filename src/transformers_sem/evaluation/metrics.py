"""Metrics as sums: a pair of pure functions each, `*_statistics` of one image and `*_scores` of summed statistics.

The statistics of a set are the sum of the statistics of its images. So a metric streams, merges over ranks by one sum, and
does not depend on how a set is split into batches. Predictions and labels are maps of one image in physical units (see
`task_kinds.py`). The scores of a set without a valid pixel are an empty dictionary.

The conventions are those of the field's published code: all pixels of a set are pooled, never averaged per image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..losses import INVALID_ID
from ..task_kinds import check_metres
from ..tasks import VARIANTS, get_task
from .boundary import boundary_statistics, summed_scores


SALIENCY_THRESHOLDS = torch.arange(1, 20, dtype=torch.float64) / 20  # 0.05 ... 0.95
MIN_DEPTH = 1e-9  # metres; predictions that are not positive are replaced by it, so that logarithms and ratios exist
DEPTH_RATIOS = (1.25, 1.25**2, 1.25**3)
ANGLES = (11.25, 22.5, 30.0)  # degrees
BINS_PER_DEGREE = 100  # the median angle is known to 0.01 degrees
BETA_SQUARED = 0.3  # weighs precision higher than recall, as usual in salient object detection


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric as a sum over images.

    Args:
        statistics (`Callable`): `(prediction, label, num_labels, **kwargs) -> dict[str, Tensor]` of one image, summable.
        reduce (`Callable`): `dict[str, Tensor] -> dict[str, float]`, the scores of summed statistics; empty where no pixel
            of any image was valid.
        main (`str`): Name of the score by which the task is judged.
        lower_is_better (`bool`): Whether that score is an error.
        title (`str`, *optional*): That score in words, with its unit; `main` by default.
        per_class (`Callable`, *optional*): `dict[str, Tensor] -> Tensor` of shape `(num_labels,)`, the main score of each
            class.
        is_slow (`bool`, *optional*, defaults to `False`): Whether the statistics of one image take long enough to be
            computed in another process, which gets NumPy arrays.
    """

    statistics: Callable[..., dict[str, Tensor]]
    reduce: Callable[[dict[str, Tensor]], dict[str, float]]
    main: str
    lower_is_better: bool
    title: str = ""
    per_class: Callable[[dict[str, Tensor]], Tensor] | None = None
    is_slow: bool = False

    def __post_init__(self):
        object.__setattr__(self, "title", self.title or self.main)


def _check_shapes(
    prediction: Tensor, label: Tensor, channels: tuple[int, ...], label_channels: tuple[int, ...]
) -> None:
    size = tuple(label.shape[-2:])
    expected = (*channels, *size), (*label_channels, *size)
    got = tuple(prediction.shape), tuple(label.shape)
    if got != expected or len(size) != 2 or 0 in size:
        raise ValueError(
            f"A prediction of the shape {expected[0]} belongs to a label of the shape {expected[1]}, which is not empty; "
            f"got {got[0]} and {got[1]}. Pass `target_sizes` to the post-processing."
        )


def _check_finite(prediction: Tensor) -> None:
    if not prediction.is_floating_point() or not prediction.isfinite().all():
        raise ValueError(
            f"A prediction of this task is floating point, without NaN or infinity; got {prediction.dtype} with "
            f"{(~prediction.isfinite()).sum().item()} such values. Look at the weights, or at the precision they run in."
        )


def _check_ids(ids: Tensor, num_labels: int, what: str) -> None:
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"A {what} holds integer class ids; got {ids.dtype}. Take the argmax of logits.")
    if ids.numel() and (ids.min() < 0 or ids.max() >= num_labels):
        raise ValueError(
            f"A {what} holds class ids from 0 to {num_labels - 1}; got {ids.min().item()} to {ids.max().item()}. Is "
            "`num_labels` the number of classes, and is 255 what marks invalid pixels of the label?"
        )


def to_double(values: Tensor) -> Tensor:
    """Converts to float64, on the CPU for the one device that has none."""
    return values.cpu().double() if values.device.type == "mps" else values.double()


def class_statistics(prediction: Tensor, label: Tensor, num_labels: int) -> dict[str, Tensor]:
    """Counts pixels per pair of classes.

    Args:
        prediction (`torch.Tensor` of shape `(height, width)`): Class ids.
        label (`torch.Tensor` of shape `(height, width)`): Class ids, 255 invalid.
        num_labels (`int`): Number of classes.

    Returns:
        `dict[str, Tensor]`: `confusion` of shape `(num_labels, num_labels)`, label in rows and prediction in columns.

    Raises:
        ValueError: If sizes differ, or an id is not a class.
    """
    _check_shapes(prediction, label, (), ())
    valid = label != INVALID_ID
    prediction, label = prediction[valid], label[valid]
    _check_ids(prediction, num_labels, "prediction")
    _check_ids(label, num_labels, "label")
    pairs = label.long() * num_labels + prediction.long()
    return {"confusion": torch.bincount(pairs, minlength=num_labels**2).view(num_labels, num_labels)}


def class_ious(statistics: dict[str, Tensor]) -> Tensor:
    """Returns the intersection over union of each class, float64 `(num_labels,)`; 0 for a class that does not occur."""
    confusion = to_double(statistics["confusion"])
    intersection = confusion.diagonal()
    union = confusion.sum(dim=0) + confusion.sum(dim=1) - intersection
    return intersection / union.clamp(min=1)


def class_scores(statistics: dict[str, Tensor]) -> dict[str, float]:
    """Returns the mean intersection over union over all classes, absent ones counted as 0, and the pixel accuracy."""
    confusion = to_double(statistics["confusion"])
    if not confusion.any():
        return {}
    return {
        "miou": class_ious(statistics).mean().item(),
        "pixel_accuracy": (confusion.trace() / confusion.sum()).item(),
    }


def depth_statistics(prediction: Tensor, label: Tensor, num_labels: int) -> dict[str, Tensor]:
    """Sums the errors of metres, and counts the pixels whose ratio to the label is small.

    Args:
        prediction (`torch.Tensor` of shape `(height, width)`): Metres.
        label (`torch.Tensor` of shape `(1, height, width)`):
            Metres, at most 1,000; NaN and values that are not positive are invalid.
        num_labels (`int`): Unused; every metric has this signature.

    Raises:
        ValueError: If sizes differ, the prediction holds NaN or infinity, or the label is not in metres: whole numbers, or
            more than 1,000.
    """
    _check_shapes(prediction, label, (), (1,))
    _check_finite(prediction)
    check_metres(label)
    valid = label[0] > 0
    prediction, label = (to_double(values[valid]) for values in (prediction, label[0]))
    prediction = torch.where(prediction > 0, prediction, MIN_DEPTH)
    error = prediction - label
    ratio = torch.maximum(prediction / label, label / prediction)
    return {
        "squared_error": error.square().sum(),
        "squared_log_error": (prediction.log() - label.log()).square().sum(),
        "relative_error": (error.abs() / label).sum(),
        "relative_squared_error": (error.square() / label).sum(),
        "num_within_ratio": torch.stack([(ratio < bound).sum() for bound in DEPTH_RATIOS]),
        "predicted_metres": prediction.sum(),
        "true_metres": label.sum(),
        "num_valid": valid.sum(),
    }


def depth_scores(statistics: dict[str, Tensor]) -> dict[str, float]:
    """Computes the errors over all valid pixels of the set.

    Returns:
        `dict[str, float]`: `rmse` in metres; `log_rmse` of natural logarithms; `abs_rel`; `sq_rel` in metres; `delta1`,
        `delta2`, `delta3`, the shares of pixels within a ratio of 1.25, 1.25^2, 1.25^3 of the label; `scale`, mean predicted over
        mean true depth, where 1 is unbiased and less is too near.
    """
    num_valid = to_double(statistics["num_valid"])
    if num_valid == 0:
        return {}
    return {
        "rmse": (statistics["squared_error"] / num_valid).sqrt().item(),
        "log_rmse": (statistics["squared_log_error"] / num_valid).sqrt().item(),
        "abs_rel": (statistics["relative_error"] / num_valid).item(),
        "sq_rel": (statistics["relative_squared_error"] / num_valid).item(),
        **{
            f"delta{index}": (count / num_valid).item()
            for index, count in enumerate(statistics["num_within_ratio"], 1)
        },
        "scale": (statistics["predicted_metres"] / statistics["true_metres"]).item(),
    }


def normal_statistics(prediction: Tensor, label: Tensor, num_labels: int) -> dict[str, Tensor]:
    """Sums the angles between prediction and label, and counts them in a histogram.

    The angle is 2 atan2(|p - g|, |p + g|), exact for small angles where arccos is not.

    Args:
        prediction (`torch.Tensor` of shape `(3, height, width)`): Vectors of any length; the error of a zero vector is
            90 degrees.
        label (`torch.Tensor` of shape `(3, height, width)`): Unit vectors, NaN or length zero invalid.
        num_labels (`int`): Unused; every metric has this signature.

    Raises:
        ValueError: If sizes differ, or the prediction holds NaN or infinity.
    """
    _check_shapes(prediction, label, (3,), (3,))
    _check_finite(prediction)
    valid = label.isfinite().all(dim=0) & (label != 0).any(dim=0)
    prediction, label = to_double(prediction[:, valid]), to_double(label[:, valid])
    prediction, label = (vectors / _length(vectors).clamp(min=1e-12) for vectors in (prediction, label))
    degrees = 2 * torch.atan2(_length(prediction - label), _length(prediction + label)).rad2deg()
    num_bins = 180 * BINS_PER_DEGREE
    bins = (degrees * BINS_PER_DEGREE).long().clamp(max=num_bins - 1)
    return {
        "degrees": degrees.sum(),
        "squared_degrees": degrees.square().sum(),
        "num_within_angle": torch.stack([(degrees < bound).sum() for bound in ANGLES]),
        "histogram": torch.bincount(bins, minlength=num_bins),
        "num_valid": valid.sum(),
    }


def _length(vectors: Tensor) -> Tensor:
    return vectors.square().sum(dim=0).sqrt()  # torch's norm over a leading axis is 40 times slower


def _histogram_median(histogram: Tensor) -> float:
    """Returns the median in bins; the values of a bin are assumed to be spread evenly over it."""
    counts_up_to = histogram.cumsum(dim=0)
    half = counts_up_to[-1] / 2
    middle = torch.searchsorted(counts_up_to, half).item()
    share = 1 - (counts_up_to[middle] - half) / histogram[middle]  # of the middle bin that lies below the median
    return middle + share.item()


def normal_scores(statistics: dict[str, Tensor]) -> dict[str, float]:
    """Computes the angular errors over all valid pixels of the set.

    Returns:
        `dict[str, float]`: `mean_error`, `median_error` and `rmse` in degrees, the median from a histogram of bins of
        0.01 degrees; `within_11.25`, `within_22.5`, `within_30`, the shares of pixels with a smaller angle.
    """
    num_valid = to_double(statistics["num_valid"])
    if num_valid == 0:
        return {}
    return {
        "mean_error": (statistics["degrees"] / num_valid).item(),
        "median_error": _histogram_median(to_double(statistics["histogram"])) / BINS_PER_DEGREE,
        "rmse": (statistics["squared_degrees"] / num_valid).sqrt().item(),
        **{
            f"within_{bound:g}": (count / num_valid).item()
            for bound, count in zip(ANGLES, statistics["num_within_angle"], strict=True)
        },
    }


def saliency_statistics(prediction: Tensor, label: Tensor, num_labels: int) -> dict[str, Tensor]:
    """Counts the pixels of a probability map above the 19 `SALIENCY_THRESHOLDS`, and those of its sigmoid.

    Most published code applies a sigmoid to values that are probabilities already. The result is in [0.5, 0.731], so only
    four thresholds have an effect, at probabilities of 0.20, 0.41, 0.62 and 0.85. The `legacy_*` counts reproduce this for
    comparison.

    Args:
        prediction (`torch.Tensor` of shape `(height, width)`): Probability of being salient.
        label (`torch.Tensor` of shape `(height, width)`): 0 or 1, 255 invalid.
        num_labels (`int`): Unused; every metric has this signature.

    Raises:
        ValueError: If sizes differ, a label is neither 0 nor 1, or the prediction holds NaN or leaves [0, 1].
    """
    _check_shapes(prediction, label, (), ())
    _check_finite(prediction)
    if prediction.min() < 0 or prediction.max() > 1:
        raise ValueError(
            f"A probability lies in [0, 1]; got {prediction.min().item()} to {prediction.max().item()}. Post-process logits."
        )
    valid = label != INVALID_ID
    prediction, label = prediction[valid].float(), label[valid]
    _check_ids(label, 2, "label")
    # times 255 and back, as in published post-processing: it changes the last bit of some values
    doubled = (prediction * 255 / 255).sigmoid()
    return {
        **_counts_at_thresholds(prediction, label),
        **{f"legacy_{name}": count for name, count in _counts_at_thresholds(doubled, label).items()},
        "actual_positives": label.sum(),
        "num_valid": valid.sum(),
    }


def _counts_at_thresholds(values: Tensor, label: Tensor) -> dict[str, Tensor]:
    # float32 on both sides, as in published code: a float64 0.05 is not a float32 0.05
    thresholds = SALIENCY_THRESHOLDS.float().to(values.device)
    num_reached = torch.bucketize(values, thresholds, right=True)  # 0 ... 19 of value >= threshold
    counts = torch.bincount(2 * num_reached + label, minlength=2 * len(thresholds) + 2).view(-1, 2)
    above = counts.flip(0).cumsum(dim=0).flip(0)[1:]  # (19, negative and positive)
    return {"true_positives": above[:, 1], "predicted_positives": above.sum(dim=1)}


def max_f_measure(true_positives: Tensor, predicted_positives: Tensor, actual_positives: Tensor) -> float:
    """Returns the best F-measure over the thresholds with beta^2 = 0.3; 0 where precision or recall is 0 / 0."""
    precision = true_positives / predicted_positives.clamp(min=1)
    recall = true_positives / actual_positives.clamp(min=1)
    denominator = BETA_SQUARED * precision + recall
    f_measure = (1 + BETA_SQUARED) * precision * recall / torch.where(denominator > 0, denominator, 1)
    return f_measure.max().item()


def saliency_scores(statistics: dict[str, Tensor]) -> dict[str, float]:
    """Returns `maxf`, the best F-measure, and `maxf_legacy`, that with the second sigmoid of most published code."""
    if statistics["num_valid"] == 0:
        return {}
    counts = {name: to_double(values) for name, values in statistics.items()}
    return {
        name: max_f_measure(
            counts[f"{prefix}true_positives"], counts[f"{prefix}predicted_positives"], counts["actual_positives"]
        )
        for name, prefix in (("maxf", ""), ("maxf_legacy", "legacy_"))
    }


def odsf_scores(statistics: dict[str, Tensor]) -> dict[str, float]:
    """Returns `odsf`, its threshold, precision and recall, `ois` and `ap`; see `boundary.py`."""
    if statistics["num_images"] == 0:
        return {}
    scores = summed_scores(np.asarray(statistics["counts"]), np.asarray(statistics["best_counts"]))
    return {"odsf": scores.pop("ods"), **scores}


CLASS_METRIC = Metric(
    statistics=class_statistics,
    reduce=class_scores,
    main="miou",
    lower_is_better=False,
    title="mIoU",
    per_class=class_ious,
)
METRICS: dict[str, Metric] = {
    "semseg": CLASS_METRIC,
    "depth": Metric(
        statistics=depth_statistics, reduce=depth_scores, main="rmse", lower_is_better=True, title="RMSE, metres"
    ),
    "normal": Metric(
        statistics=normal_statistics,
        reduce=normal_scores,
        main="mean_error",
        lower_is_better=True,
        title="mean error, degrees",
    ),
    "boundary": Metric(
        statistics=boundary_statistics,
        reduce=odsf_scores,
        main="odsf",
        lower_is_better=False,
        title="odsF",
        is_slow=True,
    ),
    "parsing": CLASS_METRIC,
    "saliency": Metric(
        statistics=saliency_statistics, reduce=saliency_scores, main="maxf", lower_is_better=False, title="maxF"
    ),
}


def register_metric(task: str, metric: Metric) -> None:
    """Adds the metric of a task that [`register_task`] added. A task without a metric trains and predicts, unscored.

    Raises:
        ValueError: If there is no such task, or it has a metric.
    """
    get_task(task)
    if task in METRICS:
        raise ValueError(f"Task {task!r} has a metric already, {METRICS[task].main!r}; each task has one.")
    METRICS[task] = metric


def find_metric(task: str) -> Metric | None:
    """Returns the metric of a task, for a variant of another task without its own that of the other, or `None`."""
    return METRICS.get(task) or METRICS.get(VARIANTS.get(task))


def task_of(key: str) -> str:
    """Returns the task of a score `"task/score"`."""
    return key.split("/")[0]


def metric_of(key: str) -> Metric:
    """Returns the metric that a score `"task/score"` is of."""
    return find_metric(task_of(key))


def arrow(key: str) -> str:
    """Returns an arrow that shows whether lower or higher values of a score `"task/score"` are better."""
    return "↓" if metric_of(key).lower_is_better else "↑"
