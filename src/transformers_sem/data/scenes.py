"""Procedural rooms: the embedded default data set, with exact labels for all six tasks and nothing to download.

`render_scene(seed)` furnishes a room at random and casts one ray per pixel. Everything in the room, the walls included, is
a unit box, sphere or frustum under an affine map, so one intersection routine per shape gives exact depth and normals.

Axes: x right, y down, z forward, for the world and for the camera. The floor is y = 0, the camera stands at x = z = 0.
Furniture is built around the floor point (0, 0, 0), its front looking to -z and its back to +z, then moved into the room.
Sizes are in metres. Letters in shapes: N points, H height, W width.
"""

import colorsys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import datasets
import numpy as np

from .row_format import FEATURES, encode_row


CLASS_NAMES = {
    "semseg": [
        "wall",
        "floor",
        "ceiling",
        "window",
        "door",
        "picture",
        "rug",
        "bed",
        "cabinet",
        "table",
        "chair",
        "lamp",
        "plant",
        "ball",
        "person",
    ],
    "parsing": ["background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs"],
}
# What stands in the open, away from the walls.
FREE_STANDING = ["table", "chair", "lamp", "plant", "ball"]
HEAD, TORSO, UPPER_ARMS, LOWER_ARMS, UPPER_LEGS, LOWER_LEGS = range(1, 7)

CORNER_SIGNS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]).T  # (3, 8)

# Floor, ceiling and four walls come first among the primitives; nothing lies behind them, so they cast no shadow.
NUM_SHELL_PRIMITIVES = 6
# A figure smaller than this share of the picture is not what a person would look at first.
MIN_SALIENT_SHARE = 0.02
# Ranges of (hue, saturation, value) from which the colours of things are drawn.
PALETTE = {
    "wall": ((0.00, 1.00), (0.05, 0.28), (0.72, 0.95)),
    "planks": ((0.05, 0.10), (0.40, 0.65), (0.35, 0.62)),
    "tiles": ((0.00, 1.00), (0.02, 0.25), (0.45, 0.75)),
    "carpet": ((0.00, 1.00), (0.15, 0.40), (0.30, 0.55)),
    "white": ((0.08, 0.16), (0.00, 0.06), (0.90, 1.00)),
    "sky": ((0.53, 0.60), (0.25, 0.55), (0.92, 1.00)),
    "wood": ((0.04, 0.09), (0.50, 0.75), (0.30, 0.70)),
    "door": ((0.03, 0.08), (0.45, 0.80), (0.28, 0.55)),
    "vivid": ((0.00, 1.00), (0.65, 0.95), (0.60, 0.95)),
    "rug": ((0.90, 1.06), (0.60, 0.90), (0.45, 0.80)),
    "linen": ((0.50, 0.70), (0.05, 0.25), (0.85, 1.00)),
    "blanket": ((0.55, 0.80), (0.35, 0.70), (0.40, 0.80)),
    "upholstery": ((0.20, 0.50), (0.45, 0.80), (0.35, 0.70)),
    "metal": ((0.55, 0.65), (0.00, 0.10), (0.25, 0.45)),
    "shade": ((0.10, 0.15), (0.20, 0.50), (0.95, 1.00)),
    "clay": ((0.02, 0.06), (0.55, 0.75), (0.50, 0.75)),
    "leaves": ((0.26, 0.38), (0.60, 0.90), (0.25, 0.55)),
    "skin": ((0.05, 0.08), (0.30, 0.60), (0.45, 0.95)),
    "hair": ((0.05, 0.11), (0.30, 0.70), (0.08, 0.50)),
    "shirt": ((0.12, 1.00), (0.40, 0.95), (0.50, 0.95)),
    "trousers": ((0.57, 0.70), (0.20, 0.60), (0.15, 0.50)),
    "shoes": ((0.00, 1.00), (0.05, 0.30), (0.10, 0.30)),
}


@dataclass(frozen=True)
class Material:
    """Two colours `(2, 3)`, the texture that mixes them, its period in metres and the share of light it gives off."""

    colours: np.ndarray
    texture: str = "plain"
    period: float = 0.3
    emission: float = 0.0


@dataclass(frozen=True)
class Primitive:
    """A unit shape, turned by `axes` (columns, `(3, 3)`), scaled by `half_sizes` and moved to `center` (both `(3,)`).

    A frustum has radius 1 at its lower end y = 1 and radius `taper` at its upper end y = -1.
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
        """Matrix `(3, 3)` from world directions to directions in which the shape is the unit shape."""
        return self.axes.T / self.half_sizes[:, None]

    def corners(self) -> np.ndarray:
        """Corners `(3, 8)` of the bounding box, in the world."""
        extent = max(1.0, self.taper) if self.shape == "frustum" else 1.0
        scale = self.half_sizes * np.array([extent, 1.0, extent])
        return self.center[:, None] + self.axes @ (scale[:, None] * CORNER_SIGNS)


@dataclass(frozen=True)
class Camera:
    """A pinhole at `origin` `(3,)`; `rotation` `(3, 3)` maps camera to world, `slope` is half the width at depth 1."""

    origin: np.ndarray
    rotation: np.ndarray
    slope: float


@dataclass(frozen=True)
class Room:
    """The inside of the box `low` to `high` (both `(3,)`)."""

    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Scene:
    """What the renderer needs to know."""

    camera: Camera
    primitives: list[Primitive]
    light: np.ndarray


# ---------------------------------------------------------------------------------------------------------------------
# Geometry
# ---------------------------------------------------------------------------------------------------------------------


def turn(yaw: float) -> np.ndarray:
    """Rotation `(3, 3)` about the vertical; a positive angle turns from z (forward) to x (right)."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])


def tilt(pitch: float) -> np.ndarray:
    """Rotation `(3, 3)` about the x axis; a positive angle turns from z (forward) to y (down)."""
    cosine, sine = np.cos(pitch), np.sin(pitch)
    return np.array([[1.0, 0.0, 0.0], [0.0, cosine, sine], [0.0, -sine, cosine]])


