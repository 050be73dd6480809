"""The boundary F-measure gives the reference's numbers stage by stage, and does what it says on maps of any kind."""

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d, gaussian_filter
from scipy.optimize import linear_sum_assignment
from skimage.morphology import thin as slow_thin

from transformers_sem.evaluation import boundary
from transformers_sem.evaluation.metrics import METRICS


IMAGES = range(6)
DISTANCES = {"md0.0075": 0.0075, "md0.011": 0.011}
NUM_THRESHOLDS = 101
WORDS_OF_64 = np.arange(64, dtype=np.uint64)
ALWAYS = 0.05  # a share of the diagonal at which small maps have pairs
SIZES = [(1, 1), (1, 2), (2, 1), (1, 40), (40, 1), (2, 2), (3, 3), (4, 9), (9, 10), (11, 10), (23, 31)]

every_image = pytest.mark.parametrize("image", IMAGES)
both_distances = pytest.mark.parametrize("distance", DISTANCES)
every_size = pytest.mark.parametrize("size", SIZES, ids=str)
without_warnings = pytest.mark.filterwarnings("error")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def smooth_map(rng, size, sigma=1.5):
    """Blobs that fill [0, 1]."""
    values = gaussian_filter(rng.standard_normal(size), sigma)
    return (values - values.min()) / max(np.ptp(values), 1e-12)


def label_map(rng, size, num_regions=4):
    return (smooth_map(rng, size, sigma=3) * num_regions).astype(np.int64)


def all_valid(label):
    return np.ones(label.shape, dtype=bool)


def pack(masks):
    """Masks (up to 64, height, width) as one word per pixel."""
    return (masks.astype(np.uint64) << WORDS_OF_64[: len(masks), None, None]).sum(axis=0, dtype=np.uint64)


def unpack(words, num_masks=64):
    return (words >> WORDS_OF_64[:num_masks, None, None]) & np.uint64(1) != 0


def thin_mask(mask):
    return boundary.thin(mask.astype(np.uint64)) != 0


# Against the reference program, stage by stage


@pytest.fixture(scope="module")
def reference(golden):
    return golden("odsf")


@pytest.fixture(scope="module")
def degenerate(golden):
    return golden("odsf_degenerate")


@pytest.fixture(scope="module")
def counts(reference):
    """Our counts of every image, `{distance: (6, 101, 4)}`."""
    return {
        name: np.stack(
            [
                boundary.boundary_counts(reference[f"im{image}/pred_u8"], reference[f"im{image}/gt_label"], share)
                for image in IMAGES
            ]
        )
        for name, share in DISTANCES.items()
    }


def reference_counts(reference, distance):
    return np.stack([reference[f"im{image}/{distance}/counts"] for image in IMAGES])


def exact_counts(reference, distance):
    """The reference's counts with the optimum in place of its randomized matching."""
    exact = reference_counts(reference, distance)
    for image in IMAGES:
        exact[image, :, [0, 2]] = reference[f"im{image}/{distance}/own_matched_exact"]
    return exact


def test_the_thresholds_are_those_of_the_reference(reference):
    np.testing.assert_array_equal(boundary.THRESHOLDS, reference["thresholds"])


@every_image
def test_non_maximum_suppression_is_that_of_the_reference_bit_for_bit(reference, image):
    suppressed = boundary.suppress_non_maxima(reference[f"im{image}/pred_u8"])
    assert suppressed.dtype == np.float32
    np.testing.assert_array_equal(suppressed.view(np.uint32), reference[f"im{image}/nms_f32"].view(np.uint32))


