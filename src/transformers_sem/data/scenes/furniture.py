"""Furniture, built around the floor point (0, 0, 0) with its front to -z and its back to +z."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from .geometry import Primitive, rotate_pitch, rotate_yaw
from .materials import Material, sample_material, sample_mixture


def make_primitive(
    shape: Literal["box", "sphere", "frustum"],
    place: tuple[float, float, float],
    size: tuple[float, float, float],
    material: Material,
    taper: float = 1.0,
) -> Primitive:
    """Returns an axis-aligned shape of `size` (width, height, depth) that stands at `place` (x, height above floor, z)."""
    center = np.array([place[0], -place[1] - size[1] / 2.0, place[2]])
    return Primitive(shape, center, np.array(size) / 2.0, material, np.eye(3), taper)


def move(primitives: list[Primitive], position: np.ndarray, yaw: float) -> list[Primitive]:
    """Rotates primitives about the vertical through the origin, then shifts them by `position` `(3,)`."""
    rotation = rotate_yaw(yaw)
    return [replace(p, center=position + rotation @ p.center, axes=rotation @ p.axes) for p in primitives]


def build_legs(width: float, depth: float, height: float, thickness: float, material: Material) -> list[Primitive]:
    """Builds four square legs under the corners of a plate of `width` times `depth`."""
    x, z = (width - thickness) / 2.0, (depth - thickness) / 2.0
    size = (thickness, height, thickness)
    return [
        make_primitive("box", (sign_x * x, 0.0, sign_z * z), size, material)
        for sign_x in (-1, 1)
        for sign_z in (-1, 1)
    ]


def build_bed(rng: np.random.Generator) -> list[Primitive]:
    """Builds a bed with headboard, linen, pillow and blanket."""
    width, depth, base = rng.uniform(0.9, 1.6), rng.uniform(1.8, 2.1), rng.uniform(0.22, 0.34)
    wood, linen = sample_material(rng, "wood", "grain"), sample_material(rng, "linen")
    blanket = sample_material(rng, "blanket", str(rng.choice(["checker", "stripes", "noise"])), contrast=0.35)
    cover = rng.uniform(0.55, 0.7) * depth
    return [
        make_primitive("box", (0.0, 0.0, 0.0), (width, base, depth), wood),
        make_primitive("box", (0.0, base, 0.0), (width * 0.97, 0.2, depth * 0.98), linen),
        make_primitive("box", (0.0, base - 0.05, (cover - depth) / 2.0 - 0.01), (width + 0.02, 0.28, cover), blanket),
        make_primitive("sphere", (0.0, base + 0.16, depth / 2.0 - 0.3), (width * 0.7, 0.2, 0.45), linen),
        make_primitive("box", (0.0, 0.0, depth / 2.0 + 0.02), (width, base + rng.uniform(0.4, 0.7), 0.06), wood),
    ]


def build_cabinet(rng: np.random.Generator) -> list[Primitive]:
    """Builds a sideboard or a wardrobe with paneled doors."""
    width, depth = rng.uniform(0.8, 1.6), rng.uniform(0.4, 0.55)
    height = rng.uniform(0.8, 1.1) if rng.random() < 0.5 else rng.uniform(1.6, 2.05)
    body = sample_material(rng, str(rng.choice(["wood", "white"])), "panels", contrast=0.45)
    return [
        make_primitive("box", (0.0, 0.0, 0.0), (width, height, depth), body),
        make_primitive("box", (0.0, height, 0.0), (width + 0.06, 0.05, depth + 0.04), sample_material(rng, "wood")),
    ]


def build_table(rng: np.random.Generator) -> list[Primitive]:
    """Builds a rectangular table, or a round one on a column."""
    width, depth, height = rng.uniform(0.9, 1.5), rng.uniform(0.65, 0.9), rng.uniform(0.62, 0.76)
    wood = sample_material(rng, "wood", "grain", contrast=0.35)
    if rng.random() < 0.3:
        column = make_primitive("frustum", (0.0, 0.0, 0.0), (0.4, height, 0.4), wood, taper=0.35)
        return [column, make_primitive("frustum", (0.0, height, 0.0), (width, 0.06, width), wood)]
    top = make_primitive("box", (0.0, height, 0.0), (width, 0.06, depth), wood)
    return [top, *build_legs(width, depth, height, 0.08, wood)]


def build_chair(rng: np.random.Generator, seat: float = 0.45) -> list[Primitive]:
    """Builds a chair whose seat is `seat` metres high."""
    width, back = rng.uniform(0.42, 0.5), rng.uniform(0.4, 0.52)
    fabric = sample_material(rng, "upholstery", str(rng.choice(["plain", "stripes", "noise"])), period=0.12)
    plate = make_primitive("box", (0.0, seat - 0.07, 0.0), (width, 0.07, width), fabric)
    rest = make_primitive("box", (0.0, seat, width / 2.0 - 0.03), (width, back, 0.06), fabric)
    return [plate, rest, *build_legs(width, width, seat - 0.07, 0.055, sample_material(rng, "metal"))]


def build_lamp(rng: np.random.Generator) -> list[Primitive]:
    """Builds a floor lamp with a bright shade."""
    height, width = rng.uniform(1.0, 1.5), rng.uniform(0.32, 0.5)
    metal, shade = sample_material(rng, "metal"), replace(sample_material(rng, "shade"), emission=0.8)
    return [
        make_primitive("frustum", (0.0, 0.0, 0.0), (0.3, 0.04, 0.3), metal),
        make_primitive("frustum", (0.0, 0.0, 0.0), (0.05, height, 0.05), metal),
        make_primitive(
            "frustum", (0.0, height - 0.03, 0.0), (width, 0.32, width), shade, taper=rng.uniform(0.45, 0.8)
        ),
    ]


def build_plant(rng: np.random.Generator) -> list[Primitive]:
    """Builds a pot with a bush of ellipsoids."""
    pot, width = rng.uniform(0.25, 0.42), rng.uniform(0.26, 0.4)
    leaves = sample_material(rng, "leaves", "blotches", period=0.12, contrast=0.5)
    parts = [
        make_primitive(
            "frustum", (0.0, 0.0, 0.0), (width * 0.75, pot, width * 0.75), sample_material(rng, "clay"), 1.35
        )
    ]
    for angle in np.arange(5) * 2.0 * np.pi / 5.0 + rng.uniform(0.0, 1.0):
        place = (0.13 * np.cos(angle), pot + rng.uniform(-0.05, 0.15), 0.13 * np.sin(angle))
        size = (rng.uniform(0.2, 0.34), rng.uniform(0.35, 0.65), rng.uniform(0.2, 0.34))
        parts.append(make_primitive("sphere", place, size, leaves))
    return parts


def build_ball(rng: np.random.Generator) -> list[Primitive]:
    """Builds a beach ball or a football with a random orientation."""
    size = rng.uniform(0.36, 0.64)
    material = sample_mixture(rng, ("vivid", "white"), str(rng.choice(["sectors", "checker"])), period=size / 3.0)
    ball = make_primitive("sphere", (0.0, 0.0, 0.0), (size, size, size), material)
    return [replace(ball, axes=rotate_pitch(rng.uniform(-1.0, 1.0)) @ rotate_yaw(rng.uniform(-3.0, 3.0)))]


def build_rug(rng: np.random.Generator) -> list[Primitive]:
    """Builds a flat rug."""
    texture = str(rng.choice(["checker", "stripes", "panels"]))
    material = sample_mixture(rng, ("rug", str(rng.choice(["rug", "linen"]))), texture, period=rng.uniform(0.25, 0.5))
    return [make_primitive("box", (0.0, 0.0, 0.0), (rng.uniform(1.4, 2.4), 0.015, rng.uniform(1.0, 1.7)), material)]


def build_window(rng: np.random.Generator) -> list[Primitive]:
    """Builds a bright window with four panes, for a wall."""
    material = sample_mixture(rng, ("sky", "white"), "panes", emission=0.7)
    size = (rng.uniform(0.9, 1.6), rng.uniform(0.9, 1.3), 0.04)
    return [make_primitive("box", (0.0, rng.uniform(0.8, 1.0), -0.02), size, material)]


def build_door(rng: np.random.Generator) -> list[Primitive]:
    """Builds a paneled door with a knob."""
    width, metal = rng.uniform(0.8, 1.0), sample_material(rng, "shade")
    leaf = sample_material(rng, "door", "panels", contrast=0.5)
    return [
        make_primitive("box", (0.0, 0.0, -0.02), (width, rng.uniform(1.95, 2.1), 0.04), leaf),
        make_primitive("sphere", (0.38 * width, 0.98, -0.07), (0.08, 0.08, 0.08), metal),
    ]


def build_picture(rng: np.random.Generator) -> list[Primitive]:
    """Builds an abstract painting in a dark frame."""
    width, height, bottom = rng.uniform(0.7, 1.3), rng.uniform(0.5, 0.85), rng.uniform(1.1, 1.4)
    painting = sample_mixture(rng, ("vivid", "vivid"), "blotches", period=rng.uniform(0.3, 0.6))
    return [
        make_primitive("box", (0.0, bottom, -0.015), (width, height, 0.03), sample_material(rng, "hair")),
        make_primitive("box", (0.0, bottom + 0.05, -0.02), (width - 0.1, height - 0.1, 0.04), painting),
    ]


FURNITURE: dict[str, Callable[[np.random.Generator], list[Primitive]]] = {
    "bed": build_bed,
    "cabinet": build_cabinet,
    "table": build_table,
    "chair": build_chair,
    "lamp": build_lamp,
    "plant": build_plant,
    "ball": build_ball,
}
