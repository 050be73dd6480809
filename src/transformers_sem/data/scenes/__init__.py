"""Procedural rooms: the embedded dataset, with exact labels for all six tasks and nothing to download.

`render_scene(seed)` furnishes a room at random and casts one ray per pixel. Every object, the walls included, is a unit
box, sphere or frustum under an affine map, so one intersection routine per shape gives exact depth and normals.

Axes of the world and of the camera: x right, y down, z forward. The floor is y = 0 and the camera stands at x = z = 0.
Sizes are in metres. Letters in shapes: N points, H height, W width.
"""

from .classes import CLASS_NAMES
from .dataset import Scenes, ScenesConfig, split_seeds
from .rendering import render_scene, scene_intrinsics


__all__ = ["CLASS_NAMES", "Scenes", "ScenesConfig", "render_scene", "scene_intrinsics", "split_seeds"]
