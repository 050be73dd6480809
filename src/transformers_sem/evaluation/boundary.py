"""The boundary F-measure odsF of the field: SEISM's `fb`, stage by stage, without MATLAB.

    prediction ── non-maximum suppression ── 101 thresholds ── thinning ──┐
                                                                          ├── one-to-one matching ── counts
    label map ─── boundaries between its regions ───────────── thinning ──┘

Counts add up over images; P, R, F, ODS, OIS and AP are computed from the sums. Non-maximum suppression, thresholds,
boundaries and thinning agree bit for bit with the reference program. The matching is the optimum, which its randomized
solver misses by 0.3 of some thousand pairs on average.

The 101 masks of an image are nested. A pixel is a word of 101 bits, and Boolean algebra on words thins all masks at once.
"""

import numpy as np
from numpy import ndarray
from scipy.sparse import csgraph, csr_array

from ..losses import INVALID_ID
from ..task_kinds import probability_to_levels


THRESHOLDS = np.concatenate([[0.001], np.arange(1, 100) / 100, [0.999]])
WORD_BITS = 64
SMOOTHING_RADIUS = 4  # the triangle filter [1 2 3 4 5 4 3 2 1] / 25
SUPPRESSION_MARGIN = np.float32(1.01)
FADING_WIDTH = 5  # pixels along each side of the image in which a boundary counts less


def boundary_counts(prediction: ndarray, label: ndarray, max_distance: float) -> ndarray:
    """Counts matched and unmatched boundary pixels of one image at the 101 `THRESHOLDS`.

    Args:
        prediction (`np.ndarray` of shape `(height, width)`): Strength of a boundary: floating point in
            [0, 1], truncated to 8 bits as the reference reads it; uint8 levels; or a bool mask, which is thinned and
            matched as it is.
        label (`np.ndarray` of shape `(height, width)`): Ground truth. Integers are a label map of any ids, and boundaries
            are between its regions; SEISM reads a thin edge map in the same way. Floating point is the label of the
            boundary task in [0, 1], 255 invalid; invalid pixels are not counted.
        max_distance (`float`): Largest distance of a predicted and a true pixel that match, inclusive, as a share of the
            diagonal of the image: 0.011 on NYUD-v2, 0.0075 on PASCAL-Context.

    Returns:
        `np.ndarray` of shape `(101, 4)`, int64: matched true pixels, true pixels, matched predicted pixels, predicted
        pixels. The first and the third are both the number of pairs.

    Raises:
        ValueError: If the maps differ in size or hold values that are not allowed, or `max_distance` is not in (0, 1).
    """
    prediction, label = np.asarray(prediction), np.asarray(label)
    _check(prediction, label, max_distance)
    valid = label != INVALID_ID if label.dtype.kind == "f" else np.ones(label.shape, dtype=bool)
    strength = (
        prediction.astype(np.float32) if prediction.dtype == bool else suppress_non_maxima(to_levels(prediction))
    )
    predicted = np.stack(
        [thin(words) for words in threshold_words(np.where(valid, strength, np.float32(0)))]
    )  # (2, H, W)
    true = thin(find_boundaries(label, valid).astype(np.uint64)) != 0
    matched, num_predicted = _match(predicted, true, max_distance * np.hypot(*label.shape))
    return np.stack([matched, np.full_like(matched, true.sum()), matched, num_predicted], axis=1)


def _check(prediction: ndarray, label: ndarray, max_distance: float) -> None:
    if prediction.ndim != 2 or prediction.shape != label.shape or 0 in prediction.shape:
        raise ValueError(
            "A boundary prediction and its label are maps (height, width) of one size, not empty; got "
            f"{prediction.shape} and {label.shape}. Resize the prediction to the label."
        )
    if prediction.dtype.kind != "f" and prediction.dtype not in (np.uint8, bool):
        raise ValueError(
            f"A boundary prediction is floating point in [0, 1], uint8 or bool; got {prediction.dtype}. Convert it."
        )
    if prediction.dtype.kind == "f" and not ((prediction >= 0) & (prediction <= 1)).all():
        raise ValueError(
            f"A boundary prediction lies in [0, 1] and holds no NaN; got {prediction.min()} to {prediction.max()}. Pass "
            "probabilities, not logits."
        )
    if label.dtype.kind not in "fiub":
        raise ValueError(
            f"A boundary label is an integer label map, or floating point; got {label.dtype}. Convert it."
        )
    if label.dtype.kind == "f" and not (((label >= 0) & (label <= 1)) | (label == INVALID_ID)).all():
        raise ValueError(
            f"A floating point boundary label lies in [0, 1], {INVALID_ID} invalid; got {label.min()} to {label.max()}. Pass "
            "a label map as integers."
        )
    check_max_distance(max_distance)