@every_image
@pytest.mark.parametrize(("index", "name"), [(10, "thinned_at_0.10"), (50, "thinned_at_0.50")])
def test_thinned_masks_are_those_of_the_reference(reference, image, index, name):
    words = boundary.threshold_words(reference[f"im{image}/nms_f32"])[index // 64]
    np.testing.assert_array_equal(unpack(boundary.thin(words))[index % 64], reference[f"im{image}/{name}"])


@every_image
def test_boundaries_of_the_label_are_those_of_the_reference(reference, image):
    label = reference[f"im{image}/gt_label"]
    thinned = thin_mask(boundary.find_boundaries(label, all_valid(label)))
    np.testing.assert_array_equal(thinned, reference[f"im{image}/gt_boundary"])


@both_distances
def test_numbers_of_pixels_are_those_of_the_reference(reference, counts, distance):
    np.testing.assert_array_equal(counts[distance][..., [1, 3]], reference_counts(reference, distance)[..., [1, 3]])


@both_distances
def test_every_matching_is_the_greatest(reference, counts, distance):
    """Among them the three on which another matcher of SciPy hangs: image 2, 0.011, thresholds 0.37 to 0.39."""
    np.testing.assert_array_equal(counts[distance], exact_counts(reference, distance))


@both_distances
def test_scores_are_close_to_those_of_the_randomized_reference(reference, counts, distance):
    scores = boundary.boundary_scores(counts[distance])
    for name, tolerance in (("ods", 1e-3), ("ois", 1e-3), ("ap", 2e-3)):
        expected = float(reference[f"dataset/{distance}/{name.upper()}"])
        assert scores[name] == pytest.approx(expected, abs=tolerance)


@both_distances
@pytest.mark.parametrize(("read", "prefix"), [(reference_counts, ""), (exact_counts, "own_exact_")])
def test_equal_counts_give_the_scores_of_the_reference(reference, distance, read, prefix):
    counts = read(reference, distance)
    expected = {
        name: reference[f"dataset/{distance}/{prefix}{key}"].item()
        for name, key in {
            "ods": "ODS",
            "ods_threshold": "ODS_threshold",
            "ods_precision": "ODS_P",
            "ods_recall": "ODS_R",
            "ois": "OIS",
            "ap": "AP",
        }.items()
    }
    assert boundary.boundary_scores(counts) == pytest.approx(expected, rel=1e-12)


@both_distances
@pytest.mark.parametrize(("read", "prefix"), [(reference_counts, ""), (exact_counts, "own_exact_")])
def test_equal_counts_give_the_curves_of_the_reference(reference, distance, read, prefix):
    counts, folder = read(reference, distance), f"dataset/{distance}/{prefix}"
    precision, recall = boundary.precision_and_recall(counts.sum(axis=0))
    np.testing.assert_allclose(precision, reference[f"{folder}P"], rtol=1e-12)
    np.testing.assert_allclose(recall, reference[f"{folder}R"], rtol=1e-12)
    np.testing.assert_allclose(boundary.f_measure(counts.sum(axis=0)), reference[f"{folder}F"], rtol=1e-12)
    np.testing.assert_allclose(boundary.f_measure(counts), reference[f"{folder}F_image"], rtol=1e-12)
    np.testing.assert_array_equal(boundary.f_measure(counts).argmax(axis=1), reference[f"{folder}OIS_index"])


@without_warnings
@pytest.mark.parametrize("prediction", range(6))
@pytest.mark.parametrize("label", range(4))
def test_degenerate_masks_count_as_in_the_reference(degenerate, label, prediction):
    for index, max_distance in enumerate(degenerate["maxdist"]):
        counts = boundary.boundary_counts(
            degenerate["pred_binary"][prediction], degenerate["gt_label"][label], max_distance
        )
        precision, recall = boundary.precision_and_recall(counts)
        ours = np.column_stack([boundary.f_measure(counts), precision, recall, counts])
        expected = degenerate["result"][index, label, prediction]
        np.testing.assert_allclose(ours, np.broadcast_to(expected, (NUM_THRESHOLDS, 7)), rtol=1e-12)


def test_degenerate_masks_are_thinned_as_in_the_reference(degenerate):
    for mask, expected in zip(degenerate["pred_binary"], degenerate["pred_thinned"], strict=True):
        np.testing.assert_array_equal(thin_mask(mask), expected)


def test_degenerate_labels_have_the_boundaries_of_the_reference(degenerate):
    for label, expected in zip(degenerate["gt_label"], degenerate["gt_boundary"], strict=True):
        np.testing.assert_array_equal(thin_mask(boundary.find_boundaries(label, all_valid(label))), expected)


# Each stage against a slow one


def slow_suppression(levels):
    """The formulas in float64; in float32 a few pixels come out otherwise."""
    values = levels / 255
    triangle = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1]) / 25
    smoothed = convolve1d(convolve1d(values, triangle, axis=0), triangle, axis=1)
    along_y, along_x = np.gradient(smoothed)
    along_yy, along_xy = np.gradient(along_y)
    angle = np.arctan(along_yy * np.sign(-along_xy) / (np.gradient(along_x, axis=1) + 1e-5)) % np.pi
    kept = np.zeros(values.shape)
    for row, column in np.ndindex(values.shape):
        step = np.array([np.sin(angle[row, column]), np.cos(angle[row, column])])
        neighbors = [interpolate(values, row + side * step[0], column + side * step[1]) for side in (-1, 1)]
        kept[row, column] = values[row, column] * (1.01 * values[row, column] >= max(neighbors))
    fade = [np.minimum(np.minimum(np.arange(size), np.arange(size)[::-1]) / 5, 1) for size in values.shape]
    return kept * np.outer(*fade)


