import warnings

import numpy as np
import pytest

from transformers_sem.data.derive import (
    MAX_DIFFERENCE,
    MAX_RESIDUAL,
    MIN_AGREEMENT,
    MIN_SUPPORT,
    NOISE,
    VOTE_TAPS,
    WINDOW_TAPS,
    Intrinsics,
    boundaries_from_labels,
    fill_unlabeled,
    normals_from_depth,
)
from transformers_sem.data.scenes import render_scene, scene_intrinsics


HEIGHT, WIDTH = 60, 84
CAMERA = Intrinsics(focal_x=520.0, focal_y=500.0, center_x=45.3, center_y=27.8)
AHEAD = (0.0, 0.0, -1.0)
FLOOR = (0.0, -0.8, -0.6)
SIDE = (0.6, 0.0, -0.8)
# How far a normal can see: its window, and the windows that vote for it.
REACH = WINDOW_TAPS[-1] + VOTE_TAPS[-1]


def plane_depth(normal: tuple[float, ...], distance: float, camera: Intrinsics = CAMERA) -> np.ndarray:
    """Depth of the points P with -normal P = distance, which must all lie in front of the camera."""
    x = (np.arange(WIDTH) - camera.center_x) / camera.focal_x
    y = (np.arange(HEIGHT) - camera.center_y)[:, None] / camera.focal_y
    inverse = -(normal[0] * x + normal[1] * y + normal[2]) / distance
    assert (inverse > 0).all()
    return 1.0 / inverse