def check_max_distance(max_distance: float) -> None:
    """Raises a ValueError unless `max_distance` is a share of the diagonal of an image."""
    if not 0 < max_distance < 1:
        raise ValueError(
            f"max_distance is a share of the diagonal of the image, above 0 and below 1; got {max_distance}. The field uses "
            "0.011 on NYUD-v2 and 0.0075 on PASCAL-Context."
        )


def to_levels(prediction: ndarray) -> ndarray:
    """Converts a prediction in [0, 1] to 8-bit levels, truncated and not rounded; uint8 is returned as it is."""
    if prediction.dtype == np.uint8:
        return prediction
    return probability_to_levels(prediction)


def suppress_non_maxima(levels: ndarray) -> ndarray:
    """Sets pixels that are weaker than a neighbor across the boundary to 0, and fades the rim of the image.

    Computes in float32 and in the order of the reference, so that the result is the same bit for bit.

    Args:
        levels (`np.ndarray` of shape `(height, width)`): uint8.

    Returns:
        `np.ndarray` of shape `(height, width)`: float32 in [0, 1].
    """
    values = levels.astype(np.float32) / np.float32(255)
    orientation = _orientation(values)
    rows, columns = np.indices(values.shape, dtype=np.float32)
    row_step, column_step = np.sin(orientation), np.cos(orientation)
    strengthened = SUPPRESSION_MARGIN * values
    is_maximum = np.ones(values.shape, dtype=bool)
    for side in (np.float32(-1), np.float32(1)):
        neighbor = _sample(values, rows + side * row_step, columns + side * column_step)
        is_maximum &= strengthened >= neighbor
    return _fade_rim(np.where(is_maximum, values, np.float32(0)))


def _orientation(values: ndarray) -> ndarray:
    """Direction across the boundary in [0, pi), from the second derivatives of the smoothed map."""
    smoothed = _smooth_columns(values.T, scale=np.float32(1 / (SMOOTHING_RADIUS + 1) ** 4)).T
    smoothed = _smooth_columns(smoothed, scale=np.float32(1))
    along_y, along_x = _gradient(smoothed)
    along_xx = _gradient(along_x)[1]
    along_yy, along_xy = _gradient(along_y)
    angle = np.arctan(along_yy * np.sign(-along_xy) / (along_xx + np.float32(1e-5)))
    return np.mod(angle, np.float32(np.pi))


def _gradient(values: ndarray) -> tuple[ndarray, ndarray]:
    """Centered differences along rows and columns, one-sided at the ends; 0 along a side of one pixel."""
    return tuple(
        np.gradient(values, axis=axis) if values.shape[axis] > 1 else np.zeros_like(values) for axis in (0, 1)
    )


def _smooth_columns(values: ndarray, scale: np.float32) -> ndarray:
    """Triangle filter along the first axis, mirrored at the ends, as running sums of its second differences."""
    radius = SMOOTHING_RADIUS + 1
    padded = np.pad(values, [(radius, radius), (0, 0)], mode="symmetric")
    first_sums = np.cumsum(padded[radius : 2 * radius], axis=0)
    first = np.float32(2) * np.cumsum(first_sums, axis=0)[-1] - first_sums[-1]
    differences = (padded[: -2 * radius] + padded[2 * radius :]) - np.float32(2) * padded[radius:-radius]
    slopes = np.cumsum(differences[:-1], axis=0)
    return np.cumsum(np.concatenate([scale * first[np.newaxis], scale * slopes]), axis=0)


