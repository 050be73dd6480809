"""Geometry: primitives, the camera, ray intersections and surface normals."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .materials import Material


CORNER_SIGNS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]).T  # (3, 8)


@dataclass(frozen=True)
class Primitive:
    """A unit shape that is scaled by `half_sizes`, rotated by `axes` and moved to `center`.

    Args:
        shape: The unit shape. A frustum has radius 1 at its lower end y = 1 and radius `taper` at its upper end y = -1.
        center: World coordinates `(3,)`.
        half_sizes: Scale along the axes of the shape `(3,)`, in metres.
        material: Its surface.
        axes: World directions of the axes of the shape, as columns `(3, 3)`.
        taper: Upper radius of a frustum.
        part: Id of the body part; 0 is none.
        label: Class id.
        instance: Index of the object that it is a part of.
    """

    shape: Literal["box", "sphere", "frustum"]
    center: np.ndarray
    half_sizes: np.ndarray
    material: Material
    axes: np.ndarray
    taper: float = 1.0
    part: int = 0
    label: int = 0
    instance: int = 0

    def to_unit(self) -> np.ndarray:
        """Returns the matrix `(3, 3)` that maps world directions to the coordinates of the unit shape."""
        return self.axes.T / self.half_sizes[:, None]

    def corners(self) -> np.ndarray:
        """Returns the corners `(3, 8)` of the bounding box in world coordinates."""
        extent = max(1.0, self.taper) if self.shape == "frustum" else 1.0
        scale = self.half_sizes * np.array([extent, 1.0, extent])
        return self.center[:, None] + self.axes @ (scale[:, None] * CORNER_SIGNS)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Args:
        origin: Position `(3,)` in the world.
        rotation: Matrix `(3, 3)` from camera to world directions.
        half_width: Half of the width that the image covers at depth 1.
    """

    origin: np.ndarray
    rotation: np.ndarray
    half_width: float


def rotate_yaw(yaw: float) -> np.ndarray:
    """Returns the rotation `(3, 3)` about the vertical; a positive angle turns z (forward) to x (right)."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])


def rotate_pitch(pitch: float) -> np.ndarray:
    """Returns the rotation `(3, 3)` about the x axis; a positive angle turns z (forward) to y (down)."""
    cosine, sine = np.cos(pitch), np.sin(pitch)
    return np.array([[1.0, 0.0, 0.0], [0.0, cosine, sine], [0.0, -sine, cosine]])


def smallest_positive(distances: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Returns the smallest valid positive distance `(N,)` of candidates `(candidates, N)`; infinity where none is."""
    return np.where(valid & (distances > 0.0), distances, np.inf).min(axis=0)


def intersect_box(origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Intersects rays with the unit box.

    Args:
        origin: Start of all rays `(3,)`, outside the box.
        directions: Directions of the rays `(3, N)`.

    Returns:
        Distances `(N,)` in units of the length of the directions; infinity where a ray misses the box.
    """
    first = (-1.0 - origin[:, None]) / directions
    second = (1.0 - origin[:, None]) / directions
    enter = np.minimum(first, second).max(axis=0)
    leave = np.maximum(first, second).min(axis=0)
    return np.where((enter <= leave) & (enter > 0.0), enter, np.inf)


def intersect_sphere(origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Intersects rays with the unit sphere, as `intersect_box` does with the unit box."""
    square = (directions * directions).sum(axis=0)
    half = origin @ directions
    discriminant = half * half - square * (origin @ origin - 1.0)
    distances = (-half - np.sqrt(np.maximum(discriminant, 0.0))) / square
    return np.where((discriminant > 0.0) & (distances > 0.0), distances, np.inf)


def intersect_frustum(origin: np.ndarray, directions: np.ndarray, taper: float) -> np.ndarray:
    """Intersects rays with the frustum of radius r(y) = (1 + taper + (1 - taper) y) / 2, |y| <= 1, as `intersect_box`."""
    x, y, z = directions
    growth = (1.0 - taper) / 2.0
    radius = (1.0 + taper) / 2.0 + growth * origin[1]
    square = x * x + z * z - growth * growth * y * y
    half = origin[0] * x + origin[2] * z - growth * radius * y
    constant = origin[0] ** 2 + origin[2] ** 2 - radius**2
    discriminant = half * half - square * constant
    root = np.sqrt(np.maximum(discriminant, 0.0))
    side = np.stack([-half - root, -half + root]) / square
    on_side = (discriminant > 0.0) & (np.abs(origin[1] + side * y) <= 1.0)
    caps = (np.array([[-1.0], [1.0]]) - origin[1]) / y
    squared_radius = (origin[0] + caps * x) ** 2 + (origin[2] + caps * z) ** 2
    on_cap = squared_radius <= np.array([[taper**2], [1.0]])
    return smallest_positive(np.concatenate([side, caps]), np.concatenate([on_side, on_cap]))


def intersect(primitive: Primitive, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Intersects rays with a primitive; arguments and distances are those of `intersect_box`, in world coordinates."""
    to_unit = primitive.to_unit()
    origin, directions = to_unit @ (origin - primitive.center), to_unit @ directions
    if primitive.shape == "box":
        return intersect_box(origin, directions)
    if primitive.shape == "sphere":
        return intersect_sphere(origin, directions)
    return intersect_frustum(origin, directions, primitive.taper)


def unit_normals(primitive: Primitive, points: np.ndarray) -> np.ndarray:
    """Returns unit normals `(3, N)` in the world at surface `points` `(3, N)` in the coordinates of the unit shape."""
    if primitive.shape == "box":
        gradient = np.where(np.abs(points) == np.abs(points).max(axis=0), np.sign(points), 0.0)
    elif primitive.shape == "sphere":
        gradient = points
    else:
        growth = (1.0 - primitive.taper) / 2.0
        radius = (1.0 + primitive.taper) / 2.0 + growth * points[1]
        gradient = np.stack([points[0], -growth * radius, points[2]])
        on_cap = np.abs(points[1]) > 1.0 - 1e-9
        gradient = np.where(on_cap, np.array([[0.0], [1.0], [0.0]]) * np.sign(points), gradient)
    normals = primitive.to_unit().T @ gradient
    return normals / np.linalg.norm(normals, axis=0)
