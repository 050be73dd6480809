"""The losses of multi-task dense prediction, as "the same loss function as InvPT" (paper section 4.1) defines them.

Every loss takes logits of shape `(batch_size, num_labels, height, width)` and labels of the same height and width, is
computed in float32 whatever the autocast, averages over the valid pixels of the whole batch, and is a zero that still
has a gradient path where no pixel is valid. Invalid pixels are 255 in ids and boundaries, NaN in measurements.

In distributed training the whole batch is that of all ranks: the mean of the ranks' losses, and of their gradients, is the
loss that one rank would get for all images.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


INVALID_ID = 255


def mean_over_ranks(count: Tensor) -> Tensor:
    """Mean of a count over the ranks, which all have to ask for it; without gradient (`torch.no_grad`) the count itself."""
    if not (torch.is_grad_enabled() and dist.is_available() and dist.is_initialized()):
        return count
    total = count.detach().float().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def count_valid(valid: Tensor) -> Tensor:
    """How many pixels a rank has on average, and 1 where no rank has any."""
    count = mean_over_ranks(valid.sum())
    return torch.where(count > 0, count, 1)


def mean_over_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of `values` over the `valid` pixels, and 0 (not NaN) where there are none; both of one shape."""
    return torch.where(valid, values, 0.0).sum() / count_valid(valid)


def unit_length(vectors: Tensor) -> Tensor:
    """Vectors along the channels of `(batch_size, channels, ...)` at length 1, and zero where they are zero.

    `torch.nn.functional.normalize` written out: torch's norm over channels is 40 times slower on a CPU.
    """
    return vectors * vectors.square().sum(dim=1, keepdim=True).clamp(min=1e-24).rsqrt()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy for semantic classes and human parts.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`): Unnormalised scores.
        labels (`torch.Tensor` of shape `(batch_size, height, width)`): Class ids, int64, 255 invalid.

    Returns:
        Scalar `torch.Tensor`: mean over the valid pixels.
    """
    per_pixel = F.cross_entropy(logits.float(), labels, ignore_index=INVALID_ID, reduction="none")
    return mean_over_valid(per_pixel, labels != INVALID_ID)


def balanced_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Two-class cross-entropy whose classes are balanced over the batch, for saliency.

    A positive weighs the share of negatives among the valid pixels, a negative the share of positives; the sum is
    divided by the number of valid pixels, so a batch of one class only costs nothing.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, 2, height, width)`): Unnormalised scores.
        labels (`torch.Tensor` of shape `(batch_size, height, width)`): 0 or 1, int64, 255 invalid.

    Returns:
        Scalar `torch.Tensor`.
    """
    valid = labels != INVALID_ID
    share_of_negatives = mean_over_ranks((labels == 0).sum()) / count_valid(valid)
    weights = torch.where(labels == 0, 1 - share_of_negatives, share_of_negatives)
    per_pixel = F.cross_entropy(logits.float(), labels, ignore_index=INVALID_ID, reduction="none")
    return mean_over_valid(weights * per_pixel, valid)


def balanced_binary_cross_entropy(logits: Tensor, labels: Tensor, positive_weight: float | None = 0.95) -> Tensor:
    """Binary cross-entropy with logits for boundaries, `positive_weight` on positives and the rest on negatives.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, 1, height, width)`): Unnormalised scores.
        labels (`torch.Tensor` of shape `(batch_size, height, width)`): Boundary in [0, 1], soft labels allowed, 255
            invalid.
        positive_weight (`float`, *optional*, defaults to 0.95): In [0, 1]. `None` takes the share of non-boundary in
            the batch, as HED does; ATRC uses 0.8.

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
    """L1 distance between the unit-normalised prediction and the label, summed over x, y and z, for surface normals.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, 3, height, width)`): Vectors of any length.
        labels (`torch.Tensor` of shape `(batch_size, 3, height, width)`): Unit vectors; a pixel with NaN in any channel
            or of length zero is invalid.

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
