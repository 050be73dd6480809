"""Metrics as sums: each is a pair of pure functions, `*_statistics` of one image and `*_scores` of summed statistics.

The statistics of a set are the sum of the statistics of its images, so a metric streams, merges over ranks by one sum,
and does not depend on how a set is cut into batches. A prediction and a label are maps in physical units of one image
(see `tasks.py`); statistics are float64 tensors.
"""

import torch
from torch import Tensor

from .losses import INVALID_ID


THRESHOLDS = torch.arange(1, 20, dtype=torch.float64) / 20  # 0.05 ... 0.95


def class_statistics(prediction: Tensor, label: Tensor, num_labels: int) -> dict[str, Tensor]:
    """Pixel counts per class.

    Args:
        prediction (`torch.Tensor` of shape `(height, width)`): Class ids.
        label (`torch.Tensor` of shape `(height, width)`): Class ids, 255 invalid.
        num_labels (`int`): Number of classes.

    Returns:
        `dict[str, Tensor]`: `confusion` of shape `(num_labels, num_labels)`, label in rows and prediction in columns.
    """
    valid = label != INVALID_ID
    pairs = label[valid].long() * num_labels + prediction[valid].long()
    return {"confusion": torch.bincount(pairs, minlength=num_labels**2).view(num_labels, num_labels).double()}


def class_scores(statistics: dict[str, Tensor]) -> dict[str, float]:
    """Mean intersection over union over all classes, an absent class counting 0, and the share of right pixels."""
    confusion = statistics["confusion"]
    intersection = confusion.diagonal()
    union = confusion.sum(dim=0) + confusion.sum(dim=1) - intersection
    return {
        "miou": (intersection / union.clamp(min=1)).mean().item(),
        "pixel_accuracy": (intersection.sum() / confusion.sum().clamp(min=1)).item(),
    }


def depth_statistics(prediction: Tensor, label: Tensor, num_labels: int) -> dict[str, Tensor]:
    """Squared and absolute errors of a measurement.

    Args:
        prediction (`torch.Tensor` of shape `(height, width)`): Metres.
        label (`torch.Tensor` of shape `(1, height, width)`): Metres, NaN invalid.
        num_labels (`int`): Unused: the same signature as that of every other metric.
    """
    valid = label[0].isfinite()
    error = prediction[valid].double() - label[0][valid].double()
    return {"squared_error": error.square().sum(), "absolute_error": error.abs().sum(), "num_valid": valid.sum()}


def depth_scores(statistics: dict[str, Tensor]) -> dict[str, float]:
    """Root mean square and mean absolute error over all valid pixels of the set, in metres."""
    num_valid = statistics["num_valid"].clamp(min=1)
    return {
        "rmse": (statistics["squared_error"] / num_valid).sqrt().item(),
        "mean_absolute_error": (statistics["absolute_error"] / num_valid).item(),
    }


def normal_statistics(prediction: Tensor, label: Tensor, num_labels: int) -> dict[str, Tensor]:
    """Sum of the angles between prediction and label.

    The angle is 2 atan2(|p - g|, |p + g|), exact for small angles where arccos is not.

    Args:
        prediction (`torch.Tensor` of shape `(3, height, width)`): Unit vectors.
        label (`torch.Tensor` of shape `(3, height, width)`): Unit vectors, NaN or length zero invalid.
        num_labels (`int`): Unused: the same signature as that of every other metric.
    """
    valid = label.isfinite().all(dim=0) & (label != 0).any(dim=0)
    prediction, label = prediction[:, valid].double(), label[:, valid].double()
    label = label / _length(label)
    angle = 2 * torch.atan2(_length(prediction - label), _length(prediction + label))
    return {"degrees": angle.rad2deg().sum(), "num_valid": valid.sum()}


def _length(vectors: Tensor) -> Tensor:
    return vectors.square().sum(dim=0).sqrt()  # torch's norm over a leading axis is 40 times slower


def normal_scores(statistics: dict[str, Tensor]) -> dict[str, float]:
    """Mean angle over all valid pixels of the set, in degrees."""
    return {"mean_error": (statistics["degrees"] / statistics["num_valid"].clamp(min=1)).item()}


def threshold_statistics(prediction: Tensor, label: Tensor, num_labels: int) -> dict[str, Tensor]:
    """Counts of a probability map cut at the 19 `THRESHOLDS`, pixel against pixel.

    Args:
        prediction (`torch.Tensor` of shape `(height, width)`): Probability of the positive class.
        label (`torch.Tensor` of shape `(height, width)`): Positive where > 0.5, 255 invalid.
        num_labels (`int`): Unused: the same signature as that of every other metric.
    """
    valid = label != INVALID_ID
    positive = label[valid] > 0.5
    # float32 on both sides, as the field cuts: a float64 0.05 is not a float32 0.05
    predicted = prediction[valid].float() >= THRESHOLDS.to(prediction.device).float().unsqueeze(1)  # (19, pixels)
    return {
        "true_positives": (predicted & positive).sum(dim=1),
        "predicted_positives": predicted.sum(dim=1),
        "actual_positives": positive.sum(),
    }


def max_f_measure(statistics: dict[str, Tensor], beta_squared: float) -> float:
    """Best F-measure over the thresholds, 0 where precision or recall is 0 / 0."""
    precision = statistics["true_positives"] / statistics["predicted_positives"].clamp(min=1)
    recall = statistics["true_positives"] / statistics["actual_positives"].clamp(min=1)
    denominator = beta_squared * precision + recall
    f_measure = (1 + beta_squared) * precision * recall / torch.where(denominator > 0, denominator, 1)
    return f_measure.max().item()


def saliency_scores(statistics: dict[str, Tensor]) -> dict[str, float]:
    """Best F-measure of salient object detection, maxF, beta^2 = 0.3."""
    return {"maxf": max_f_measure(statistics, beta_squared=0.3)}


def boundary_scores(statistics: dict[str, Tensor]) -> dict[str, float]:
    """Best F-measure of pixel-exact agreement: a plain counterpart of odsF, which matches within a tolerance."""
    return {"pixel_maxf": max_f_measure(statistics, beta_squared=1.0)}
