"""From a depth map to coloured points in space: for the page, and as a file that every 3-D viewer opens.

Camera axes: x right, y down, z forward, metres; pixel (row, column) is seen at (column, row) + 0.5, as in the scenes.
"""

from pathlib import Path

import numpy as np


# No photo says through what lens it was taken. This is between the main camera of phones (65 to 70) and a Kinect (57).
FIELD_OF_VIEW = 60.0


def to_points(depth: np.ndarray, field_of_view: float = FIELD_OF_VIEW) -> np.ndarray:
    """Places pixels in space, as a pinhole camera would see them whose optical axis meets the centre of the picture.

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


def write_ply(path: Path, points: np.ndarray, colors: np.ndarray) -> None:
    """Writes coloured points as binary PLY, y up and z towards the viewer as viewers expect it.

    Args:
        path (`Path`): Where to; `.ply`.
        points (`np.ndarray`): `(num_points, 3)`, camera axes, metres.
        colors (`np.ndarray`): uint8 `(num_points, 3)`.
    """
    axes, channels = ("x", "y", "z"), ("red", "green", "blue")
    vertices = np.empty(len(points), dtype=[*((axis, "<f4") for axis in axes), *((name, "u1") for name in channels)])
    for index, (axis, sign) in enumerate(zip(axes, (1, -1, -1), strict=True)):
        vertices[axis] = sign * points[:, index]
    for index, name in enumerate(channels):
        vertices[name] = colors[:, index]
    properties = [*(f"property float {axis}" for axis in axes), *(f"property uchar {name}" for name in channels)]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}", *properties, "end_header", ""]
    path.write_bytes("\n".join(header).encode() + vertices.tobytes())
