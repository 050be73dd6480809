import numpy as np
import pytest

from transformers_sem.data.scenes import render_scene, scene_intrinsics
from transformers_sem.demo.point_cloud import to_points, write_ply


def slow_points(depth, field_of_view):
    """Intersects the ray of each pixel with a screen at depth 1 that is as wide as the field of view."""
    height, width = depth.shape
    screen_width = 2 * np.tan(np.radians(field_of_view / 2))
    pixel = screen_width / width
    points = np.empty((height, width, 3))
    for row in range(height):
        for column in range(width):
            x = -screen_width / 2 + pixel * (column + 0.5)
            y = -pixel * height / 2 + pixel * (row + 0.5)
            points[row, column] = depth[row, column] * np.array([x, y, 1])
    return points


@pytest.mark.parametrize("field_of_view", [20, 60, 120])
def test_points_are_on_the_rays_of_their_pixels(field_of_view):
    depth = np.random.default_rng(0).uniform(0.5, 9, (5, 8)).astype(np.float32)
    points = to_points(depth, field_of_view)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points, slow_points(depth, field_of_view), rtol=1e-5)


def test_with_the_true_field_of_view_the_floor_is_flat():
    """The differences of neighboring points on the floor are orthogonal to its exact normals."""
    scene, intrinsics = render_scene(1), scene_intrinsics(1)
    points = to_points(scene["depth"], 2 * np.degrees(np.arctan(128 / 2 / intrinsics[0, 0])))
    floor = scene["semseg"] == 1
    pairs = floor[:, 1:] & floor[:, :-1]
    assert pairs.sum() > 100
    across = (points[:, 1:] - points[:, :-1])[pairs]
    heights = (across * scene["normal"].transpose(1, 2, 0)[:, 1:][pairs]).sum(axis=1)
    assert np.abs(heights).max() < 1e-4


@pytest.mark.parametrize("field_of_view", [0, 180, -60, float("nan")])
def test_impossible_fields_of_view_raise(field_of_view):
    with pytest.raises(ValueError, match="between 0 and 180"):
        to_points(np.ones((2, 2)), field_of_view)


def test_ply_files_have_y_up_and_z_towards_the_viewer(tmp_path):
    points = np.array([[1, 2, 3], [-4, 5, 6]], dtype=np.float32)
    write_ply(tmp_path / "points.ply", points, np.array([[255, 0, 7], [1, 2, 3]], dtype=np.uint8))
    header, _, body = (tmp_path / "points.ply").read_bytes().partition(b"end_header\n")
    names = [line.split()[1:] for line in header.decode().splitlines() if line.startswith("property")]
    codes = {"float": "<f4", "uchar": "u1"}
    vertices = np.frombuffer(body, dtype=[(name, codes[kind]) for kind, name in names])
    assert b"element vertex 2\n" in header
    assert vertices.tolist() == [(1, -2, -3, 255, 0, 7), (-4, -5, -6, 1, 2, 3)]