def interpolate(values, row, column):
    row, column = (
        min(max(position, 0), size - 1.001) for position, size in zip((row, column), values.shape, strict=True)
    )
    top, left = int(row), int(column)
    weights = np.outer([1 - (row - top), row - top], [1 - (column - left), column - left])
    return (values[top : top + 2, left : left + 2] * weights).sum()


def test_non_maximum_suppression_follows_its_formulas(rng):
    levels = (255 * smooth_map(rng, (48, 60), sigma=2)).astype(np.uint8)
    suppressed, slow = boundary.suppress_non_maxima(levels), slow_suppression(levels)
    agrees = np.isclose(suppressed, slow, rtol=1e-5, atol=1e-6)
    assert agrees.mean() >= 0.995
    assert 0.05 < (suppressed > 0).mean() < 0.6


def test_a_ridge_is_suppressed_to_its_crest():
    columns = np.arange(41)
    levels = np.tile(np.round(200 * np.exp(-(((columns - 20) / 3) ** 2))), (41, 1)).astype(np.uint8)
    suppressed = boundary.suppress_non_maxima(levels)
    assert np.flatnonzero(suppressed[20, 10:31]).tolist() == [10]
    assert suppressed[20, 20] == np.float32(200) / np.float32(255)


def test_the_rim_fades():
    suppressed = boundary.suppress_non_maxima(np.full((30, 30), 255, dtype=np.uint8))
    np.testing.assert_allclose(suppressed[15, :7], [0, 0.2, 0.4, 0.6, 0.8, 1, 1], rtol=1e-6)
    np.testing.assert_array_equal(suppressed, suppressed[::-1, ::-1])
    np.testing.assert_array_equal(suppressed, suppressed.T)
    assert suppressed[1, 1] == pytest.approx(0.04)


def test_thresholds_are_exceeded_strictly_and_in_float32(rng):
    on_thresholds = boundary.THRESHOLDS.astype(np.float32)
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    nearby = [np.nextafter(on_thresholds, np.float32(limit)) for limit in (0, 1)]
    values = np.concatenate([on_thresholds, *nearby, levels, rng.random(131, dtype=np.float32)])
    strength = values.reshape(23, 30)
    masks = np.concatenate([unpack(words) for words in boundary.threshold_words(strength)])
    for mask, threshold in zip(masks[:NUM_THRESHOLDS], boundary.THRESHOLDS, strict=True):
        np.testing.assert_array_equal(mask, strength > np.float32(threshold))
    assert not masks[NUM_THRESHOLDS:].any()


def random_masks(rng, size):
    """Noise and blobs of many densities, empty and full ones among them."""
    densities = np.linspace(0, 1, 32)[:, None, None]
    return np.concatenate([rng.random((32, *size)) < densities, blobs(rng, size) < densities])


