"""Materials: colors and the textures that mix them."""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


# Ranges of (hue, saturation, value) from which colors are drawn.
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
    """A surface material.

    Args:
        colors: Two colors `(2, 3)` in [0, 1].
        texture: Key of `TEXTURES`; it mixes the two colors.
        period: Period of the texture in metres.
        emission: Lower bound of the brightness, for surfaces that emit light.
    """

    colors: np.ndarray
    texture: str = "plain"
    period: float = 0.3
    emission: float = 0.0


def smooth_noise(points: np.ndarray, period: float) -> np.ndarray:
    """Returns smooth noise in [0, 1] `(N,)` at points `(3, N)`: two octaves of products of sines."""
    x, y, z = points * (2.0 * np.pi / period)
    coarse = np.sin(x + 1.7 * np.sin(0.6 * z + 0.9)) * np.sin(0.8 * y + 0.7) + np.sin(0.9 * z + np.sin(0.7 * x))
    fine = np.sin(2.3 * x + 1.3 * z + 2.1) * np.sin(2.9 * y + 1.9 * z)
    return 0.5 + 0.2 * coarse + 0.1 * fine


def cell_index(coordinate: np.ndarray, period: float) -> np.ndarray:
    """Returns the index of the cell of each coordinate. The offset keeps flat faces off the cell borders."""
    return np.floor(coordinate / period + 0.137)


def grid_lines(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    """Returns 1 near the border and the middle lines of the square [-1, 1] x [-1, 1], else 0, at `(N,)` coordinates."""
    near = [np.minimum(1.0 - np.abs(axis), np.abs(axis)) < width for axis in (first, second)]
    return (near[0] | near[1]).astype(float)


def plank_tones(points: np.ndarray, period: float) -> np.ndarray:
    """Returns tones `(N,)` of wooden planks along z at points `(3, N)`: one tone per plank, with grain."""
    board = cell_index(points[0], period)
    tone = np.modf(np.abs(np.sin(board * 12.9898) * 43.7585))[0]
    grain = np.sin(90.0 * points[0] / period + 3.0 * np.sin(1.5 * points[2] / period + board))
    return np.clip(0.7 * tone + 0.15 + 0.15 * grain, 0.0, 1.0)


# Each texture returns the share of the second color (N,). It takes object coordinates in metres (3, N), the same
# coordinates in [-1, 1], and a period in metres.
TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "plain": lambda metric, unit, period: np.zeros(metric.shape[1]),
    "noise": lambda metric, unit, period: smooth_noise(metric, period),
    "checker": lambda metric, unit, period: cell_index(metric, period).sum(axis=0) % 2,
    "stripes": lambda metric, unit, period: cell_index(metric[0], period / 2) % 2,
    "bands": lambda metric, unit, period: cell_index(metric[1], period / 2) % 2,
    "planks": lambda metric, unit, period: plank_tones(metric, period),
    "grain": lambda metric, unit, period: 0.5 + 0.5 * np.sin(40 * metric[1] + 9 * smooth_noise(metric, period)),
    "panes": lambda metric, unit, period: grid_lines(unit[0], unit[1], 0.08),
    "panels": lambda metric, unit, period: grid_lines(unit[0], unit[1], 0.05),
    "blotches": lambda metric, unit, period: (smooth_noise(metric + 3.0 * period, period) > 0.5).astype(float),
    "sectors": lambda metric, unit, period: np.floor(np.arctan2(unit[2], unit[0]) * 3.0 / np.pi) % 2,
}


def sample_color(rng: np.random.Generator, family: str) -> np.ndarray:
    """Draws a color `(3,)` in [0, 1] from a family of `PALETTE`."""
    hue, saturation, value = (rng.uniform(low, high) for low, high in PALETTE[family])
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def sample_material(
    rng: np.random.Generator, family: str, texture: str = "plain", *, period: float = 0.3, contrast: float = 0.25
) -> Material:
    """Draws a material whose second color is the first, darkened by `contrast`."""
    color = sample_color(rng, family)
    return Material(np.stack([color, color * (1.0 - contrast)]), texture, period)


def sample_mixture(
    rng: np.random.Generator, families: tuple[str, str], texture: str, *, period: float = 0.3, emission: float = 0.0
) -> Material:
    """Draws a material with two independent colors."""
    return Material(np.stack([sample_color(rng, family) for family in families]), texture, period, emission)
