"""Rendering: one ray per pixel gives exact depth, normals and class ids."""

import numpy as np

from ...evaluation.boundary import find_boundaries
from .classes import CLASS_NAMES, FREE_STANDING
from .geometry import Camera, Primitive, intersect, unit_normals
from .materials import TEXTURES
from .rooms import Scene, build_scene


# Floor, ceiling and four walls are the first primitives. Nothing is behind them, so they cast no shadow.
NUM_SHELL_PRIMITIVES = 6
# A person that covers a smaller share of the image is not salient.
MIN_SALIENT_SHARE = 0.02


def scene_intrinsics(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Returns the camera matrix `(3, 3)` of `render_scene`; the center of pixel (row, column) is (column, row) + 0.5."""
    focal = width / (2.0 * build_scene(seed).camera.half_width)
    return np.array([[focal, 0.0, width / 2.0], [0.0, focal, height / 2.0], [0.0, 0.0, 1.0]])


def camera_rays(camera: Camera, height: int, width: int) -> np.ndarray:
    """Returns world directions `(3, H, W)` with camera depth 1, so that distances along them are depths."""
    scale = 2.0 * camera.half_width / width
    x, y = (np.arange(width) + 0.5 - width / 2.0) * scale, (np.arange(height) + 0.5 - height / 2.0) * scale
    rays = np.stack([*np.meshgrid(x, y), np.ones((height, width))])
    return np.tensordot(camera.rotation, rays, axes=1)


def image_window(primitive: Primitive, camera: Camera, height: int, width: int) -> tuple[slice, slice]:
    """Returns the rows and columns outside which no ray can hit a primitive."""
    x, y, depth = camera.rotation.T @ (primitive.corners() - camera.origin[:, None])
    if depth.min() < 0.05:
        return slice(0, height), slice(0, width)
    scale = width / (2.0 * camera.half_width)
    columns, rows = x / depth * scale + width / 2.0, y / depth * scale + height / 2.0
    first = [int(np.clip(np.floor(axis.min()) - 1, 0, size)) for axis, size in ((rows, height), (columns, width))]
    last = [int(np.clip(np.ceil(axis.max()) + 1, 0, size)) for axis, size in ((rows, height), (columns, width))]
    return slice(first[0], last[0]), slice(first[1], last[1])


def cast_rays(scene: Scene, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth and index of the nearest primitive, both `(H, W)`, along `rays` `(3, H, W)`."""
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
    """Returns world normals `(3, N)`, colors `(3, N)` and emission `(N,)` at points `(3, N)` of primitives `(N,)`."""
    normals, colors, emission = np.empty_like(points), np.empty_like(points), np.empty(len(owner))
    order = np.argsort(owner, kind="stable")
    visible, starts = np.unique(owner[order], return_index=True)
    for index, pixels in zip(visible, np.split(order, starts[1:]), strict=True):
        primitive = scene.primitives[index]
        material = primitive.material
        unit = primitive.to_unit() @ (points[:, pixels] - primitive.center[:, None])
        share = TEXTURES[material.texture](unit * primitive.half_sizes[:, None], unit, material.period)
        normals[:, pixels] = unit_normals(primitive, unit)
        colors[:, pixels] = material.colors[0][:, None] * (1.0 - share) + material.colors[1][:, None] * share
        emission[pixels] = material.emission
    return normals, colors, emission


def find_shadows(scene: Scene, points: np.ndarray) -> np.ndarray:
    """Returns whether a primitive blocks the light at each point `(3, N)`: bool `(N,)`."""
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
            # Distance 1 is the point itself; the margin keeps a surface from shading itself.
            shadow[pixels] = intersect(primitive, scene.light, beams[:, pixels]) < 0.98
    return shadow


def shade(scene: Scene, points: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns light `(3, N)` and world normals `(3, N)` at points `(3, N)` of primitives `(N,)`."""
    normals, colors, emission = surface_maps(scene, points, owner)
    to_light = scene.light[:, None] - points
    squared = (to_light * to_light).sum(axis=0)
    lambert = np.maximum((normals * to_light).sum(axis=0), 0.0) / np.sqrt(squared)
    direct = 1.1 * lambert / (1.0 + squared / 9.0) * np.where(find_shadows(scene, points), 0.25, 1.0)
    # Surfaces that face up are brighter: an approximation of the light that walls and ceiling reflect.
    ambient = 0.38 - 0.1 * normals[1]
    return colors * (np.maximum(ambient + direct, emission)), normals


def expose_image(colors: np.ndarray, seed: int) -> np.ndarray:
    """Converts light `(3, H, W)` to uint8 `(H, W, 3)` with white balance, exposure, gamma and sensor noise."""
    rng = np.random.default_rng([seed, 1])
    gain = rng.uniform(0.85, 1.25) * rng.uniform(0.92, 1.08, size=(3, 1, 1))
    sigma = rng.uniform(0.005, 0.025)
    image = (colors * gain) ** 0.8 + sigma * rng.standard_normal(colors.shape)
    return np.round(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8).transpose(1, 2, 0)


def find_salient(semseg: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Marks the salient object: uint8 `(H, W)`, 1 on it and 0 elsewhere.

    It is the person if the person covers `MIN_SALIENT_SHARE` of the image. Otherwise it is the free-standing object with
    most pixels, weighted by exp(-2 r^2) at r half diagonals from the center. The first one wins a tie.
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
    """Renders one random room with its labels.

    Args:
        seed: Seed of the scene; the same seed shows the same scene at every size.
        height: Height of the image.
        width: Width of the image. It spans the field of view, so a higher image shows more above and below.

    Returns:
        "image" uint8 `(height, width, 3)`; "semseg", "parsing" and "saliency" uint8 ids `(height, width)`; "depth" float32
        `(height, width)`, metres along the optical axis; "normal" float32 `(3, height, width)`, unit vectors that point to
        the camera, x right, y down, z forward; "boundary" float32 `(height, width)`, 0 or 1.
    """
    scene = build_scene(seed)
    rays = camera_rays(scene.camera, height, width)
    depth, owner = cast_rays(scene, rays)
    points = scene.camera.origin[:, None] + rays.reshape(3, -1) * depth.ravel()
    colors, normals = shade(scene, points, owner.ravel())
    semseg = np.array([primitive.label for primitive in scene.primitives], dtype=np.uint8)[owner]
    parsing = np.array([primitive.part for primitive in scene.primitives], dtype=np.uint8)[owner]
    instances = np.array([primitive.instance for primitive in scene.primitives])[owner]
    return {
        "image": expose_image(colors.reshape(3, height, width), seed),
        "semseg": semseg,
        "depth": depth.astype(np.float32),
        "normal": (scene.camera.rotation.T @ normals).reshape(3, height, width).astype(np.float32),
        "boundary": find_boundaries(instances, np.ones(instances.shape, dtype=bool)).astype(np.float32),
        "parsing": parsing,
        "saliency": find_salient(semseg, instances),
    }
