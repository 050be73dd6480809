"""People: poses, clothes and body parts."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .classes import HEAD, LOWER_ARMS, LOWER_LEGS, TORSO, UPPER_ARMS, UPPER_LEGS
from .geometry import Primitive
from .materials import Material, sample_material


@dataclass(frozen=True)
class Pose:
    """Joint angles in radians. Pairs are (left, right); positive angles point forward."""

    hips: tuple[float, float]
    knees: tuple[float, float]
    shoulders: tuple[float, float]
    elbows: tuple[float, float]
    spread: tuple[float, float]
    lean: float


def sample_pose(rng: np.random.Generator, action: Literal["stand", "walk", "sit"]) -> Pose:
    """Draws joint angles for an action."""
    low_high = {
        "stand": [(-5, 5), (-5, 5), (0, 6), (0, 6), (-10, 15), (-10, 15), (5, 30), (5, 30), (8, 16), (-2, 3)],
        "walk": [(18, 32), (-28, -14), (5, 15), (20, 45), (-32, -15), (15, 32), (15, 45), (15, 45), (6, 12), (1, 8)],
        "sit": [(80, 92), (80, 92), (78, 92), (78, 92), (10, 40), (10, 40), (30, 75), (30, 75), (6, 14), (-8, 4)],
    }[action]
    degrees = [rng.uniform(low, high) for low, high in low_high]
    spread = [degrees[8], degrees[8]]
    if rng.random() < 0.5:  # one arm is raised, so that arms are not always beside the trunk
        side = rng.integers(2)
        degrees[4 + side], degrees[6 + side], spread[side] = (
            rng.uniform(40, 150),
            rng.uniform(0, 60),
            rng.uniform(5, 50),
        )
    angles = np.deg2rad(degrees)
    return Pose(*(tuple(angles[i : i + 2]) for i in (0, 2, 4, 6)), tuple(np.deg2rad(spread)), angles[9])


def sample_clothes(rng: np.random.Generator) -> dict[int | str, Material]:
    """Draws a material for each body part. Lower arms are bare, and lower legs are for people in shorts."""
    skin = sample_material(rng, "skin")
    shirt = sample_material(rng, "shirt", str(rng.choice(["plain", "bands", "noise"])), period=0.16, contrast=0.4)
    trousers = sample_material(rng, "trousers", "noise", period=0.2)
    return {
        HEAD: skin,
        TORSO: shirt,
        UPPER_ARMS: replace(shirt, texture="plain"),
        LOWER_ARMS: skin,
        UPPER_LEGS: trousers,
        LOWER_LEGS: skin if rng.random() < 0.4 else replace(trousers, colors=trousers.colors * 0.75),
        "hair": sample_material(rng, "hair", "noise", period=0.05, contrast=0.4),
        "shoes": sample_material(rng, "shoes"),
    }


def limb_direction(angle: float, spread: float = 0.0) -> np.ndarray:
    """Returns the direction `(3,)` of a limb: down, rotated forward (to -z) by `angle` and to +x by `spread`."""
    return np.array([np.sin(spread), np.cos(spread) * np.cos(angle), -np.cos(spread) * np.sin(angle)])


def axes_along(direction: np.ndarray) -> np.ndarray:
    """Returns axes `(3, 3)` with y along the unit `direction` `(3,)` and x as close to the world's x as possible."""
    side = np.array([1.0, 0.0, 0.0]) - direction[0] * direction
    if side @ side < 1e-6:
        side = np.array([0.0, 0.0, 1.0])
    side = side / np.linalg.norm(side)
    return np.stack([side, direction, np.cross(side, direction)], axis=1)


def ellipsoid(center: np.ndarray, half_sizes: tuple[float, float, float], material: Material, part: int) -> Primitive:
    """Builds an axis-aligned ellipsoid of a body part."""
    return Primitive("sphere", center, np.array(half_sizes), material, np.eye(3), part=part)