def smallest_positive(distances: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Nearest valid distance in front of the eye: `(candidates, N)` and its mask to `(N,)`, infinite where none is."""
    return np.where(valid & (distances > 0.0), distances, np.inf).min(axis=0)


def intersect_box(origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Distances `(N,)` from `origin` `(3,)` outside the unit box along `directions` `(3, N)`; inf where it is missed."""
    first = (-1.0 - origin[:, None]) / directions
    second = (1.0 - origin[:, None]) / directions
    enter = np.minimum(first, second).max(axis=0)
    leave = np.maximum(first, second).min(axis=0)
    return np.where((enter <= leave) & (enter > 0.0), enter, np.inf)


def intersect_sphere(origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """As `intersect_box`, for the unit sphere."""
    square = (directions * directions).sum(axis=0)
    half = origin @ directions
    discriminant = half * half - square * (origin @ origin - 1.0)
    distances = (-half - np.sqrt(np.maximum(discriminant, 0.0))) / square
    return np.where((discriminant > 0.0) & (distances > 0.0), distances, np.inf)


def intersect_frustum(origin: np.ndarray, directions: np.ndarray, taper: float) -> np.ndarray:
    """As `intersect_box`, for the round frustum of radius r(y) = (1 + taper + (1 - taper) y) / 2, |y| <= 1."""
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
    """Distances `(N,)`, in units of the length of `directions` `(3, N)`, from `origin` `(3,)` to a primitive."""
    to_unit = primitive.to_unit()
    origin, directions = to_unit @ (origin - primitive.center), to_unit @ directions
    if primitive.shape == "box":
        return intersect_box(origin, directions)
    if primitive.shape == "sphere":
        return intersect_sphere(origin, directions)
    return intersect_frustum(origin, directions, primitive.taper)


def unit_normals(primitive: Primitive, points: np.ndarray) -> np.ndarray:
    """World normals `(3, N)`, of unit length, at surface `points` `(3, N)` given in the coordinates of the unit shape."""
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


# ---------------------------------------------------------------------------------------------------------------------
# Materials
# ---------------------------------------------------------------------------------------------------------------------


def waves(points: np.ndarray, period: float) -> np.ndarray:
    """Smooth noise in [0, 1] `(N,)`: two octaves of products of sines with unrelated periods."""
    x, y, z = points * (2.0 * np.pi / period)
    coarse = np.sin(x + 1.7 * np.sin(0.6 * z + 0.9)) * np.sin(0.8 * y + 0.7) + np.sin(0.9 * z + np.sin(0.7 * x))
    fine = np.sin(2.3 * x + 1.3 * z + 2.1) * np.sin(2.9 * y + 1.9 * z)
    return 0.5 + 0.2 * coarse + 0.1 * fine


def cells(coordinate: np.ndarray, period: float) -> np.ndarray:
    """Index of the cell in which a coordinate lies; the odd offset keeps flat faces off the cell borders."""
    return np.floor(coordinate / period + 0.137)


def rims(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    """1 near the border and the middle lines of the square [-1, 1] x [-1, 1], else 0, at `(N,)` coordinates."""
    near = [np.minimum(1.0 - np.abs(axis), np.abs(axis)) < width for axis in (first, second)]
    return (near[0] | near[1]).astype(float)


def planks(points: np.ndarray, period: float) -> np.ndarray:
    """Boards along z, each of its own tone, with grain."""
    board = cells(points[0], period)
    tone = np.modf(np.abs(np.sin(board * 12.9898) * 43.7585))[0]
    grain = np.sin(90.0 * points[0] / period + 3.0 * np.sin(1.5 * points[2] / period + board))
    return np.clip(0.7 * tone + 0.15 + 0.15 * grain, 0.0, 1.0)


# Share of the second colour (N,) from metric and from unit object coordinates, both (3, N), and a period in metres.
TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "plain": lambda metric, unit, period: np.zeros(metric.shape[1]),
    "noise": lambda metric, unit, period: waves(metric, period),
    "checker": lambda metric, unit, period: cells(metric, period).sum(axis=0) % 2,
    "stripes": lambda metric, unit, period: cells(metric[0], period / 2) % 2,
    "bands": lambda metric, unit, period: cells(metric[1], period / 2) % 2,
    "planks": lambda metric, unit, period: planks(metric, period),
    "grain": lambda metric, unit, period: 0.5 + 0.5 * np.sin(40 * metric[1] + 9 * waves(metric, period)),
    "panes": lambda metric, unit, period: rims(unit[0], unit[1], 0.08),
    "panels": lambda metric, unit, period: rims(unit[0], unit[1], 0.05),
    "blotches": lambda metric, unit, period: (waves(metric + 3.0 * period, period) > 0.5).astype(float),
    "sectors": lambda metric, unit, period: np.floor(np.arctan2(unit[2], unit[0]) * 3.0 / np.pi) % 2,
}


def sample_colour(rng: np.random.Generator, family: str) -> np.ndarray:
    """A colour `(3,)` of a family of `PALETTE`, in [0, 1]."""
    hue, saturation, value = (rng.uniform(low, high) for low, high in PALETTE[family])
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def sample_material(
    rng: np.random.Generator, family: str, texture: str = "plain", *, period: float = 0.3, contrast: float = 0.25
) -> Material:
    """A material whose second colour is the first, darkened by `contrast`."""
    colour = sample_colour(rng, family)
    return Material(np.stack([colour, colour * (1.0 - contrast)]), texture, period)


def sample_mixture(
    rng: np.random.Generator, families: tuple[str, str], texture: str, *, period: float = 0.3, emission: float = 0.0
) -> Material:
    """A material with two independent colours."""
    return Material(np.stack([sample_colour(rng, family) for family in families]), texture, period, emission)


# ---------------------------------------------------------------------------------------------------------------------
# Furniture
# ---------------------------------------------------------------------------------------------------------------------


def upright(
    shape: Literal["box", "sphere", "frustum"],
    place: tuple[float, float, float],
    size: tuple[float, float, float],
    material: Material,
    taper: float = 1.0,
) -> Primitive:
    """An unturned shape of `size` (width, height, depth) whose lowest point is at `place` (x, height above floor, z)."""
    center = np.array([place[0], -place[1] - size[1] / 2.0, place[2]])
    return Primitive(shape, center, np.array(size) / 2.0, material, np.eye(3), taper)


def moved(primitives: list[Primitive], position: np.ndarray, yaw: float) -> list[Primitive]:
    """Turn things about the vertical through the origin, then shift them by `position` `(3,)`."""
    rotation = turn(yaw)
    return [replace(p, center=position + rotation @ p.center, axes=rotation @ p.axes) for p in primitives]


def build_legs(width: float, depth: float, height: float, thickness: float, material: Material) -> list[Primitive]:
    """Four square legs under the corners of a plate of `width` times `depth`."""
    x, z = (width - thickness) / 2.0, (depth - thickness) / 2.0
    size = (thickness, height, thickness)
    return [upright("box", (sign_x * x, 0.0, sign_z * z), size, material) for sign_x in (-1, 1) for sign_z in (-1, 1)]


def build_bed(rng: np.random.Generator) -> list[Primitive]:
    """A bed with its headboard at the back, linen, pillow and blanket."""
    width, depth, base = rng.uniform(0.9, 1.6), rng.uniform(1.8, 2.1), rng.uniform(0.22, 0.34)
    wood, linen = sample_material(rng, "wood", "grain"), sample_material(rng, "linen")
    blanket = sample_material(rng, "blanket", str(rng.choice(["checker", "stripes", "noise"])), contrast=0.35)
    cover = rng.uniform(0.55, 0.7) * depth
    return [
        upright("box", (0.0, 0.0, 0.0), (width, base, depth), wood),
        upright("box", (0.0, base, 0.0), (width * 0.97, 0.2, depth * 0.98), linen),
        upright("box", (0.0, base - 0.05, (cover - depth) / 2.0 - 0.01), (width + 0.02, 0.28, cover), blanket),
        upright("sphere", (0.0, base + 0.16, depth / 2.0 - 0.3), (width * 0.7, 0.2, 0.45), linen),
        upright("box", (0.0, 0.0, depth / 2.0 + 0.02), (width, base + rng.uniform(0.4, 0.7), 0.06), wood),
    ]


def build_cabinet(rng: np.random.Generator) -> list[Primitive]:
    """A sideboard or a wardrobe with panelled doors."""
    width, depth = rng.uniform(0.8, 1.6), rng.uniform(0.4, 0.55)
    height = rng.uniform(0.8, 1.1) if rng.random() < 0.5 else rng.uniform(1.6, 2.05)
    body = sample_material(rng, str(rng.choice(["wood", "white"])), "panels", contrast=0.45)
    return [
        upright("box", (0.0, 0.0, 0.0), (width, height, depth), body),
        upright("box", (0.0, height, 0.0), (width + 0.06, 0.05, depth + 0.04), sample_material(rng, "wood")),
    ]


def build_table(rng: np.random.Generator) -> list[Primitive]:
    """A rectangular table, or a round one on a column."""
    width, depth, height = rng.uniform(0.9, 1.5), rng.uniform(0.65, 0.9), rng.uniform(0.62, 0.76)
    wood = sample_material(rng, "wood", "grain", contrast=0.35)
    if rng.random() < 0.3:
        column = upright("frustum", (0.0, 0.0, 0.0), (0.4, height, 0.4), wood, taper=0.35)
        return [column, upright("frustum", (0.0, height, 0.0), (width, 0.06, width), wood)]
    top = upright("box", (0.0, height, 0.0), (width, 0.06, depth), wood)
    return [top, *build_legs(width, depth, height, 0.08, wood)]


def build_chair(rng: np.random.Generator, seat: float = 0.45) -> list[Primitive]:
    """A chair whose seat is `seat` metres high."""
    width, back = rng.uniform(0.42, 0.5), rng.uniform(0.4, 0.52)
    fabric = sample_material(rng, "upholstery", str(rng.choice(["plain", "stripes", "noise"])), period=0.12)
    plate = upright("box", (0.0, seat - 0.07, 0.0), (width, 0.07, width), fabric)
    rest = upright("box", (0.0, seat, width / 2.0 - 0.03), (width, back, 0.06), fabric)
    return [plate, rest, *build_legs(width, width, seat - 0.07, 0.055, sample_material(rng, "metal"))]


def build_lamp(rng: np.random.Generator) -> list[Primitive]:
    """A floor lamp with a glowing shade."""
    height, width = rng.uniform(1.0, 1.5), rng.uniform(0.32, 0.5)
    metal, shade = sample_material(rng, "metal"), replace(sample_material(rng, "shade"), emission=0.8)
    return [
        upright("frustum", (0.0, 0.0, 0.0), (0.3, 0.04, 0.3), metal),
        upright("frustum", (0.0, 0.0, 0.0), (0.05, height, 0.05), metal),
        upright("frustum", (0.0, height - 0.03, 0.0), (width, 0.32, width), shade, taper=rng.uniform(0.45, 0.8)),
    ]


def build_plant(rng: np.random.Generator) -> list[Primitive]:
    """A pot with a bush of ellipsoids."""
    pot, width = rng.uniform(0.25, 0.42), rng.uniform(0.26, 0.4)
    leaves = sample_material(rng, "leaves", "blotches", period=0.12, contrast=0.5)
    parts = [
        upright("frustum", (0.0, 0.0, 0.0), (width * 0.75, pot, width * 0.75), sample_material(rng, "clay"), 1.35)
    ]
    for angle in np.arange(5) * 2.0 * np.pi / 5.0 + rng.uniform(0.0, 1.0):
        place = (0.13 * np.cos(angle), pot + rng.uniform(-0.05, 0.15), 0.13 * np.sin(angle))
        size = (rng.uniform(0.2, 0.34), rng.uniform(0.35, 0.65), rng.uniform(0.2, 0.34))
        parts.append(upright("sphere", place, size, leaves))
    return parts


def build_ball(rng: np.random.Generator) -> list[Primitive]:
    """A beach ball or a football, turned at random."""
    size = rng.uniform(0.36, 0.64)
    material = sample_mixture(rng, ("vivid", "white"), str(rng.choice(["sectors", "checker"])), period=size / 3.0)
    ball = upright("sphere", (0.0, 0.0, 0.0), (size, size, size), material)
    return [replace(ball, axes=tilt(rng.uniform(-1.0, 1.0)) @ turn(rng.uniform(-3.0, 3.0)))]


def build_rug(rng: np.random.Generator) -> list[Primitive]:
    """A flat rug."""
    texture = str(rng.choice(["checker", "stripes", "panels"]))
    material = sample_mixture(rng, ("rug", str(rng.choice(["rug", "linen"]))), texture, period=rng.uniform(0.25, 0.5))
    return [upright("box", (0.0, 0.0, 0.0), (rng.uniform(1.4, 2.4), 0.015, rng.uniform(1.0, 1.7)), material)]


def build_window(rng: np.random.Generator) -> list[Primitive]:
    """A bright window with four panes, hung on a wall."""
    material = sample_mixture(rng, ("sky", "white"), "panes", emission=0.7)
    size = (rng.uniform(0.9, 1.6), rng.uniform(0.9, 1.3), 0.04)
    return [upright("box", (0.0, rng.uniform(0.8, 1.0), -0.02), size, material)]


def build_door(rng: np.random.Generator) -> list[Primitive]:
    """A panelled door with a knob."""
    width, metal = rng.uniform(0.8, 1.0), sample_material(rng, "shade")
    leaf = sample_material(rng, "door", "panels", contrast=0.5)
    return [
        upright("box", (0.0, 0.0, -0.02), (width, rng.uniform(1.95, 2.1), 0.04), leaf),
        upright("sphere", (0.38 * width, 0.98, -0.07), (0.08, 0.08, 0.08), metal),
    ]


def build_picture(rng: np.random.Generator) -> list[Primitive]:
    """An abstract painting in a dark frame."""
    width, height, bottom = rng.uniform(0.7, 1.3), rng.uniform(0.5, 0.85), rng.uniform(1.1, 1.4)
    painting = sample_mixture(rng, ("vivid", "vivid"), "blotches", period=rng.uniform(0.3, 0.6))
    return [
        upright("box", (0.0, bottom, -0.015), (width, height, 0.03), sample_material(rng, "hair")),
        upright("box", (0.0, bottom + 0.05, -0.02), (width - 0.1, height - 0.1, 0.04), painting),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The figure
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pose:
    """Joint angles in radians; pairs are (left, right), positive angles swing forward."""

    hips: tuple[float, float]
    knees: tuple[float, float]
    shoulders: tuple[float, float]
    elbows: tuple[float, float]
    spread: tuple[float, float]
    lean: float


def sample_pose(rng: np.random.Generator, action: Literal["stand", "walk", "sit"]) -> Pose:
    """Draw joint angles for an action."""
    low_high = {
        "stand": [(-5, 5), (-5, 5), (0, 6), (0, 6), (-10, 15), (-10, 15), (5, 30), (5, 30), (8, 16), (-2, 3)],
        "walk": [(18, 32), (-28, -14), (5, 15), (20, 45), (-32, -15), (15, 32), (15, 45), (15, 45), (6, 12), (1, 8)],
        "sit": [(80, 92), (80, 92), (78, 92), (78, 92), (10, 40), (10, 40), (30, 75), (30, 75), (6, 14), (-8, 4)],
    }[action]
    degrees = [rng.uniform(low, high) for low, high in low_high]
    spread = [degrees[8], degrees[8]]
    if rng.random() < 0.5:  # one arm waves or points, so that arms are not always beside the trunk
        side = rng.integers(2)
        degrees[4 + side], degrees[6 + side], spread[side] = (
            rng.uniform(40, 150),
            rng.uniform(0, 60),
            rng.uniform(5, 50),
        )
    angles = np.deg2rad(degrees)
    return Pose(*(tuple(angles[i : i + 2]) for i in (0, 2, 4, 6)), tuple(np.deg2rad(spread)), angles[9])


def sample_clothes(rng: np.random.Generator) -> dict[int | str, Material]:
    """Materials per body part; bare lower arms and, in shorts, bare lower legs set the limbs apart."""
    skin = sample_material(rng, "skin")
    shirt = sample_material(rng, "shirt", str(rng.choice(["plain", "bands", "noise"])), period=0.16, contrast=0.4)
    trousers = sample_material(rng, "trousers", "noise", period=0.2)
    return {
        HEAD: skin,
        TORSO: shirt,
        UPPER_ARMS: replace(shirt, texture="plain"),
        LOWER_ARMS: skin,
        UPPER_LEGS: trousers,
        LOWER_LEGS: skin if rng.random() < 0.4 else replace(trousers, colours=trousers.colours * 0.75),
        "hair": sample_material(rng, "hair", "noise", period=0.05, contrast=0.4),
        "shoes": sample_material(rng, "shoes"),
    }


def swing(angle: float, spread: float = 0.0) -> np.ndarray:
    """Direction `(3,)` of a limb that hangs down, swung forward (to -z) by `angle` and out to +x by `spread`."""
    return np.array([np.sin(spread), np.cos(spread) * np.cos(angle), -np.cos(spread) * np.sin(angle)])


def frame_along(direction: np.ndarray) -> np.ndarray:
    """Axes `(3, 3)` with y along the unit `direction` `(3,)` and x as near to the world's x as that allows."""
    side = np.array([1.0, 0.0, 0.0]) - direction[0] * direction
    if side @ side < 1e-6:
        side = np.array([0.0, 0.0, 1.0])
    side = side / np.linalg.norm(side)
    return np.stack([side, direction, np.cross(side, direction)], axis=1)


def ellipsoid(center: np.ndarray, half_sizes: tuple[float, float, float], material: Material, part: int) -> Primitive:
    """An upright ellipsoid of a body part."""
    return Primitive("sphere", center, np.array(half_sizes), material, np.eye(3), part=part)


def build_limb(
    start: np.ndarray, end: np.ndarray, radii: tuple[float, float], material: Material, part: int
) -> list[Primitive]:
    """A tapered limb from joint `start` to joint `end`, rounded at both."""
    axis = end - start
    length = float(np.linalg.norm(axis))
    shaft = Primitive(
        "frustum",
        (start + end) / 2.0,
        np.array([radii[1], length / 2.0, radii[1]]),
        material,
        frame_along(axis / length),
        taper=radii[0] / radii[1],
        part=part,
    )
    return [shaft, ellipsoid(start, (radii[0],) * 3, material, part), ellipsoid(end, (radii[1],) * 3, material, part)]


def build_trunk(neck: np.ndarray, height: float, clothes: dict[int | str, Material]) -> list[Primitive]:
    """Pelvis at the origin, chest, shoulders, neck and head up to `neck` `(3,)` and beyond."""
    up = neck / np.linalg.norm(neck)
    head = neck + up * 0.115 * height
    chest = Primitive(
        "frustum",
        neck * 0.47,
        height * np.array([0.088, 0.136, 0.062]),
        clothes[TORSO],
        frame_along(-up),
        taper=1.25,
        part=TORSO,
    )
    hair = head + height * np.array([0.0, -0.014, 0.014])
    return [
        chest,
        ellipsoid(np.zeros(3), (0.09 * height, 0.055 * height, 0.066 * height), clothes[UPPER_LEGS], UPPER_LEGS),
        ellipsoid(neck * 0.92, (0.112 * height, 0.04 * height, 0.062 * height), clothes[TORSO], TORSO),
        build_limb(neck * 0.95, neck + up * 0.06 * height, (0.032 * height, 0.03 * height), clothes[HEAD], HEAD)[0],
        ellipsoid(head, (0.052 * height, 0.066 * height, 0.058 * height), clothes[HEAD], HEAD),
        ellipsoid(hair, (0.056 * height, 0.06 * height, 0.06 * height), clothes["hair"], HEAD),
    ]


def build_arm(
    shoulder: np.ndarray, side: int, height: float, pose: Pose, clothes: dict[int | str, Material]
) -> list[Primitive]:
    """Upper arm, lower arm and hand; `side` is -1 for the left, 1 for the right."""
    index = (side + 1) // 2
    mirror = np.array([side, 1.0, 1.0])
    angle, spread = pose.shoulders[index], pose.spread[index]
    elbow = shoulder + mirror * swing(angle, spread) * 0.175 * height
    wrist = elbow + mirror * swing(angle + pose.elbows[index], spread * 0.4) * 0.15 * height
    hand = wrist + (wrist - elbow) * 0.25
    return [
        *build_limb(shoulder, elbow, (0.038 * height, 0.03 * height), clothes[UPPER_ARMS], UPPER_ARMS),
        *build_limb(elbow, wrist, (0.029 * height, 0.022 * height), clothes[LOWER_ARMS], LOWER_ARMS)[:1],
        ellipsoid(hand, (0.026 * height,) * 2 + (0.032 * height,), clothes[LOWER_ARMS], LOWER_ARMS),
    ]


def build_leg(
    hip: np.ndarray, side: int, height: float, pose: Pose, clothes: dict[int | str, Material]
) -> list[Primitive]:
    """Upper leg, lower leg and foot; `side` is -1 for the left, 1 for the right."""
    index = (side + 1) // 2
    mirror = np.array([side, 1.0, 1.0])
    knee = hip + mirror * swing(pose.hips[index], 0.04) * 0.245 * height
    ankle = knee + swing(pose.hips[index] - pose.knees[index]) * 0.235 * height
    foot = ankle + height * np.array([0.0, 0.012, -0.035])
    return [
        *build_limb(hip, knee, (0.058 * height, 0.041 * height), clothes[UPPER_LEGS], UPPER_LEGS),
        *build_limb(knee, ankle, (0.04 * height, 0.026 * height), clothes[LOWER_LEGS], LOWER_LEGS)[:1],
        ellipsoid(foot, (0.03 * height, 0.024 * height, 0.075 * height), clothes["shoes"], LOWER_LEGS),
    ]


def build_person(rng: np.random.Generator, action: Literal["stand", "walk", "sit"]) -> tuple[list[Primitive], float]:
    """A figure with its lower foot on the floor.

    Returns:
        The primitives, and the height above the floor of a seat that would just touch the thighs.
    """
    height = rng.uniform(1.5, 1.9)
    pose, clothes = sample_pose(rng, action), sample_clothes(rng)
    neck = -swing(-pose.lean) * 0.3 * height
    parts = build_trunk(neck, height, clothes)
    for side in (-1, 1):
        parts += build_arm(neck * 0.93 + np.array([side * 0.118 * height, 0.0, 0.0]), side, height, pose, clothes)
        parts += build_leg(np.array([side * 0.05 * height, 0.02 * height, 0.0]), side, height, pose, clothes)
    sole = max(part.corners()[1].max() for part in parts if part.material is clothes["shoes"])
    standing = [replace(part, center=part.center - np.array([0.0, sole, 0.0])) for part in parts]
    return standing, sole - 0.075 * height


# ---------------------------------------------------------------------------------------------------------------------
# Furnishing the room
# ---------------------------------------------------------------------------------------------------------------------


def sample_room(rng: np.random.Generator) -> Room:
    """A room with its back wall 2.6 to 7 m before the camera."""
    low = np.array([-rng.uniform(1.4, 2.8), -rng.uniform(2.4, 2.9), -rng.uniform(0.5, 1.0)])
    return Room(low, np.array([rng.uniform(1.4, 2.8), 0.0, rng.uniform(2.6, 7.0)]))


def sample_camera(rng: np.random.Generator) -> Camera:
    """A camera at the height of a hand or an eye, looking a little down."""
    yaw, pitch = np.deg2rad(rng.uniform(-22.0, 22.0)), np.deg2rad(rng.uniform(2.0, 18.0))
    origin = np.array([0.0, -rng.uniform(1.2, 1.65), 0.0])
    return Camera(origin, turn(yaw) @ tilt(pitch), np.tan(np.deg2rad(rng.uniform(56.0, 72.0)) / 2.0))


class Furnisher:
    """Puts things into a room so that they neither overlap nor hide what the scene is about."""

    def __init__(self, rng: np.random.Generator, room: Room, camera: Camera):
        """Start with a bare room."""
        self.rng, self.room, self.camera = rng, room, camera
        self.primitives: list[Primitive] = []
        self.num_instances = 0
        # Rectangles (low x, low z, high x, high z) on the floor; the first keeps things away from the lens.
        self.occupied = [np.array([-0.6, -0.6, 0.6, 0.9])]
        # The same for what hangs on the walls, seen from above.
        self.hung: list[np.ndarray] = []
        self.walls = self.build_walls()

    def build_walls(self) -> list[tuple[np.ndarray, float, float]]:
        """Foot of the middle `(3,)`, yaw and length of the back, right, left and front wall."""
        low, high = self.room.low, self.room.high
        middle, size = (low + high) / 2.0, high - low
        return [
            (np.array([middle[0], 0.0, high[2]]), 0.0, size[0]),
            (np.array([high[0], 0.0, middle[2]]), np.pi / 2.0, size[2]),
            (np.array([low[0], 0.0, middle[2]]), -np.pi / 2.0, size[2]),
            (np.array([middle[0], 0.0, low[2]]), np.pi, size[0]),
        ]

    def add(self, primitives: list[Primitive], name: str) -> None:
        """Add one instance of a class."""
        label = CLASS_NAMES["semseg"].index(name)
        self.primitives += [replace(p, label=label, instance=self.num_instances) for p in primitives]
        self.num_instances += 1

    def add_shell(self) -> None:
        """Add floor, ceiling and walls as slabs that reach a little behind each other, so that no ray slips through."""
        rng, size = self.rng, self.room.high - self.room.low
        floor = str(rng.choice(["planks", "checker", "noise"], p=[0.5, 0.3, 0.2]))
        family = {"planks": "planks", "checker": "tiles", "noise": "carpet"}[floor]
        period = {"planks": 0.25, "checker": 0.45, "noise": 0.3}[floor]
        boards = sample_material(rng, family, floor, period=period, contrast=0.4)
        plaster = sample_material(rng, "white", "noise", period=1.5, contrast=0.08)
        middle = (self.room.low + self.room.high) / 2.0
        for bottom, material, name in ((-0.2, boards, "floor"), (size[1], plaster, "ceiling")):
            place = (middle[0], bottom, middle[2])
            self.add([upright("box", place, (size[0] + 0.4, 0.2, size[2] + 0.4), material)], name)
        texture = str(rng.choice(["plain", "noise", "stripes"]))
        paint = sample_material(rng, "wall", texture, period=rng.uniform(0.4, 0.8), contrast=0.12)
        for foot, yaw, length in self.walls:
            slab = upright("box", (0.0, -0.1, 0.1), (length + 0.4, size[1] + 0.2, 0.2), paint)
            self.add(moved([slab], foot, yaw), "wall")

    def sample_view_point(self, near: float, far: float, spread: float) -> np.ndarray:
        """A floor point `(3,)` at `near` to `far` metres, at most `spread` of the half width off the centre."""
        depth = self.rng.uniform(near, far)
        forward = self.camera.rotation[:, 2] * [1.0, 0.0, 1.0]
        ahead = depth * forward / np.linalg.norm(forward)
        return ahead + self.rng.uniform(-spread, spread) * depth * self.camera.slope * self.camera.rotation[:, 0]

    def fits(self, rectangle: np.ndarray) -> bool:
        """Whether a rectangle on the floor lies in the room and is free."""
        low, high = self.room.low[[0, 2]], self.room.high[[0, 2]]
        inside = (rectangle[:2] >= low + 0.02).all() and (rectangle[2:] <= high - 0.02).all()
        return inside and not overlaps(rectangle, self.occupied)

    def place(self, primitives: list[Primitive], name: str, position: np.ndarray, yaw: float) -> bool:
        """Add things at a position if there is room for them."""
        primitives = moved(primitives, position, yaw)
        rectangle = footprint(primitives)
        if not self.fits(rectangle):
            return False
        self.occupied.append(rectangle)
        self.add(primitives, name)
        return True

    def place_free(self, primitives: list[Primitive], name: str) -> None:
        """Try a few places in the open."""
        for _ in range(8):
            position = self.sample_view_point(1.6, self.room.high[2] - 0.4, 0.9)
            if self.place(primitives, name, position, self.rng.uniform(-np.pi, np.pi)):
                return

    def sample_wall_spot(self, width: float) -> tuple[np.ndarray, float]:
        """Foot `(3,)` and yaw of a spot for something `width` metres wide at the back or a side wall."""
        foot, yaw, length = self.walls[self.rng.integers(3)]
        along = self.rng.uniform(-0.5, 0.5) * (length - width - 0.2)
        return foot + turn(yaw)[:, 0] * along, yaw

    def place_at_wall(self, primitives: list[Primitive], name: str) -> None:
        """Try a few places at the back and the side walls."""
        low_x, _, high_x, high_z = footprint(primitives)
        for _ in range(8):
            foot, yaw = self.sample_wall_spot(high_x - low_x)
            # 6 cm off the wall, in front of pictures
            position = foot - turn(yaw)[:, 2] * (high_z + 0.06)
            if self.is_in_view(position) and self.place(primitives, name, position, yaw):
                return

    def hang(self, primitives: list[Primitive], name: str) -> None:
        """Try a few places on the back and the side walls."""
        low_x, _, high_x, _ = footprint(primitives)
        for _ in range(8):
            foot, yaw = self.sample_wall_spot(high_x - low_x)
            rectangle = footprint(moved(primitives, foot, yaw)) + [-0.1, -0.1, 0.1, 0.1]
            if self.is_in_view(foot) and not overlaps(rectangle, self.hung):
                self.hung.append(rectangle)
                self.add(moved(primitives, foot, yaw), name)
                return

    def is_in_view(self, point: np.ndarray) -> bool:
        """Whether the camera sees a point `(3,)`, as far as left and right go."""
        right, _, depth = self.camera.rotation.T @ (point - self.camera.origin)
        return depth > 1.2 and abs(right) < 0.95 * self.camera.slope * depth

    def place_subject(self, name: str) -> None:
        """Put a figure or one thing well into view, and keep the line of sight to it free."""
        position = self.sample_view_point(1.8, min(2.9, self.room.high[2] - 0.7), 0.55)
        position = np.clip(position, self.room.low + 0.5, self.room.high - 0.5) * [1.0, 0.0, 1.0]
        to_camera = np.arctan2(position[0], position[2])
        if name == "person":
            things = self.add_figure(to_camera, position)
        else:
            things = moved(FURNITURE[name](self.rng), position, to_camera + self.rng.uniform(-0.8, 0.8))
            self.add(things, name)
        self.occupied.append(footprint(things))
        for fraction in (0.35, 0.55, 0.75):
            middle = position[[0, 2]] * fraction
            self.occupied.append(np.concatenate([middle - 0.3, middle + 0.3]))

    def add_figure(self, to_camera: float, position: np.ndarray) -> list[Primitive]:
        """Add a figure, on a chair where it sits, and return all that was added."""
        action = str(self.rng.choice(["stand", "walk", "sit"], p=[0.4, 0.3, 0.3]))
        person, seat = build_person(self.rng, action)
        yaw = to_camera + self.rng.uniform(-1.0, 1.0) * (1.2 if action == "sit" else 2.4)
        things = moved(person, position, yaw)
        self.add(things, "person")
        if action != "sit":
            return things
        # A little forward, until its back touches the figure's.
        chair = moved(build_chair(self.rng, seat), position - 0.06 * turn(yaw)[:, 2], yaw)
        self.add(chair, "chair")
        return things + chair


def footprint(primitives: list[Primitive]) -> np.ndarray:
    """Rectangle `(4,)` low x, low z, high x, high z that things cover on the floor."""
    corners = np.concatenate([primitive.corners() for primitive in primitives], axis=1)[[0, 2]]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)])