def blobs(rng, size):
    return np.stack([smooth_map(rng, size, sigma) for sigma in np.linspace(0.5, 6, 32)])


@every_size
@pytest.mark.parametrize("attempt", range(2))
def test_64_masks_at_once_are_thinned_like_each_alone(attempt, size):
    assert_thins_like_skimage(random_masks(np.random.default_rng(attempt), size))


def test_large_masks_are_thinned_like_each_alone(rng):
    assert_thins_like_skimage(random_masks(rng, (61, 72)))


def assert_thins_like_skimage(masks):
    words = pack(masks)
    thinned = boundary.thin(words)
    np.testing.assert_array_equal(words, pack(masks), err_msg="the input has changed")
    np.testing.assert_array_equal(unpack(thinned), [slow_thin(mask) for mask in masks])
    np.testing.assert_array_equal(boundary.thin(thinned), thinned)


def slow_boundaries(label, valid):
    boundaries = np.zeros(label.shape, dtype=bool)
    for row, column in np.ndindex(label.shape):
        for there in ((row, column + 1), (row + 1, column), (row + 1, column + 1)):
            if there[0] < label.shape[0] and there[1] < label.shape[1] and valid[row, column] and valid[there]:
                boundaries[row, column] |= label[row, column] != label[there]
    return boundaries


@every_size
@pytest.mark.parametrize("valid_share", [1.0, 0.8, 0.0])
def test_boundaries_separate_what_differs_from_the_right_the_lower_and_the_lower_right(rng, size, valid_share):
    label, valid = label_map(rng, size), rng.random(size) < valid_share
    np.testing.assert_array_equal(boundary.find_boundaries(label, valid), slow_boundaries(label, valid))


def slow_match(predicted, true, radius):
    """The greatest matching as a best assignment, where a pair within reach is worth 1."""
    points, targets = np.argwhere(predicted), np.argwhere(true)
    squared = ((points[:, None] - targets[None]) ** 2).sum(axis=-1)
    is_pair = squared <= radius**2
    return int(is_pair[linear_sum_assignment(is_pair, maximize=True)].sum())


@pytest.mark.parametrize("max_distance", [0.001, 0.04, 0.11, 0.3, 0.99])
@pytest.mark.parametrize("density", [0.05, 0.3, 0.7])
def test_the_greatest_matching_is_found_for_masks(density, max_distance):
    rng = np.random.default_rng(int(100 * density))
    for size in ((14, 19), (1, 30), (30, 1), (9, 9)):
        prediction, label = rng.random(size) < density, (rng.random(size) < density).astype(np.uint8)
        predicted, true = thin_mask(prediction), thin_mask(boundary.find_boundaries(label, all_valid(label)))
        matched = slow_match(predicted, true, max_distance * np.hypot(*size))
        expected = [matched, true.sum(), matched, predicted.sum()]
        counts = boundary.boundary_counts(prediction, label, max_distance)
        np.testing.assert_array_equal(counts, np.broadcast_to(expected, counts.shape))


@pytest.mark.parametrize("max_distance", [0.03, 0.08])
def test_the_greatest_matching_is_found_at_every_threshold(rng, max_distance):
    prediction, label = smooth_map(rng, (33, 27), sigma=1.0), label_map(rng, (33, 27), num_regions=9)
    counts = boundary.boundary_counts(prediction, label, max_distance)
    strength = boundary.suppress_non_maxima((prediction * 255).astype(np.uint8))
    true = slow_thin(slow_boundaries(label, all_valid(label)))
    for threshold, ours in zip(boundary.THRESHOLDS, counts, strict=True):
        predicted = slow_thin(strength > np.float32(threshold))
        matched = slow_match(predicted, true, max_distance * np.hypot(33, 27))
        assert ours.tolist() == [matched, true.sum(), matched, predicted.sum()]
    assert len(np.unique(counts[:, 0])) > 20


def corner_and_point(row, column):
    """One true pixel, in the corner, and one predicted pixel, 480 x 640: the diagonal is 800."""
    label, prediction = np.zeros((480, 640), dtype=np.uint8), np.zeros((480, 640), dtype=bool)
    label[0, 0] = prediction[row, column] = True
    return prediction, label


