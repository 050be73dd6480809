"""Point clouds from depth maps, and their PLY files.

Camera axes are x right, y down, z forward, in metres. The center of pixel (row, column) is at (column, row) + 0.5, as in the
rendered scenes.
"""

from pathlib import Path

import numpy as np


# degrees; images rarely state theirs. Main cameras of phones have 65 to 70, a Kinect has 57.
FIELD_OF_VIEW = 60.0


def to_points(depth: np.ndarray, field_of_view: float = FIELD_OF_VIEW) -> np.ndarray:
    """Projects pixels into space with a pinhole camera whose optical axis passes through the center of the image.

    Args:
        depth (`np.ndarray`): Metres along the optical axis, `(height, width)`.
        field_of_view (`float`): Horizontal field of view in degrees.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`, float32, in camera axes, metres.

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
    """Writes a colored point cloud as binary PLY, with y up and z towards the viewer, as 3-D viewers expect.

    Args:
        path (`Path`): The `.ply` file.
        points (`np.ndarray`): `(num_points, 3)` in camera axes, metres.
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
