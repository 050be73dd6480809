"""Colours and panels: for people only, at the very end. Nothing here feeds a number."""

import colorsys

import numpy as np


INVALID_COLOR = (60, 60, 60)


def class_palette(num_colors: int = 256) -> np.ndarray:
    """Distinct colours for class ids: light grey for 0 (wall, background), golden-angle hues for the rest.

    Returns:
        `np.ndarray` of shape `(num_colors, 3)`, uint8; the last row is the colour of invalid pixels (id 255).
    """
    colors = [(214, 214, 214)]
    for index in range(1, num_colors - 1):
        hue, saturation, value = index * 0.61803398875 % 1, (0.85, 0.55)[index // 2 % 2], (0.95, 0.65)[index % 2]
        colors.append(tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value)))
    return np.array([*colors, INVALID_COLOR], dtype=np.uint8)


def colorize_ids(ids: np.ndarray) -> np.ndarray:
    """Colours class ids of shape `(height, width)` as uint8 `(height, width, 3)`."""
    return class_palette()[ids.astype(np.uint8)]


def colorize_range(values: np.ndarray, colormap: str) -> np.ndarray:
    """Colours numbers of shape `(height, width)` by a colour map of matplotlib, between the 2nd and 98th percentile."""
    from matplotlib import colormaps  # costs half a second, and only people who look at such a map pay it

    valid = np.isfinite(values)
    low, high = np.percentile(values[valid], [2, 98]) if valid.any() else (0.0, 1.0)
    scaled = (np.where(valid, values, low) - low) / max(high - low, 1e-6)
    colors = (colormaps[colormap](np.clip(scaled, 0, 1))[..., :3] * 255).astype(np.uint8)
    colors[~valid] = INVALID_COLOR
    return colors


def colorize_depth(depth: np.ndarray) -> np.ndarray:
    """Colours metres of shape `(height, width)`, near bright and far dark between the 2nd and 98th percentile."""
    return colorize_range(depth, "magma_r")


def colorize_normal(normal: np.ndarray) -> np.ndarray:
    """Colours unit vectors of shape `(3, height, width)`: x, y, z in [-1, 1] become red, green, blue in [0, 255]."""
    valid = np.isfinite(normal).all(axis=0)
    colors = np.round((np.where(valid, normal, 0) + 1) / 2 * 255).astype(np.uint8).transpose(1, 2, 0)
    colors[~valid] = INVALID_COLOR
    return colors


def colorize_probability(probability: np.ndarray) -> np.ndarray:
    """Colours a probability of shape `(height, width)` from black (0) to white (1); outside [0, 1] is invalid."""
    valid = (probability >= 0) & (probability <= 1)
    grey = np.round(np.where(valid, probability, 0) * 255).astype(np.uint8)
    colors = np.repeat(grey[..., None], 3, axis=-1)
    colors[~valid] = INVALID_COLOR
    return colors