@pytest.mark.parametrize(
    ("row", "column", "matched"), [(0, 6, 1), (6, 0, 1), (4, 4, 1), (1, 6, 0), (6, 1, 0), (5, 4, 0), (0, 7, 0)]
)
def test_the_distance_is_inclusive(row, column, matched):
    """0.0075 * 800 = 6 pixels; (1, 6) is sqrt(37) away."""
    counts = boundary.boundary_counts(*corner_and_point(row, column), max_distance=0.0075)
    np.testing.assert_array_equal(counts, np.broadcast_to([matched, 1, matched, 1], counts.shape))


def test_a_true_pixel_is_matched_once():
    """A straight boundary of 20 pixels beside two predicted lines of 20."""
    label = np.repeat([[0] * 10 + [1] * 10], 20, axis=0)
    prediction = np.zeros((20, 20), dtype=bool)
    prediction[:, [7, 11]] = True
    counts = boundary.boundary_counts(prediction, label, max_distance=0.1)
    assert counts[0].tolist() == [20, 20, 20, 40]


# Properties


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_levels_divided_by_255_are_those_levels(dtype):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(boundary.to_levels(levels.astype(dtype) / dtype(255)), levels)
    np.testing.assert_array_equal(boundary.to_levels(levels), levels)


@pytest.mark.parametrize(
    ("value", "level"), [(0.999999, 254), (0.5, 127), (0.00392, 0), (0.0079, 2), (1.0, 255), (0.0, 0)]
)
def test_a_probability_is_truncated_not_rounded(value, level):
    assert boundary.to_levels(np.full((1, 1), value, dtype=np.float32)).item() == level


def test_floating_point_predictions_count_as_their_truncated_levels(rng):
    levels = (254 * smooth_map(rng, (40, 50))).astype(np.uint8)
    label = label_map(rng, (40, 50))
    expected = boundary.boundary_counts(levels, label, ALWAYS)
    for offset in (0.0, 0.5, 0.9):
        counts = boundary.boundary_counts((levels + offset) / 255, label, ALWAYS)
        np.testing.assert_array_equal(counts, expected)
    assert not np.array_equal(boundary.boundary_counts(levels + 1, label, ALWAYS), expected)


def test_a_mask_is_not_suppressed():
    """As uint8 its rim would fade."""
    prediction, label = np.ones((1, 12), dtype=bool), np.arange(12)[None]
    assert boundary.boundary_counts(prediction, label, ALWAYS)[0, 3] == 12
    assert boundary.boundary_counts(prediction * np.uint8(255), label, ALWAYS)[0, 3] == 10


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64])
def test_the_ids_of_regions_do_not_matter(rng, dtype):
    prediction, label = smooth_map(rng, (30, 40)), label_map(rng, (30, 40), num_regions=6)
    ids = rng.permutation(np.array([0, 1, 5, 44, 99, 126, 127])).astype(dtype)
    np.testing.assert_array_equal(
        boundary.boundary_counts(prediction, ids[label], ALWAYS), boundary.boundary_counts(prediction, label, ALWAYS)
    )


@pytest.mark.parametrize("white", [np.uint8(255), np.uint16(65535), True, np.float32(1)], ids=str)
def test_an_edge_map_counts_the_same_whatever_its_white_is(rng, white):
    edges = slow_thin(smooth_map(rng, (30, 40)) > 0.5)
    prediction = smooth_map(rng, (30, 40))
    expected = boundary.boundary_counts(prediction, edges.astype(np.uint8), ALWAYS)
    assert expected[0, 1] > 0
    np.testing.assert_array_equal(boundary.boundary_counts(prediction, edges * white, ALWAYS), expected)


def test_counts_leave_their_maps_alone(rng):
    prediction, label = smooth_map(rng, (20, 30)).astype(np.float32), label_map(rng, (20, 30))
    copies = prediction.copy(), label.copy()
    boundary.boundary_counts(prediction, label, ALWAYS)
    np.testing.assert_array_equal(prediction, copies[0])
    np.testing.assert_array_equal(label, copies[1])


