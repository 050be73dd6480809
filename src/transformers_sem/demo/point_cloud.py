"""From a depth map to points in space, and to a file that every 3-D viewer opens.

Camera axes: x right, y down, z forward, metres; pixel (row, column) is seen at (column, row) + 0.5, as in the scenes.
"""

import json
import struct
from pathlib import Path

import numpy as np


# No photo says through what lens it was taken. This is between a phone's main camera (65 to 70) and a Kinect (57).
FIELD_OF_VIEW = 60.0
MAX_POINTS = 40_000


def pixel_step(height: int, width: int, max_points: int = MAX_POINTS) -> int:
    """The smallest distance in pixels at which the rows and columns of a grid give at most `max_points` points."""
    step = max(1, int((height * width / max_points) ** 0.5))
    while -(-height // step) * -(-width // step) > max_points:
        step += 1
    return step


def to_points(depth: np.ndarray, field_of_view: float = FIELD_OF_VIEW) -> np.ndarray:
    """Places pixels in space, as a pinhole camera would see them.

    Args:
        depth (`np.ndarray`): Metres along the optical axis, `(height, width)`.
        field_of_view (`float`): Angle in degrees that the width of the picture spans.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`, float32: x right, y down, z forward, metres.

    Raises:
        ValueError: If the field of view is not between 0 and 180 degrees.
    """
    if not 0 < field_of_view < 180:
        raise ValueError(f"A field of view lies between 0 and 180 degrees; got {field_of_view}. Phones have about 65.")
    height, width = depth.shape
    focal = width / 2 / np.tan(np.radians(field_of_view) / 2)
    x = (np.arange(width) + 0.5 - width / 2) / focal
    y = (np.arange(height) + 0.5 - height / 2) / focal
    return np.stack([depth * x, depth * y[:, None], depth], axis=-1).astype(np.float32)


def write_glb(path: Path, points: np.ndarray, colors: np.ndarray) -> None:
    """Writes coloured points as binary glTF 2.0 (https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html, 4.4).

    Args:
        path (`Path`): Where to; `.glb`.
        points (`np.ndarray`): `(num_points, 3)`, camera axes. glTF's are y up and z towards the viewer, so y and z turn.
        colors (`np.ndarray`): uint8 `(num_points, 3)`, as a screen shows them.
    """
    positions = np.ascontiguousarray(points * np.array([1, -1, -1]), dtype="<f4")
    opaque = np.concatenate([to_linear(colors), np.full((len(colors), 1), 65535, "<u2")], axis=1)
    binary = positions.tobytes() + opaque.tobytes()
    count, split = len(points), positions.nbytes
    header = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "materials": [{"extensions": {"KHR_materials_unlit": {}}}],
        "extensionsUsed": ["KHR_materials_unlit"],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": 0, "material": 0}]}],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": 5126,
                "count": count,
                "type": "VEC3",
                "min": positions.min(axis=0).tolist(),
                "max": positions.max(axis=0).tolist(),
            },
            {"bufferView": 1, "componentType": 5123, "count": count, "type": "VEC4", "normalized": True},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": split},
            {"buffer": 0, "byteOffset": split, "byteLength": len(binary) - split},
        ],
        "buffers": [{"byteLength": len(binary)}],
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    total = 12 + 8 + len(text) + 8 + len(binary)
    path.write_bytes(
        struct.pack("<4sII", b"glTF", 2, total)
        + struct.pack("<I4s", len(text), b"JSON")
        + text
        + struct.pack("<I4s", len(binary), b"BIN\0")
        + binary
    )


def to_linear(colors: np.ndarray) -> np.ndarray:
    """sRGB levels as linear ones, uint16: glTF's vertex colours are light, not screen values."""
    values = colors / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.round(linear * 65535).astype("<u2")