def angles(normals: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Degrees between unit normals (3, H, W), NaN where one of them is; exact for small angles, unlike the arc cosine."""
    normals, others = np.broadcast_arrays(normals.astype(float), np.asarray(others, float))
    return np.degrees(2 * np.arcsin(np.minimum(np.linalg.norm(normals - others, axis=0) / 2, 1)))


def to_map(normal: tuple[float, ...]) -> np.ndarray:
    return (np.array(normal) / np.linalg.norm(normal))[:, None, None]


def is_known(normals: np.ndarray) -> np.ndarray:
    """Where normals are; they are nowhere half known, and of unit length."""
    known = np.isfinite(normals).all(axis=0)
    assert np.isnan(normals[:, ~known]).all()
    np.testing.assert_allclose(np.linalg.norm(normals[:, known], axis=0), 1, atol=1e-5)
    return known


def noisy(depth: np.ndarray, seed: int = 0) -> np.ndarray:
    """Kinect: the noise grows with the square of depth, 1.5 mm at 1 m."""
    return depth + 1.5e-3 * depth**2 * np.random.default_rng(seed).standard_normal(depth.shape)


def room(seed: int) -> tuple[np.ndarray, np.ndarray, Intrinsics]:
    """Depth, true normals and camera of a rendered scene."""
    height, width = 240, 320
    scene, matrix = render_scene(seed, height, width), scene_intrinsics(seed, height, width)
    # its pixels are seen at their index + 0.5
    camera = Intrinsics(matrix[0, 0], matrix[1, 1], matrix[0, 2] - 0.5, matrix[1, 2] - 0.5)
    return scene["depth"].astype(float), scene["normal"], camera


def slow_plane(inverse: np.ndarray, row: int, column: int) -> tuple[np.ndarray, float] | None:
    """Inverse depth 1 / Z = p0 + p1 x + p2 y at (x, y) from a pixel, and the mean squared relative residual."""
    points = []
    for down in WINDOW_TAPS:
        for right in WINDOW_TAPS:
            y, x = row + down, column + right
            if 0 <= y < inverse.shape[0] and 0 <= x < inverse.shape[1]:
                difference = inverse[y, x] / inverse[row, column] - 1
                if abs(difference) < MAX_DIFFERENCE:
                    points.append((right, down, difference))
    if len(points) < MIN_SUPPORT * len(WINDOW_TAPS) ** 2:
        return None
    taps = np.array(points, float)
    design = np.column_stack([np.ones(len(taps)), taps[:, :2]])
    plane = np.linalg.lstsq(design, taps[:, 2], rcond=None)[0]
    mean_square = np.mean((design @ plane - taps[:, 2]) ** 2)
    if mean_square > MAX_RESIDUAL**2:
        return None
    return (plane + [1, 0, 0]) * inverse[row, column], mean_square


def slow_normals(depth: np.ndarray, camera: Intrinsics) -> np.ndarray:
    inverse = np.divide(1.0, depth, out=np.zeros_like(depth), where=depth > 0)
    known = [tuple(pixel) for pixel in np.argwhere(inverse > 0)]
    planes = {pixel: slow_plane(inverse, *pixel) for pixel in known}
    normals = np.full((3, *depth.shape), np.nan)
    for row, column in known:
        total, weights = np.zeros(3), 0.0
        for down in VOTE_TAPS:
            for right in VOTE_TAPS:
                window = (row + down, column + right)
                if planes.get(window) is None:
                    continue
                (level, along_x, along_y), mean_square = planes[window]
                residual = (level - right * along_x - down * along_y) / inverse[row, column] - 1
                if abs(residual) >= MAX_DIFFERENCE:
                    continue
                weight = (1 + mean_square / NOISE**2) ** -3
                x, y = window[1] - camera.center_x, window[0] - camera.center_y
                normal = -np.array(
                    [along_x * camera.focal_x, along_y * camera.focal_y, level - along_x * x - along_y * y]
                )
                total += weight * normal / np.linalg.norm(normal)
                weights += weight
        length = np.linalg.norm(total)
        if weights > 0 and length >= MIN_AGREEMENT * weights:
            normals[:, row, column] = total / length
    return normals


def slow_thin(mask: np.ndarray) -> np.ndarray:
    """Guo and Hall's thinning, pixel by pixel, as Lam, Lee and Suen (1992) state it."""
    mask = np.pad(mask, 1)
    while True:
        before = mask.copy()
        for is_first in (True, False):
            removed = []
            for row, column in np.argwhere(mask):
                ring = [(0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1)]
                x = [bool(mask[row + down, column + right]) for down, right in ring]
                crossings = sum(not x[i] and (x[i + 1] or x[(i + 2) % 8]) for i in (0, 2, 4, 6))
                pairs = (sum(x[i] or x[i + 1] for i in (0, 2, 4, 6)), sum(x[i - 1] or x[i] for i in (0, 2, 4, 6)))
                kept = (x[1] or x[2] or not x[7]) and x[0] if is_first else (x[5] or x[6] or not x[3]) and x[4]
                if crossings == 1 and 2 <= min(pairs) <= 3 and not kept:
                    removed.append((row, column))
            for pixel in removed:
                mask[pixel] = False
        if (mask == before).all():
            return mask[1:-1, 1:-1]


# ---------------------------------------------------------------------------------------------------------------------
# Normals
# ---------------------------------------------------------------------------------------------------------------------


def test_planes_are_exact_up_to_the_border():
    for normal in [AHEAD, FLOOR, SIDE, (0.3, -0.5, -0.4), (-0.95, 0.1, -0.25), (0.0, 0.97, -0.2)]:
        depth = plane_depth(normal, distance=1.7)
        normals = normals_from_depth(depth, CAMERA)
        assert normals.shape == (3, HEIGHT, WIDTH) and normals.dtype == np.float32
        assert is_known(normals).all()
        assert angles(normals, to_map(normal)).max() < 0.1


@pytest.mark.parametrize("seed", [0, 3])
def test_noisy_rooms(seed):
    depth, true, camera = room(seed)
    errors = angles(normals_from_depth(noisy(depth), camera), true)
    known = np.isfinite(errors)
    # Measured: 0.95 and 0.96; 0.77 and 0.74 degrees; 0.91 and 0.90.
    assert known.mean() > 0.945
    assert np.median(errors[known]) < 0.85
    assert (errors[known] < 11.25).mean() > 0.89


def test_contradicted_normals_are_left_out():
    """Where two walls meet, a pixel gets the normal of its own wall or none."""
    left, right = plane_depth((0.7, 0.0, -0.714), 1.5), plane_depth((-0.7, 0.0, -0.714), 1.5)
    normals = normals_from_depth(np.minimum(left, right), CAMERA)
    known = is_known(normals)
    nearest = np.minimum(*(angles(normals, to_map((x, 0.0, -0.714))) for x in (0.7, -0.7)))
    assert known.mean() > 0.8
    assert (nearest[known] < 5).mean() > 0.93 and nearest[known].max() < 30


def test_surfaces_do_not_mix_over_a_depth_step():
    front, back = plane_depth(SIDE, 1.0), plane_depth(FLOOR, 2.0)
    is_front = np.zeros((HEIGHT, WIDTH), bool)
    is_front[:, :40] = True
    is_front[25:35, 40:60] = True
    normals = normals_from_depth(np.where(is_front, front, back), CAMERA)
    known = is_known(normals)
    expected = np.where(is_front, to_map(SIDE), to_map(FLOOR))
    assert angles(normals, expected)[known].max() < 0.1
    assert known.mean() > 0.99


def test_holes_are_unknown_and_leave_their_surroundings_alone():
    depth = plane_depth(FLOOR, 1.7)
    hole = np.zeros(depth.shape, bool)
    hole[20:28, 30:50] = hole[5, 5] = hole[:, -1] = True
    depth[hole] = 0.0
    depth[22:25, 30:40] = np.nan
    normals = normals_from_depth(depth, CAMERA)
    np.testing.assert_array_equal(is_known(normals), ~hole)
    assert angles(normals, to_map(FLOOR))[~hole].max() < 0.1


def test_too_few_pixels_for_a_plane():
    for height, width in [(1, 1), (1, 60), (60, 1), (3, 60), (4, 4)]:
        depth = np.zeros((HEIGHT, WIDTH))
        depth[10 : 10 + height, 20 : 20 + width] = 2.0
        for scattered in (depth, depth[10 : 10 + height, 20 : 20 + width]):
            assert not is_known(normals_from_depth(scattered, CAMERA)).any()


def test_lone_pixels_do_not_take_the_normals_around_them():
    for normal in [FLOOR, (-0.95, 0.1, -0.25), (0.0, 0.97, -0.2)]:
        depth = plane_depth(normal, 1.7)
        lone = np.zeros(depth.shape, bool)
        lone[10::20, 10::20] = True
        depth[lone] *= 1.1
        normals = normals_from_depth(depth, CAMERA)
        np.testing.assert_array_equal(is_known(normals), ~lone)
        assert angles(normals, to_map(normal))[~lone].max() < 0.1


def test_clutter_has_no_normals():
    for spread in [0.03, 0.1, 0.6]:
        depth = 2.0 / np.random.default_rng(0).uniform(1 - spread, 1 + spread, (HEIGHT, WIDTH))
        assert is_known(normals_from_depth(depth, CAMERA)).mean() < 0.05


def test_unknown_depth():
    for value in [0.0, np.nan]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.isnan(normals_from_depth(np.full((20, 30), value), CAMERA)).all()


def test_no_warnings():
    depth = noisy(plane_depth(FLOOR, 1.7))
    depth[20:28, 30:50], depth[40:, 60:] = 0.0, np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normals_from_depth(depth, CAMERA)


def test_normals_do_not_depend_on_the_unit_of_depth():
    depth, _, camera = room(1)
    depth = noisy(depth)[60:180, 60:220]
    metres = normals_from_depth(depth, camera)
    np.testing.assert_array_equal(normals_from_depth(depth * 4, camera), metres)
    millimetres = normals_from_depth(depth * 1000, camera)
    both = is_known(metres) & is_known(millimetres)
    assert both.mean() > 0.999 * is_known(metres).mean()
    assert np.quantile(angles(metres, millimetres)[both], 0.999) < 0.01


def test_crops_have_the_same_normals():
    depth, _, camera = room(2)
    top, left, rows, columns = 31, 47, 100, 120
    inside = (slice(None), slice(REACH, -REACH), slice(REACH, -REACH))
    whole = normals_from_depth(noisy(depth), camera)[:, top : top + rows, left : left + columns]
    crop = noisy(depth)[top : top + rows, left : left + columns]
    part = normals_from_depth(crop, camera.cropped(top, left))
    np.testing.assert_allclose(part[inside], whole[inside], atol=1e-4)
    assert np.nanmedian(angles(normals_from_depth(crop, camera), part)) > 0.2


def test_same_input_same_output():
    depth = noisy(plane_depth(SIDE, 2.0))
    before = depth.copy()
    first, second = (normals_from_depth(depth, CAMERA) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(depth, before)


def test_against_plain_loops():
    wall, floor, box = (plane_depth(*plane) for plane in ((AHEAD, 2.4), (FLOOR, 1.4), ((-0.6, 0, -0.8), 1.5)))
    depth = np.minimum(wall, floor)
    depth[20:40, 25:45] = box[20:40, 25:45]
    depth = noisy(depth)[10:48, 16:56]
    depth[5:9, 5:20] = 0.0
    camera = CAMERA.cropped(10, 16)
    normals, expected = normals_from_depth(depth, camera), slow_normals(depth, camera)
    known = is_known(normals)
    np.testing.assert_array_equal(known, np.isfinite(expected).all(axis=0))
    assert 0.5 < known.mean() < 0.99
    assert angles(normals, expected)[known].max() < 0.05


def test_float32_is_enough():
    depth = noisy(plane_depth(FLOOR, 2.0))
    single = normals_from_depth(depth.astype(np.float32), CAMERA)
    assert angles(single, normals_from_depth(depth, CAMERA)).max() < 0.05


def test_invalid_depth():
    for depth, message in [
        (np.ones((1, 20, 30)), r"must be \(height, width\); got the shape \(1, 20, 30\). Pass one map"),
        (np.array([[1.0, -0.5], [np.nan, 2.0]]), r"metres >= 0.*got -0.5 to 2.0. Replace negative"),
        (np.array([[1.0, np.inf]]), r"metres >= 0.*got 1.0 to inf. Replace .* infinite values by NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            normals_from_depth(depth, CAMERA)


# ---------------------------------------------------------------------------------------------------------------------
# Boundaries
# ---------------------------------------------------------------------------------------------------------------------


def test_boundaries_against_plain_loops():
    for dtype in [np.uint8, np.uint16, np.int64]:
        blocks = np.random.default_rng(0).integers(0, 250, (6, 8)).astype(dtype)
        label_map = np.kron(blocks, np.ones((5, 4), dtype))
        label_map[7:20, 3:30] = np.where(np.tri(13, 27, 5), label_map[7:20, 3:30], 255)
        # Whole numbers of 8 bits would wrap sums of these around to 0.
        label_map[18:] = np.random.default_rng(9).choice([0, 64, 128, 192], (12, 32))
        padded = np.pad(label_map.astype(int), 1, mode="reflect")
        neighbors = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
        boundary = boundaries_from_labels(label_map)
        assert boundary.dtype == np.uint8
        np.testing.assert_array_equal(boundary, 255 * slow_thin(neighbors != 4 * padded[1:-1, 1:-1]))


def test_a_strip_without_label_has_one_boundary_once_filled():
    label_map = np.full((20, 30), 7, np.uint8)
    label_map[:, 13:17], label_map[:, 17:] = 0, 9
    assert ((boundaries_from_labels(label_map) > 0).sum(axis=1)[1:-1] == 2).all()
    filled = fill_unlabeled(label_map, unlabeled=0)
    assert filled.dtype == np.uint8
    np.testing.assert_array_equal(filled, np.where(np.arange(30) < 15, 7, 9)[None].repeat(20, axis=0))
    assert ((boundaries_from_labels(filled) > 0).sum(axis=1)[1:-1] == 1).all()


def test_filling_takes_a_nearest_label():
    label_map = np.random.default_rng(0).integers(1, 5, (18, 22)).astype(np.uint16)
    label_map[np.random.default_rng(1).random(label_map.shape) < 0.8] = 255
    filled = fill_unlabeled(label_map, unlabeled=255)
    labeled = np.argwhere(label_map != 255)
    for pixel in np.ndindex(label_map.shape):
        distances = ((labeled - pixel) ** 2).sum(axis=1)
        nearest = labeled[distances == distances.min()]
        assert filled[pixel] in label_map[tuple(nearest.T)]


def test_filling_without_any_label():
    label_map = np.full((6, 7), 255, np.uint8)
    np.testing.assert_array_equal(fill_unlabeled(label_map, unlabeled=255), label_map)