@without_warnings
@every_size
@pytest.mark.parametrize("kind", ["probability", "zero", "one", "levels", "mask"])
def test_maps_of_any_size_give_counts_that_make_sense(rng, size, kind):
    prediction = {
        "probability": rng.random(size),
        "zero": np.zeros(size),
        "one": np.ones(size, dtype=np.float32),
        "levels": rng.integers(0, 256, size, dtype=np.uint8),
        "mask": rng.random(size) < 0.5,
    }[kind]
    counts = boundary.boundary_counts(prediction, label_map(rng, size), 0.011)
    assert (counts.shape, counts.dtype) == ((NUM_THRESHOLDS, 4), np.int64)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 2])
    assert (counts >= 0).all()
    assert (counts[:, 0] <= counts[:, [1, 3]].min(axis=1)).all()
    scores = boundary.boundary_scores(counts[None])
    assert all(0 <= value <= 1 for value in scores.values()), scores


@pytest.mark.parametrize("share", [0.001, 0.011])
def test_the_truth_itself_is_a_perfect_prediction_away_from_the_rim(share):
    """At the rim every prediction fades, and the outermost pixels are lost."""
    line = np.repeat([[0.0] * 20 + [1.0] * 20], 40, axis=0)
    line[:2] = line[-2:] = 255
    prediction = thin_mask(boundary.find_boundaries(line, line != 255)).astype(np.float32)
    scores = boundary.boundary_scores(boundary.boundary_counts(prediction, line, share)[None])
    assert scores["ods"] == scores["ods_precision"] == scores["ods_recall"] == scores["ois"] == 1


def test_an_invalid_region_hides_predictions():
    label = np.zeros((20, 30))
    label[5:15, 8:20] = 255
    inside = label == 255
    assert boundary.boundary_counts(inside, label, ALWAYS)[0].tolist() == [0, 0, 0, 0]
    assert boundary.boundary_counts(~inside, label, ALWAYS)[0, 3] > 0


def test_an_invalid_region_has_no_boundary_along_it_and_hides_those_in_it():
    label = np.repeat([[0.0] * 15 + [1.0] * 15], 20, axis=0)
    prediction = label.copy()
    assert boundary.boundary_counts(prediction, label, ALWAYS)[0, 1] == 20
    label[4:10, 5:25] = 255
    assert boundary.boundary_counts(prediction, label, ALWAYS)[0, 1] == 20 - 6
    label[:, 13:17] = 255
    assert boundary.boundary_counts(prediction, label, ALWAYS)[0, 1] == 0


def test_predictions_in_an_invalid_region_do_not_change_the_counts(rng):
    label = (smooth_map(rng, (40, 40), sigma=3) > 0.5).astype(np.float32)
    label[:, 30:] = 255
    prediction = smooth_map(rng, label.shape) < 0.5
    expected = boundary.boundary_counts(prediction, label, ALWAYS)
    np.testing.assert_array_equal(boundary.boundary_counts(prediction | (label == 255), label, ALWAYS), expected)


def test_255_is_a_region_of_an_integer_label_map():
    label = np.repeat([[0] * 6 + [255] * 6], 12, axis=0).astype(np.uint8)
    assert boundary.boundary_counts(np.zeros((12, 12)), label, ALWAYS)[0, 1] == 12


def noisy_pair(rng, size, confidence):
    """A label and its boundaries under noise: the best threshold is about the `confidence`."""
    label = label_map(rng, size)
    boundaries = thin_mask(boundary.find_boundaries(label, all_valid(label)))
    return np.maximum(confidence * boundaries, 0.6 * confidence * smooth_map(rng, size, sigma=0.8)), label


