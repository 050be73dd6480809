"""Losses of multi-task dense prediction: "the same loss function as InvPT" (section 4.1 of the paper).

Every loss takes logits of shape `(batch_size, num_labels, height, width)` and labels of the same height and width. It is
computed in float32 under any autocast and averaged over the valid pixels of the whole batch. Without a valid pixel it is
zero and still has a gradient. Invalid pixels are 255 in ids and boundaries, NaN in measurements.

In distributed training the batch is that of all ranks: the mean over the ranks of the losses, and of the gradients, equals
that of one rank that has all images. Micro-batches of one optimizer step are separate batches: they are averaged with equal
weights, however many valid pixels each has.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


INVALID_ID = 255
# On a CPU torch's softmax over the last dimension is faster than over the channels of a map, unless there are few classes
MANY_CLASSES = 12


def mean_over_ranks(count: Tensor) -> Tensor:
    """Returns the mean of a count over the ranks, which must all call it; under `torch.no_grad` the count itself."""
    if not (torch.is_grad_enabled() and dist.is_available() and dist.is_initialized()):
        return count
    total = count.detach().float().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def count_valid(valid: Tensor) -> Tensor:
    """Returns the mean number of valid pixels per rank, or 1 if no rank has any."""
    count = mean_over_ranks(valid.sum())
    return torch.where(count > 0, count, 1)


def mean_over_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Returns the mean of `values` over the `valid` pixels, or 0 if there are none. Both have the same shape."""
    return torch.where(valid, values, 0.0).sum() / count_valid(valid)


def unit_length(vectors: Tensor) -> Tensor:
    """Normalizes vectors along the channels of `(batch_size, channels, ...)` to length 1. Zero vectors stay zero.

    It is `torch.nn.functional.normalize` without `torch.norm`, whose reduction over channels is 40 times slower on a CPU.
    """
    return vectors * vectors.square().sum(dim=1, keepdim=True).clamp(min=1e-24).rsqrt()


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the softmax cross-entropy of each pixel, 0 where the label is invalid.

    Raises:
        ValueError: If a label has an id beyond the head. (On a GPU, torch ends the process with its own message.)
    """
    scores, ids = logits.float(), labels
    # a list of pixels, which is no copy of a channels-last map
    if logits.device.type == "cpu" and logits.shape[1] >= MANY_CLASSES:
        scores, ids = scores.permute(0, 2, 3, 1).flatten(0, 2), ids.flatten()
    try:
        losses = F.cross_entropy(scores, ids, ignore_index=INVALID_ID, reduction="none")
    except IndexError as error:
        raise ValueError(
            f"Labels are class ids from 0 to {logits.shape[1] - 1}, {INVALID_ID} invalid; got {labels.min().item()} to "
            f"{labels[labels != INVALID_ID].max().item()}. Map the ids of your data, or give `task_num_labels` the width that "
            "they need."
        ) from error
    return losses.view(labels.shape)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy for semantic classes and human parts.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`): Unnormalized scores.
        labels (`torch.Tensor` of shape `(batch_size, height, width)`): Class ids, int64, 255 invalid.

    Returns:
        Scalar `torch.Tensor`: mean over the valid pixels.
    """
    per_pixel = pixel_cross_entropy(logits, labels)
    return mean_over_valid(per_pixel, labels != INVALID_ID)


def balanced_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Two-class cross-entropy with classes balanced over the batch, for saliency.

    Positives are weighted by the share of negatives among the valid pixels, negatives by the share of positives. The sum
    is divided by the number of valid pixels. For a batch of one class the loss is zero.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, 2, height, width)`): Unnormalized scores.
        labels (`torch.Tensor` of shape `(batch_size, height, width)`): 0 or 1, int64, 255 invalid.

    Returns:
        Scalar `torch.Tensor`.
    """
    valid = labels != INVALID_ID
    share_of_negatives = mean_over_ranks((labels == 0).sum()) / count_valid(valid)
    weights = torch.where(labels == 0, 1 - share_of_negatives, share_of_negatives)
    per_pixel = pixel_cross_entropy(logits, labels)
    return mean_over_valid(weights * per_pixel, valid)


def balanced_binary_cross_entropy(logits: Tensor, labels: Tensor, positive_weight: float | None = 0.95) -> Tensor:
    """Binary cross-entropy for boundaries; negatives have the weight `1 - positive_weight`.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, 1, height, width)`): Unnormalized scores.
        labels (`torch.Tensor` of shape `(batch_size, height, width)`): Boundary probability in [0, 1], 255 invalid.
        positive_weight (`float`, *optional*, defaults to 0.95): In [0, 1]. `None` uses the share of negatives in
            the batch, as HED does. ATRC uses 0.8.

    Returns:
        Scalar `torch.Tensor`: mean over the valid pixels.
    """
    valid = labels != INVALID_ID
    labels = torch.where(valid, labels, 0.0).float()
    if positive_weight is None:
        positive_weight = 1 - mean_over_ranks(labels.sum()) / count_valid(valid)
    logits = logits.squeeze(1).float()
    positives = positive_weight * labels * F.logsigmoid(logits)
    negatives = (1 - positive_weight) * (1 - labels) * F.logsigmoid(-logits)
    return mean_over_valid(-(positives + negatives), valid)


def unit_vector_l1(logits: Tensor, labels: Tensor) -> Tensor:
    """L1 distance between the normalized prediction and the label, summed over x, y and z, for surface normals.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, 3, height, width)`): Vectors of any length.
        labels (`torch.Tensor` of shape `(batch_size, 3, height, width)`): Unit vectors. Pixels with NaN in any channel
            or of length zero are invalid.

    Returns:
        Scalar `torch.Tensor`: mean over the valid pixels (not over their three channels).
    """
    valid = labels.isfinite().all(dim=1) & (labels != 0).any(dim=1)
    distance = (unit_length(logits.float()) - torch.where(valid.unsqueeze(1), labels, 0.0)).abs().sum(dim=1)
    return mean_over_valid(distance, valid)


def l1(logits: Tensor, labels: Tensor) -> Tensor:
    """Absolute error in the unit of the label (metres for depth).

    Args:
        logits (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Predicted values.
        labels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Measured values, NaN invalid.

    Returns:
        Scalar `torch.Tensor`: mean over the valid values.
    """
    valid = labels.isfinite()
    return mean_over_valid((logits.float() - torch.where(valid, labels, 0.0)).abs(), valid)