def overlaps(rectangle: np.ndarray, others: list[np.ndarray]) -> bool:
    """Whether a rectangle `(4,)` as `footprint` returns it shares a point with one of the others."""
    return any((rectangle[2:] > other[:2]).all() and (rectangle[:2] < other[2:]).all() for other in others)


FURNITURE: dict[str, Callable[[np.random.Generator], list[Primitive]]] = {
    "bed": build_bed,
    "cabinet": build_cabinet,
    "table": build_table,
    "chair": build_chair,
    "lamp": build_lamp,
    "plant": build_plant,
    "ball": build_ball,
}


def furnish(furnisher: Furnisher, rng: np.random.Generator) -> None:
    """Fill a room from the wall to the middle: what needs more room goes first."""
    furnisher.hang(build_door(rng), "door")
    # Nothing else hangs yet: furniture keeps clear of the door, but may stand below pictures.
    furnisher.occupied += furnisher.hung
    for name in rng.permutation(["bed", "cabinet"]):
        if rng.random() < 0.75:
            furnisher.place_at_wall(FURNITURE[name](rng), name)
    for name in ["table", *rng.permutation(["chair", "chair", "lamp", "plant", "ball", "ball"])]:
        if rng.random() < 0.6:
            furnisher.place_free(FURNITURE[name](rng), name)
    for build, name in ((build_window, "window"), (build_picture, "picture")):
        for _ in range(rng.integers(1, 3)):
            furnisher.hang(build(rng), name)