def test_statistics_add_up_to_the_scores_of_the_set(rng):
    pairs = [noisy_pair(rng, (35, 40), confidence) for confidence in (0.3, 0.6, 0.9)]
    statistics = [boundary.boundary_statistics(*pair, num_labels=1, max_distance=0.03) for pair in pairs]
    sums = {name: sum(torch.as_tensor(image[name]) for image in statistics) for name in statistics[0]}
    scores = boundary.boundary_scores(np.stack([boundary.boundary_counts(*pair, 0.03) for pair in pairs]))
    assert sums["num_images"] == 3
    assert METRICS["boundary"].reduce(sums) == {"odsf": scores.pop("ods"), **scores}
    assert scores["ois"] > METRICS["boundary"].reduce(sums)["odsf"]


def test_scores_by_hand():
    """Two images, of which only thresholds 0.25 and 0.75 find anything."""
    counts = np.zeros((2, NUM_THRESHOLDS, 4), dtype=np.int64)
    counts[:, :, 1] = 10
    counts[0, 25], counts[0, 75] = [8, 10, 8, 8], [5, 10, 5, 5]
    counts[1, 25], counts[1, 75] = [2, 10, 2, 8], [5, 10, 5, 5]
    scores = boundary.boundary_scores(counts)
    expected = {"ods": 2 / 3, "ods_threshold": 0.75, "ods_precision": 1.0, "ods_recall": 0.5}
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert scores["ois"] == pytest.approx(2 * 13 / (20 + 13))
    # recall 0 has precision 1, and recall 0.5 the 10 / 16 of the lower threshold
    assert scores["ap"] == pytest.approx(np.linspace(1, 10 / 16, 51).sum() / 100)


def test_the_lowest_of_equally_good_thresholds_is_reported():
    counts = np.broadcast_to([3, 4, 3, 5], (1, NUM_THRESHOLDS, 4))
    assert boundary.boundary_scores(counts)["ods_threshold"] == 0.001


# Nothing to find, nothing found


@without_warnings
@pytest.mark.parametrize(
    ("prediction", "label", "precision", "recall"),
    [
        (np.ones((12, 12), dtype=bool), np.zeros((12, 12), dtype=int), 0, 1),
        (np.zeros((12, 12), dtype=bool), np.zeros((12, 12), dtype=int), 0, 1),
        (np.zeros((12, 12)), np.arange(144).reshape(12, 12), 1, 0),
        (np.ones((12, 12), dtype=bool), np.full((12, 12), 255.0), 0, 1),
    ],
    ids=["no truth", "neither", "no prediction", "all invalid"],
)
def test_one_sided_images_have_defined_scores(prediction, label, precision, recall):
    counts = boundary.boundary_counts(prediction, label, ALWAYS)
    np.testing.assert_array_equal(boundary.precision_and_recall(counts)[0], precision)
    np.testing.assert_array_equal(boundary.precision_and_recall(counts)[1], recall)
    assert not boundary.f_measure(counts).any()
    scores = boundary.boundary_scores(counts[None])
    assert scores["ods"] == scores["ois"] == 0
    assert np.isfinite(list(scores.values())).all()


@pytest.mark.parametrize(("value", "num_images"), [(255.0, 0), (0.0, 1), (1.0, 1)])
def test_an_image_without_valid_pixels_is_no_image(value, num_images):
    statistics = boundary.boundary_statistics(np.ones((5, 5)), np.full((5, 5), value), num_labels=1)
    assert statistics["num_images"] == num_images
    assert statistics["counts"][:, 1].sum() == 0
    if not num_images:
        assert not statistics["counts"].any()
        assert not statistics["best_counts"].any()


def test_an_image_with_one_valid_pixel_is_an_image():
    label = np.full((5, 5), 255.0)
    label[2, 2] = 1
    assert boundary.boundary_statistics(np.ones((5, 5)), label, num_labels=1)["num_images"] == 1


def test_an_integer_label_map_of_255_is_an_image():
    statistics = boundary.boundary_statistics(np.ones((5, 5)), np.full((5, 5), 255), num_labels=1)
    assert statistics["num_images"] == 1


# Bad input


MAP, LABEL = np.full((4, 5), 0.5), np.zeros((4, 5), dtype=np.int64)


def with_value(values, value):
    values = values.copy()
    values[1, 2] = value
    return values