def _sample(values: ndarray, rows: ndarray, columns: ndarray) -> ndarray:
    """Bilinear interpolation, coordinates clamped just inside the map."""
    last_row, last_column = (max(size - 1.001, 0) for size in values.shape)
    rows, columns = np.clip(rows, np.float32(0), np.float32(last_row)), np.clip(columns, 0, np.float32(last_column))
    top, left = rows.astype(np.intp), columns.astype(np.intp)
    bottom, right = np.minimum(top + 1, values.shape[0] - 1), np.minimum(left + 1, values.shape[1] - 1)
    below, beyond = rows - top.astype(np.float32), columns - left.astype(np.float32)
    above, before = np.float32(1) - below, np.float32(1) - beyond
    return (
        values[top, left] * before * above
        + values[top, right] * beyond * above
        + values[bottom, left] * before * below
        + values[bottom, right] * beyond * below
    )


def _fade_rim(values: ndarray) -> ndarray:
    """Multiplies the five outermost columns, then rows, by 0, 0.2, 0.4, 0.6, 0.8."""
    for lines in (values.T, values):
        width = min(FADING_WIDTH, len(lines) // 2)
        for distance in range(width):
            lines[[distance, -1 - distance]] *= np.float32(distance) / np.float32(width)
    return values


def threshold_words(strength: ndarray) -> ndarray:
    """Packs the nested masks `strength > threshold` into words of bits.

    Args:
        strength (`np.ndarray` of shape `(height, width)`): float32.

    Returns:
        `np.ndarray` of shape `(2, height, width)`, uint64: bit b of word w is the mask of threshold 64 w + b.
    """
    num_exceeded = np.searchsorted(THRESHOLDS.astype(np.float32), strength)  # strictly greater, compared in float32
    lowest_bits = np.array([2**count - 1 for count in range(WORD_BITS + 1)], dtype=np.uint64)
    return lowest_bits[[np.clip(num_exceeded - start, 0, WORD_BITS) for start in range(0, len(THRESHOLDS), WORD_BITS)]]


def find_boundaries(label: ndarray, valid: ndarray) -> ndarray:
    """Returns the pixels whose label differs from the right, lower or lower right neighbor, where both are valid."""
    boundaries = np.zeros(label.shape, dtype=bool)
    height, width = label.shape
    for down, right in ((0, 1), (1, 0), (1, 1)):
        here, there = np.s_[: height - down, : width - right], np.s_[down:, right:]
        boundaries[here] |= (label[here] != label[there]) & valid[here] & valid[there]
    return boundaries


def thin(words: ndarray) -> ndarray:
    """Thins masks until they no longer change, by Guo and Hall's two alternating steps (Lam, Lee and Suen 1992).

    Args:
        words (`np.ndarray` of shape `(height, width)`): uint64; every bit position is one mask.

    Returns:
        `np.ndarray` of shape `(height, width)`: uint64.
    """
    padded = np.pad(words, 1)
    flat, row = padded.reshape(-1), padded.shape[1]
    neighbors = np.array([1, 1 - row, -row, -row - 1, -1, row - 1, row, row + 1])  # counterclockwise from the right
    candidates = np.flatnonzero(flat)
    last_changes, changes, step = candidates, candidates, 0
    while len(last_changes) or len(changes):
        removed = _removable(flat[candidates], [flat[candidates + offset] for offset in neighbors], step)
        flat[candidates] ^= removed
        last_changes, changes = changes, candidates[removed != 0]
        step = 1 - step
        # a step of this parity ran two steps ago: only neighbors of pixels that changed since can change now
        is_near = np.zeros(len(flat), dtype=bool)
        for changed in (last_changes, changes):
            is_near[(changed[:, np.newaxis] + neighbors).ravel()] = True
            is_near[changed] = True
        candidates = np.flatnonzero(is_near & (flat != 0))
    return padded[1:-1, 1:-1]


def _removable(pixels: ndarray, neighbors: list[ndarray], step: int) -> ndarray:
    """Returns the bits of `pixels` that a step removes: conditions G1, G2 and G3 of the algorithm, for 64 masks at once."""
    x1, x2, x3, x4, x5, x6, x7, x8 = neighbors
    starts = (~x1 & (x2 | x3), ~x3 & (x4 | x5), ~x5 & (x6 | x7), ~x7 & (x8 | x1))
    one_run = (starts[0] ^ starts[1] ^ starts[2] ^ starts[3]) & ~(starts[0] & starts[1] | starts[2] & starts[3])
    pairs = (x1 | x2, x3 | x4, x5 | x6, x7 | x8), (x2 | x3, x4 | x5, x6 | x7, x8 | x1)
    enough = _at_least_two(*pairs[0]) & _at_least_two(*pairs[1])
    too_many = _all_four(*pairs[0]) & _all_four(*pairs[1])
    keep = (x2 | x3 | ~x8) & x1 if step == 0 else (x6 | x7 | ~x4) & x5
    return pixels & one_run & enough & ~too_many & ~keep


def _at_least_two(a: ndarray, b: ndarray, c: ndarray, d: ndarray) -> ndarray:
    return a & b | c & d | (a | b) & (c | d)


def _all_four(a: ndarray, b: ndarray, c: ndarray, d: ndarray) -> ndarray:
    return a & b & c & d


def _match(predicted: ndarray, true: ndarray, radius: float) -> tuple[ndarray, ndarray]:
    """Returns the numbers of matched pairs and of predicted pixels at every threshold.

    Args:
        predicted (`np.ndarray` of shape `(2, height, width)`): Thinned masks, as `threshold_words` lays them out.
        true (`np.ndarray` of shape `(height, width)`): Thinned boundaries, bool.
        radius (`float`): Largest distance of a pair, in pixels.
    """
    is_predicted = predicted.any(axis=0)
    true_ids, predicted_ids = _candidate_pairs(true, is_predicted, radius)
    words, num_true = predicted[:, is_predicted], np.count_nonzero(true)
    matched, num_predicted = (np.zeros(len(THRESHOLDS), dtype=np.int64) for _ in range(2))
    for index in range(len(THRESHOLDS)):
        word, bit = divmod(index, WORD_BITS)
        is_on = (words[word] >> np.uint64(bit)) & np.uint64(1) != 0
        is_pair = is_on[predicted_ids]
        matched[index] = _max_matching(true_ids[is_pair], predicted_ids[is_pair], num_true, len(is_on))
        num_predicted[index] = is_on.sum()
    return matched, num_predicted


def _candidate_pairs(true: ndarray, predicted: ndarray, radius: float) -> tuple[ndarray, ndarray]:
    """Returns the ids of true and predicted pixels within `radius`, sorted by the true ones; ids count along rows."""
    reach = min(int(radius), max(true.shape))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    is_within = rows**2 + columns**2 <= radius**2
    predicted_ids = np.full(true.shape, -1, dtype=np.int32)
    predicted_ids[predicted] = np.arange(predicted.sum(), dtype=np.int32)
    predicted_ids = np.pad(predicted_ids, reach, constant_values=-1)
    positions = np.flatnonzero(np.pad(true, reach))
    offsets = (rows * predicted_ids.shape[1] + columns)[is_within]
    pairs = []
    for offset in offsets:
        found = predicted_ids.reshape(-1)[positions + offset]
        pairs.append((np.flatnonzero(found >= 0), found[found >= 0]))
    true_ids, found_ids = (np.concatenate(ids) for ids in zip(*pairs, strict=True))
    order = np.argsort(true_ids, kind="stable")
    return true_ids[order], found_ids[order]


def _max_matching(left: ndarray, right: ndarray, num_left: int, num_right: int) -> int:
    """Returns the size of the largest one-to-one matching among pairs `(left[i], right[i])`, sorted by `left`.

    It is the maximum flow from a source through the left and the right nodes to a sink, with all capacities 1.
    """
    if not len(left):
        return 0
    is_paired = np.zeros(num_right, dtype=bool)
    is_paired[right] = True
    numbers = np.cumsum(is_paired)  # 1, 2, ... for the right nodes that have a pair; most have none
    num_paired = numbers[-1]
    source, sink = 0, num_left + num_paired + 1
    targets = np.concatenate([np.arange(1, num_left + 1), num_left + numbers[right], np.full(num_paired, sink)])
    out_degrees = [[0, num_left], np.bincount(left, minlength=num_left), np.ones(num_paired, dtype=np.intp), [0]]
    row_starts = np.concatenate(out_degrees).cumsum()
    network = csr_array(
        (np.ones(len(targets), np.int32), targets.astype(np.int32), row_starts.astype(np.int32)),
        shape=(sink + 1, sink + 1),
    )
    # not SciPy's maximum_bipartite_matching: it practically hangs on such graphs (scipy issue 26147)
    return int(csgraph.maximum_flow(network, source, sink, method="dinic").flow_value)


def boundary_statistics(
    prediction: ndarray, label: ndarray, num_labels: int, max_distance: float = 0.011
) -> dict[str, ndarray]:
    """Returns the summable statistics of one image; those of an image without a valid pixel are 0.

    Args:
        prediction (`np.ndarray` of shape `(height, width)`): As in `boundary_counts`.
        label (`np.ndarray` of shape `(height, width)`): As in `boundary_counts`.
        num_labels (`int`): Unused; every metric has this signature.
        max_distance (`float`): As in `boundary_counts`.

    Returns:
        `dict[str, np.ndarray]`: `counts` of shape `(101, 4)`; `best_counts` of shape `(4,)`, at the threshold with the
        best F of this image; `num_images`, 1 or 0.
    """
    counts = boundary_counts(prediction, label, max_distance)
    label = np.asarray(label)
    has_labels = label.dtype.kind != "f" or bool((label != INVALID_ID).any())
    return {
        "counts": counts,
        "best_counts": counts[f_measure(counts).argmax()],
        "num_images": np.array(int(has_labels)),
    }


def precision_and_recall(counts: ndarray) -> tuple[ndarray, ndarray]:
    """Returns precision and recall of counts `(..., 4)`: 0 and 1 without true pixels, else 1 and 0 without predicted ones."""
    matched_true, num_true, matched_predicted, num_predicted = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    precision, recall = matched_predicted / np.maximum(num_predicted, 1), matched_true / np.maximum(num_true, 1)
    precision = np.where(num_true == 0, 0.0, np.where(num_predicted == 0, 1.0, precision))
    return precision, np.where(num_true == 0, 1.0, recall)


def f_measure(counts: ndarray) -> ndarray:
    """Returns 2 P R / (P + R) of counts of shape `(..., 4)`, and 0 where both are 0."""
    precision, recall = precision_and_recall(counts)
    total = precision + recall
    return 2 * precision * recall / np.where(total > 0, total, 1)


def average_precision(counts: ndarray) -> float:
    """Returns the mean precision, interpolated at recalls 0, 0.01, ..., 1; it is 0 outside the range of the recalls.

    Of equal recalls the first threshold is used. The sum is divided by 100 and not by 101, as in the reference.

    Args:
        counts (`np.ndarray` of shape `(101, 4)`): Sums over images.
    """
    precision, recall = precision_and_recall(counts)
    recall, first = np.unique(recall, return_index=True)
    return float(np.interp(np.arange(101) / 100, recall, precision[first], left=0.0, right=0.0).sum() / 100)


def boundary_scores(counts: ndarray) -> dict[str, float]:
    """Computes the scores of a set of images.

    Args:
        counts (`np.ndarray` of shape `(num_images, 101, 4)`): As `boundary_counts` returns them for each image.

    Returns:
        `dict[str, float]`: `ods`, the best F at one threshold for all images (odsF); `ods_threshold`, that threshold, the
        lowest of equal ones; `ods_precision` and `ods_recall`; `ois`, F where each image has its own best threshold; `ap`,
        average precision.

    Raises:
        ValueError: If the counts have another shape, or there are none.
    """
    counts = np.asarray(counts)
    if counts.ndim != 3 or counts.shape[1:] != (len(THRESHOLDS), 4) or len(counts) == 0:
        raise ValueError(
            f"Scores need counts of shape (num_images, {len(THRESHOLDS)}, 4) of at least one image; got {counts.shape}."
        )
    best = f_measure(counts).argmax(axis=1)
    return summed_scores(counts.sum(axis=0), counts[np.arange(len(counts)), best].sum(axis=0))


def summed_scores(counts: ndarray, best_counts: ndarray) -> dict[str, float]:
    """Computes the same from sums: counts `(101, 4)`, and `best_counts` `(4,)` at the best threshold of each image."""
    measure = f_measure(counts)
    best = measure.argmax()
    precision, recall = precision_and_recall(counts[best])
    return {
        "ods": float(measure[best]),
        "ods_threshold": float(THRESHOLDS[best]),
        "ods_precision": float(precision),
        "ods_recall": float(recall),
        "ois": float(f_measure(best_counts)),
        "ap": average_precision(counts),
    }