def build_limb(
    start: np.ndarray, end: np.ndarray, radii: tuple[float, float], material: Material, part: int
) -> list[Primitive]:
    """Builds a tapered limb from joint `start` to joint `end`, rounded at both."""
    axis = end - start
    length = float(np.linalg.norm(axis))
    shaft = Primitive(
        "frustum",
        (start + end) / 2.0,
        np.array([radii[1], length / 2.0, radii[1]]),
        material,
        axes_along(axis / length),
        taper=radii[0] / radii[1],
        part=part,
    )
    return [shaft, ellipsoid(start, (radii[0],) * 3, material, part), ellipsoid(end, (radii[1],) * 3, material, part)]


def build_trunk(neck: np.ndarray, height: float, clothes: dict[int | str, Material]) -> list[Primitive]:
    """Builds pelvis (at the origin), chest, shoulders, neck and head; `neck` `(3,)` is where the neck starts."""
    up = neck / np.linalg.norm(neck)
    head = neck + up * 0.115 * height
    chest = Primitive(
        "frustum",
        neck * 0.47,
        height * np.array([0.088, 0.136, 0.062]),
        clothes[TORSO],
        axes_along(-up),
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
    """Builds upper arm, lower arm and hand; `side` is -1 for the left and 1 for the right."""
    index = (side + 1) // 2
    mirror = np.array([side, 1.0, 1.0])
    angle, spread = pose.shoulders[index], pose.spread[index]
    elbow = shoulder + mirror * limb_direction(angle, spread) * 0.175 * height
    wrist = elbow + mirror * limb_direction(angle + pose.elbows[index], spread * 0.4) * 0.15 * height
    hand = wrist + (wrist - elbow) * 0.25
    return [
        *build_limb(shoulder, elbow, (0.038 * height, 0.03 * height), clothes[UPPER_ARMS], UPPER_ARMS),
        *build_limb(elbow, wrist, (0.029 * height, 0.022 * height), clothes[LOWER_ARMS], LOWER_ARMS)[:1],
        ellipsoid(hand, (0.026 * height,) * 2 + (0.032 * height,), clothes[LOWER_ARMS], LOWER_ARMS),
    ]


def build_leg(
    hip: np.ndarray, side: int, height: float, pose: Pose, clothes: dict[int | str, Material]
) -> list[Primitive]:
    """Builds upper leg, lower leg and foot; `side` is -1 for the left and 1 for the right."""
    index = (side + 1) // 2
    mirror = np.array([side, 1.0, 1.0])
    knee = hip + mirror * limb_direction(pose.hips[index], 0.04) * 0.245 * height
    ankle = knee + limb_direction(pose.hips[index] - pose.knees[index]) * 0.235 * height
    foot = ankle + height * np.array([0.0, 0.012, -0.035])
    return [
        *build_limb(hip, knee, (0.058 * height, 0.041 * height), clothes[UPPER_LEGS], UPPER_LEGS),
        *build_limb(knee, ankle, (0.04 * height, 0.026 * height), clothes[LOWER_LEGS], LOWER_LEGS)[:1],
        ellipsoid(foot, (0.03 * height, 0.024 * height, 0.075 * height), clothes["shoes"], LOWER_LEGS),
    ]


def build_person(rng: np.random.Generator, action: Literal["stand", "walk", "sit"]) -> tuple[list[Primitive], float]:
    """Builds a person whose lower foot touches the floor.

    Returns:
        The primitives, and the height in metres of a seat that touches the thighs.
    """
    height = rng.uniform(1.5, 1.9)
    pose, clothes = sample_pose(rng, action), sample_clothes(rng)
    neck = -limb_direction(-pose.lean) * 0.3 * height
    parts = build_trunk(neck, height, clothes)
    for side in (-1, 1):
        parts += build_arm(neck * 0.93 + np.array([side * 0.118 * height, 0.0, 0.0]), side, height, pose, clothes)
        parts += build_leg(np.array([side * 0.05 * height, 0.02 * height, 0.0]), side, height, pose, clothes)
    sole = max(part.corners()[1].max() for part in parts if part.material is clothes["shoes"])
    standing = [replace(part, center=part.center - np.array([0.0, sole, 0.0])) for part in parts]
    return standing, sole - 0.075 * height