@without_warnings
@pytest.mark.parametrize(
    ("prediction", "rule"),
    [
        (with_value(MAP, np.nan), r"in \[0, 1\] and holds no NaN; got nan to nan"),
        (with_value(MAP, np.inf), r"in \[0, 1\].*got 0.5 to inf"),
        (with_value(MAP, -np.inf), r"in \[0, 1\].*got -inf to 0.5"),
        (with_value(MAP, 1.001), r"in \[0, 1\].*got 0.5 to 1.001"),
        (with_value(MAP, -3.5), r"in \[0, 1\].*got -3.5 to 0.5.*not logits"),
        (MAP * 255, r"in \[0, 1\].*got 127.5 to 127.5"),
        (MAP.astype(np.int64), "floating point.*uint8 or bool; got int64"),
        (MAP.astype(np.uint16), "floating point.*uint8 or bool; got uint16"),
        (MAP.astype(np.int8), "uint8 or bool; got int8"),
        (MAP.astype(complex), "uint8 or bool; got complex128"),
        (MAP.astype(object), "uint8 or bool; got object"),
        (MAP[None], r"maps \(height, width\).*got \(1, 4, 5\) and \(4, 5\)"),
        (MAP[0], r"maps \(height, width\).*got \(5,\) and \(4, 5\)"),
        (np.float64(0.5), r"maps \(height, width\).*got \(\) and \(4, 5\)"),
        (MAP.T, r"of one size.*got \(5, 4\) and \(4, 5\)"),
        (MAP[:2], r"of one size.*got \(2, 5\) and \(4, 5\).*Resize"),
    ],
)
def test_a_bad_prediction_is_named(prediction, rule):
    with pytest.raises(ValueError, match=rule):
        boundary.boundary_counts(prediction, LABEL, 0.011)


@without_warnings
@pytest.mark.parametrize(
    ("label", "rule"),
    [
        (with_value(MAP, np.nan), r"label lies in \[0, 1\], 255 invalid; got nan to nan"),
        (with_value(MAP, np.inf), r"label lies in \[0, 1\].*got 0.5 to inf"),
        (with_value(MAP, 3.0), r"label lies in \[0, 1\].*got 0.5 to 3.0. Pass a label map as integers"),
        (with_value(MAP, -1.0), r"label lies in \[0, 1\].*got -1.0 to 0.5"),
        (with_value(MAP, 254.0), r"label lies in \[0, 1\].*got 0.5 to 254.0"),
        (LABEL.astype(complex), "integer label map, or floating point; got complex128"),
        (LABEL.astype(object), "integer label map, or floating point; got object"),
        (LABEL.astype(str), "integer label map, or floating point; got <U"),
        (LABEL[None], r"maps \(height, width\).*got \(4, 5\) and \(1, 4, 5\)"),
    ],
)
def test_a_bad_label_is_named(label, rule):
    with pytest.raises(ValueError, match=rule):
        boundary.boundary_counts(MAP, label, 0.011)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_empty_maps_are_named(size):
    with pytest.raises(ValueError, match="not empty; got .*0"):
        boundary.boundary_counts(np.zeros(size), np.zeros(size), 0.011)


@pytest.mark.parametrize("max_distance", [0, -0.011, 1, 6.0, np.nan, np.inf])
def test_a_distance_that_is_no_share_is_named(max_distance):
    with pytest.raises(ValueError, match=f"share of the diagonal.*above 0 and below 1; got {max_distance}. The field"):
        boundary.boundary_counts(MAP, LABEL, max_distance)


@pytest.mark.parametrize("shape", [(0,), (0, 101, 4), (101, 4), (2, 100, 4), (2, 101, 3), (1, 2, 101, 4)], ids=str)
def test_counts_of_another_shape_are_named(shape):
    with pytest.raises(ValueError, match=r"\(num_images, 101, 4\) of at least one image; got \("):
        boundary.boundary_scores(np.zeros(shape))


def test_no_counts_are_named():
    with pytest.raises(ValueError, match=r"at least one image; got \(0,\)"):
        boundary.boundary_scores([])