def build_scene(seed: int) -> Scene:
    """Furnish a room at random. The resolution plays no part, so every size shows the same scene."""
    rng = np.random.default_rng(seed)
    room, camera = sample_room(rng), sample_camera(rng)
    furnisher = Furnisher(rng, room, camera)
    furnisher.add_shell()
    heroes = ["person", "chair", "table", "plant", "ball", "lamp"]
    furnisher.place_subject(str(rng.choice(heroes, p=[0.6, 0.08, 0.09, 0.08, 0.09, 0.06])))
    furnish(furnisher, rng)
    if rng.random() < 0.6:
        position = furnisher.sample_view_point(1.7, room.high[2] - 0.8, 0.5)
        furnisher.add(moved(build_rug(rng), position, rng.uniform(-0.5, 0.5)), "rug")
    light = np.array([rng.uniform(-0.8, 0.8), room.low[1] + 0.3, rng.uniform(0.3, 0.7) * room.high[2]])
    return Scene(camera, furnisher.primitives, light)


# ---------------------------------------------------------------------------------------------------------------------
# Rendering
# ---------------------------------------------------------------------------------------------------------------------


def scene_intrinsics(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Intrinsic matrix `(3, 3)` of the camera of `render_scene`; pixel (row, column) is seen at (column, row) + 0.5."""
    focal = width / (2.0 * build_scene(seed).camera.slope)
    return np.array([[focal, 0.0, width / 2.0], [0.0, focal, height / 2.0], [0.0, 0.0, 1.0]])


def camera_rays(camera: Camera, height: int, width: int) -> np.ndarray:
    """World directions `(3, H, W)` with camera depth 1, so that distances along them are depths."""
    scale = 2.0 * camera.slope / width
    x, y = (np.arange(width) + 0.5 - width / 2.0) * scale, (np.arange(height) + 0.5 - height / 2.0) * scale
    rays = np.stack([*np.meshgrid(x, y), np.ones((height, width))])
    return np.tensordot(camera.rotation, rays, axes=1)


def image_window(primitive: Primitive, camera: Camera, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns outside which no ray can meet a primitive."""
    x, y, depth = camera.rotation.T @ (primitive.corners() - camera.origin[:, None])
    if depth.min() < 0.05:
        return slice(0, height), slice(0, width)
    scale = width / (2.0 * camera.slope)
    columns, rows = x / depth * scale + width / 2.0, y / depth * scale + height / 2.0
    first = [int(np.clip(np.floor(axis.min()) - 1, 0, size)) for axis, size in ((rows, height), (columns, width))]
    last = [int(np.clip(np.ceil(axis.max()) + 1, 0, size)) for axis, size in ((rows, height), (columns, width))]
    return slice(first[0], last[0]), slice(first[1], last[1])


def cast_rays(scene: Scene, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth and index of the nearest primitive, both `(H, W)`, along `rays` `(3, H, W)`."""
    height, width = rays.shape[1:]
    depth, owner = np.full((height, width), np.inf), np.zeros((height, width), dtype=np.intp)
    for index, primitive in enumerate(scene.primitives):
        window = image_window(primitive, scene.camera, height, width)
        part = rays[(slice(None), *window)]
        distances = intersect(primitive, scene.camera.origin, part.reshape(3, -1)).reshape(part.shape[1:])
        closer = distances < depth[window]
        np.copyto(depth[window], distances, where=closer)
        np.copyto(owner[window], index, where=closer)
    return depth, owner


def surface_maps(scene: Scene, points: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """World normals `(3, N)`, colours `(3, N)` and emission `(N,)` at surface points `(3, N)` of primitives `(N,)`."""
    normals, colours, emission = np.empty_like(points), np.empty_like(points), np.empty(len(owner))
    order = np.argsort(owner, kind="stable")
    visible, starts = np.unique(owner[order], return_index=True)
    for index, pixels in zip(visible, np.split(order, starts[1:]), strict=True):
        primitive = scene.primitives[index]
        material = primitive.material
        unit = primitive.to_unit() @ (points[:, pixels] - primitive.center[:, None])
        share = TEXTURES[material.texture](unit * primitive.half_sizes[:, None], unit, material.period)
        normals[:, pixels] = unit_normals(primitive, unit)
        colours[:, pixels] = material.colours[0][:, None] * (1.0 - share) + material.colours[1][:, None] * share
        emission[pixels] = material.emission
    return normals, colours, emission


def cast_shadows(scene: Scene, points: np.ndarray) -> np.ndarray:
    """Whether something stands between the light and each point `(3, N)`: bool `(N,)`."""
    shadow = np.zeros(points.shape[1], dtype=bool)
    beams = points - scene.light[:, None]
    lengths = np.linalg.norm(beams, axis=0)
    units = beams / lengths
    for primitive in scene.primitives[NUM_SHELL_PRIMITIVES:]:
        radius = np.linalg.norm(primitive.half_sizes)
        offset = primitive.center - scene.light
        along = offset @ units
        near = (offset @ offset - along * along < radius**2) & (along > 0.0) & (along - radius < lengths) & ~shadow
        pixels = np.flatnonzero(near)
        if len(pixels):
            # 1 is the point itself; the margin keeps a surface from shading itself
            shadow[pixels] = intersect(primitive, scene.light, beams[:, pixels]) < 0.98
    return shadow


def shade(scene: Scene, points: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours `(3, N)` in [0, 1] and world normals `(3, N)` at points `(3, N)` of primitives `(N,)`."""
    normals, colours, emission = surface_maps(scene, points, owner)
    to_light = scene.light[:, None] - points
    squared = (to_light * to_light).sum(axis=0)
    lambert = np.maximum((normals * to_light).sum(axis=0), 0.0) / np.sqrt(squared)
    direct = 1.1 * lambert / (1.0 + squared / 9.0) * np.where(cast_shadows(scene, points), 0.25, 1.0)
    # Light from above is brighter: a cheap stand-in for what walls and ceiling reflect.
    ambient = 0.38 - 0.1 * normals[1]
    return colours * (np.maximum(ambient + direct, emission)), normals


def develop(colours: np.ndarray, seed: int) -> np.ndarray:
    """Turn light `(3, H, W)` into uint8 `(H, W, 3)`, with white balance, exposure, gamma and sensor noise."""
    rng = np.random.default_rng([seed, 1])
    gain = rng.uniform(0.85, 1.25) * rng.uniform(0.92, 1.08, size=(3, 1, 1))
    sigma = rng.uniform(0.005, 0.025)
    picture = (colours * gain) ** 0.8 + sigma * rng.standard_normal(colours.shape)
    return np.round(np.clip(picture, 0.0, 1.0) * 255.0).astype(np.uint8).transpose(1, 2, 0)


def find_boundaries(instances: np.ndarray) -> np.ndarray:
    """1 where the instance `(H, W)` changes to the right, below or to the lower right, else 0: float32 `(H, W)`."""
    padded = np.pad(instances, ((0, 1), (0, 1)), mode="edge")
    neighbours = (padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:])
    return np.any([instances != neighbour for neighbour in neighbours], axis=0).astype(np.float32)


def find_salient(semseg: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Mark what a person would look at first: uint8 `(H, W)`.

    The figure, if it covers `MIN_SALIENT_SHARE` of the picture; else the free-standing thing with most pixels, where pixels
    count exp(-2 r^2) at r half diagonals from the centre. Ties go to what was put into the room first.
    """
    person = semseg == CLASS_NAMES["semseg"].index("person")
    if person.mean() >= MIN_SALIENT_SHARE:
        return person.astype(np.uint8)
    height, width = semseg.shape
    row, column = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    labels = [CLASS_NAMES["semseg"].index(name) for name in FREE_STANDING]
    weights = np.exp(-row * row - column * column) * np.isin(semseg, labels)
    scores = np.bincount(instances.ravel(), weights=weights.ravel())
    return ((instances == scores.argmax()) & (scores.max() > 0.0)).astype(np.uint8)


def render_scene(seed: int, height: int = 96, width: int = 128) -> dict[str, np.ndarray]:
    """Render one random room with its labels.

    Args:
        seed: Picks the scene; the same seed shows the same scene at every size.
        height: Rows of the picture.
        width: Columns of the picture; they span the field of view, so a higher picture shows more above and below.

    Returns:
        "image" uint8 `(height, width, 3)`; "semseg", "parsing" and "saliency" uint8 ids `(height, width)`; "depth" float32
        `(height, width)`, metres along the optical axis; "normal" float32 `(3, height, width)`, unit vectors towards the
        camera with x right, y down, z forward; "boundary" float32 `(height, width)`, 0 or 1.
    """
    scene = build_scene(seed)
    rays = camera_rays(scene.camera, height, width)
    depth, owner = cast_rays(scene, rays)
    points = scene.camera.origin[:, None] + rays.reshape(3, -1) * depth.ravel()
    colours, normals = shade(scene, points, owner.ravel())
    semseg = np.array([primitive.label for primitive in scene.primitives], dtype=np.uint8)[owner]
    parsing = np.array([primitive.part for primitive in scene.primitives], dtype=np.uint8)[owner]
    instances = np.array([primitive.instance for primitive in scene.primitives])[owner]
    return {
        "image": develop(colours.reshape(3, height, width), seed),
        "semseg": semseg,
        "depth": depth.astype(np.float32),
        "normal": (scene.camera.rotation.T @ normals).reshape(3, height, width).astype(np.float32),
        "boundary": find_boundaries(instances),
        "parsing": parsing,
        "saliency": find_salient(semseg, instances),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The data set
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class ScenesConfig(datasets.BuilderConfig):
    """Size of the pictures and of the splits; `seed` picks another, disjoint data set."""

    height: int = 96
    width: int = 128
    num_train: int = 1000
    num_validation: int = 100
    seed: int = 0

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Name the cache by all values, so that spelling out a default finds the same cache."""
        values = {"height": self.height, "width": self.width, "seed": self.seed}
        values |= {"num_train": self.num_train, "num_validation": self.num_validation}
        return super().create_config_id(values, custom_features)


def split_seeds(seed: int, split: Literal["train", "validation"], num_rows: int) -> list[int]:
    """Seeds of the scenes of a split: even ones train, odd ones validate, so no scene is ever in both."""
    first = seed * 10**9
    return [2 * (first + index) + (split == "validation") for index in range(num_rows)]


class Scenes(datasets.GeneratorBasedBuilder):
    """Procedural rooms with labels for all six tasks; see `render_scene`."""

    # A change of the generator that changes pictures must raise the version: it is part of the path of the cache.
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = ScenesConfig
    DEFAULT_WRITER_BATCH_SIZE = 64

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(description=__doc__, features=datasets.Features(FEATURES))

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        # A list is what `datasets` cuts into shards for its processes.
        sizes = {"train": self.config.num_train, "validation": self.config.num_validation}
        return [
            datasets.SplitGenerator(name, gen_kwargs={"seeds": split_seeds(self.config.seed, name, num_rows)})
            for name, num_rows in sizes.items()
        ]

    def _generate_examples(self, seeds: list[int]) -> Iterator[tuple[int, dict]]:
        for seed in seeds:
            yield seed, encode_row(render_scene(seed, self.config.height, self.config.width))
