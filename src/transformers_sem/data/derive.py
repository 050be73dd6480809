"""Labels that are computed where a dataset lacks the files: surface normals from depth, boundaries from a label map.

Axes of normals: x right, y down, z forward. Normals are unit vectors that point to the camera, so a wall straight ahead has
the normal (0, 0, -1); the NYU labels of other papers use the same sign. Letters in shapes: H height, W width, N pixels,
T taps.
"""

from dataclasses import dataclass, replace

import numpy as np
import scipy.ndimage
from numpy.lib.stride_tricks import sliding_window_view

from ..evaluation.boundary import thin


# Offsets of the taps of a window in both directions, in pixels: 9 x 9 taps over 25 x 25 pixels. Kinect rounds depth, to
# 2.6 cm at 3 m, and a window must contain several such steps. On real frames that are rounded to 3.9 cm, the median
# difference to normals fitted before the rounding is 4.2 degrees; with 17 pixels it is 7.3, and 33 pixels blur small objects.
WINDOW_TAPS = np.arange(-12, 13, 3)
# A tap is on the surface of the pixel if their inverse depths differ by less than this share. The share must exceed the
# noise (1 % at 7 m); otherwise one side of its distribution is cut off, and 0.03 doubles the median error. A share of 0.08
# includes steps of 24 cm at 3 m.
MAX_DIFFERENCE = 0.05
# A window is valid with this share of its taps. A window at a corner of the image has 25 of 81. With 21 taps they cannot be
# all on one line or on two rows, so the plane is always determined.
MIN_SUPPORT = 0.25
# A window is valid with a root mean squared residual up to this share of the inverse depth: Kinect noise at 8 m. Unrelated
# values that pass MAX_DIFFERENCE have 0.014 to 0.029.
MAX_RESIDUAL = 0.012
# Offsets of the windows whose planes are averaged, in both directions and in pixels. All of them contain the pixel. Their
# step differs from that of the taps, so that they use pixels between the taps of each other.
VOTE_TAPS = np.arange(-8, 9, 4)
# Residuals below this share of the inverse depth are noise and do not rank windows: steps of 4 cm at 2 m.
NOISE = 0.006
# A pixel has no normal if the mean of the unit normals of its windows is shorter, because they contradict each other: about
# 18 degrees around the mean. In rendered scenes the median error of the normals that this drops is 23 degrees.
MIN_AGREEMENT = 0.95
# Number of rows that are fitted at once, so that the taps of all their windows fit into the cache.
BLOCK_ROWS = 8

TAP_ROWS, TAP_COLUMNS = (grid.ravel() for grid in np.meshgrid(WINDOW_TAPS, WINDOW_TAPS, indexing="ij"))
# Rows 1, x and y of the least squares, (3, T), and their products 1, x, y, x x, x y and y y, (6, T).
DESIGN = np.stack([np.ones_like(TAP_ROWS), TAP_COLUMNS, TAP_ROWS]).astype(np.float32)
PRODUCTS = np.stack([DESIGN[first] * DESIGN[second] for first, second in zip(*np.triu_indices(3), strict=True)])


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera in pixels; the center of the first pixel is (0, 0)."""

    focal_x: float
    focal_y: float
    center_x: float
    center_y: float

    def cropped(self, top: int, left: int) -> "Intrinsics":
        """Returns the camera of the image without the first `top` rows and `left` columns."""
        return replace(self, center_x=self.center_x - left, center_y=self.center_y - top)


@dataclass(frozen=True)
class Planes:
    """The plane of the window of each pixel, relative to the inverse depth 1 / Z of the pixel.

    At (x, y) pixels from the pixel, the inverse depth is 1 / Z times 1 + offset + slope_x x + slope_y y.

    Args:
        offset: Of the plane, `(H, W)`.
        slope_x: Along x, `(H, W)`.
        slope_y: Along y, `(H, W)`.
        mean_square: Mean of the squared residuals, `(H, W)`.
        valid: Whether the window is valid, bool `(H, W)`.
    """

    offset: np.ndarray
    slope_x: np.ndarray
    slope_y: np.ndarray
    mean_square: np.ndarray
    valid: np.ndarray


def normals_from_depth(depth: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """Computes surface normals from depth.

    1 / Z is linear in pixel coordinates on a plane, and the noise of disparity sensors such as Kinect is uniform in 1 / Z.
    A plane is fitted to 1 / Z by least squares in a window around each pixel, without the taps beyond a depth step. The
    planes of neighboring windows are averaged with larger weights for better fits, as in weighted guided filtering. Near
    a crease, the windows that do not cross it fit best.

    Depth that is rounded to steps wider than a window gives a staircase of flat and steep normals.

    Args:
        depth: Metres along the optical axis `(H, W)`; 0 and NaN are unknown.
        intrinsics: The camera.

    Returns:
        Unit vectors that point to the camera, float32 `(3, H, W)`; NaN where the depth is unknown or contradictory.

    Raises:
        ValueError: If depth has another number of axes, or negative or infinite values.
    """
    inverse = invert(depth)
    planes = fit_planes(inverse)
    return average_normals(inverse, planes, plane_normals(planes, intrinsics))


def invert(depth: np.ndarray) -> np.ndarray:
    """Converts depth `(H, W)` to inverse depth, float32. Unknown depth becomes 0, which is near no other value."""
    if depth.ndim != 2:
        raise ValueError(
            f"Depth must be (height, width); got the shape {depth.shape}. Pass one map, without channels."
        )
    if (depth < 0).any() or np.isinf(depth).any():
        raise ValueError(
            f"Depth must be metres >= 0, with 0 or NaN where unknown; got {np.nanmin(depth)} to {np.nanmax(depth)}. "
            "Replace negative and infinite values by NaN."
        )
    known = depth > 0
    return np.where(known, 1.0 / np.where(known, depth, 1.0), 0.0).astype(np.float32)


def fit_planes(inverse: np.ndarray) -> Planes:
    """Fits a plane to the inverse depth `(H, W)` in the window of each pixel."""
    reach, step = WINDOW_TAPS[-1], WINDOW_TAPS[1] - WINDOW_TAPS[0]
    windows = sliding_window_view(np.pad(inverse, reach), (2 * reach + 1, 2 * reach + 1))[:, :, ::step, ::step]
    # Unknown centers become infinite: no tap is near them, and there is no division by 0.
    centers = np.where(inverse > 0, inverse, np.inf)
    blocks = [slice(start, start + BLOCK_ROWS) for start in range(0, len(inverse), BLOCK_ROWS)]
    fits = [fit_rows(windows[rows], centers[rows]) for rows in blocks]
    return Planes(*(np.concatenate(maps) for maps in zip(*fits, strict=True)))


def fit_rows(windows: np.ndarray, centers: np.ndarray) -> list[np.ndarray]:
    """Fits the planes of some rows.

    Args:
        windows: Inverse depth of the taps, `(rows, W, taps, taps)`.
        centers: Inverse depth of the pixels, `(rows, W)`.

    Returns:
        The fields of `Planes`, each `(rows, W)`.
    """
    differences = windows.transpose(2, 3, 0, 1).reshape(-1, centers.size) / centers.ravel() - 1.0  # (T, N)
    weights = (np.abs(differences) < MAX_DIFFERENCE).astype(np.float32)
    weighted = weights * differences
    squares = np.einsum("tn,tn->n", weighted, differences)
    fields = solve(PRODUCTS @ weights, DESIGN @ weighted, squares)
    return [field.reshape(centers.shape) for field in fields]


def solve(moments: np.ndarray, products: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, ...]:
    """Solves the least squares of N windows.

    Args:
        moments: Sums of 1, x, y, x x, x y and y y over the taps, `(6, N)`.
        products: Sums of 1, x and y times the difference to the pixel, `(3, N)`.
        squares: Sum of the squared differences, `(N,)`.

    Returns:
        The fields of `Planes`, each `(N,)`.
    """
    support = np.maximum(moments[0], 1.0)
    mean_x, mean_y, mean = moments[1] / support, moments[2] / support, products[0] / support
    spread_xx = moments[3] / support - mean_x * mean_x
    spread_xy = moments[4] / support - mean_x * mean_y
    spread_yy = moments[5] / support - mean_y * mean_y
    along_x, along_y = products[1] / support - mean_x * mean, products[2] / support - mean_y * mean
    solvable = support >= MIN_SUPPORT * len(TAP_ROWS)
    determinant = np.where(solvable, spread_xx * spread_yy - spread_xy * spread_xy, np.inf)
    slope_x = (spread_yy * along_x - spread_xy * along_y) / determinant
    slope_y = (spread_xx * along_y - spread_xy * along_x) / determinant
    offset = mean - slope_x * mean_x - slope_y * mean_y
    mean_square = squares / support - mean * mean - slope_x * along_x - slope_y * along_y
    return offset, slope_x, slope_y, mean_square, solvable & (mean_square <= MAX_RESIDUAL**2)


def plane_normals(planes: Planes, intrinsics: Intrinsics) -> np.ndarray:
    """Returns the unit normals `(3, H, W)` of planes that point to the camera.

    A plane 1 / Z = a X / Z + b Y / Z + c has the normal (a, b, c), which is negated because it points away from the camera.
    """
    height, width = planes.offset.shape
    x = np.arange(width, dtype=np.float32) - np.float32(intrinsics.center_x)
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32(intrinsics.center_y)
    at_center = 1.0 + planes.offset - planes.slope_x * x - planes.slope_y * y
    focal_x, focal_y = np.float32(intrinsics.focal_x), np.float32(intrinsics.focal_y)
    normals = -np.stack([planes.slope_x * focal_x, planes.slope_y * focal_y, at_center])
    return normals / np.linalg.norm(normals, axis=0)


def average_normals(inverse: np.ndarray, planes: Planes, normals: np.ndarray) -> np.ndarray:
    """Averages the normals of the windows around each pixel.

    Args:
        inverse: Inverse depth, `(H, W)`; 0 is unknown.
        planes: The planes of all windows.
        normals: Their normals, `(3, H, W)`.

    Returns:
        Unit normals, float32 `(3, H, W)`; NaN where no window is valid, or the normals contradict each other.
    """
    height, width = inverse.shape
    reach = VOTE_TAPS[-1]
    trust = planes.valid * (NOISE**2 / (NOISE**2 + planes.mean_square)) ** 3
    at_window = [inverse * (1.0 + planes.offset), inverse * planes.slope_x, inverse * planes.slope_y]
    maps = np.pad(np.stack([*normals, *at_window, trust]), [(0, 0), (reach, reach), (reach, reach)])
    centers = np.where(inverse > 0, inverse, np.inf)
    total, sums = np.zeros_like(inverse), np.zeros_like(normals)
    for down in VOTE_TAPS:
        for right in VOTE_TAPS:
            seen = maps[:, reach + down : reach + down + height, reach + right : reach + right + width]
            # A window has a weight only if its plane passes through the pixel.
            predicted = seen[3] - right * seen[4] - down * seen[5]
            weights = seen[6] * (np.abs(predicted / centers - 1.0) < MAX_DIFFERENCE)
            total += weights
            sums += weights * seen[:3]
    length = np.linalg.norm(sums, axis=0)
    agreed = (length >= MIN_AGREEMENT * total) & (total > 0)
    return np.where(agreed, sums / np.where(agreed, length, 1.0), np.float32(np.nan))


def boundaries_from_labels(label_map: np.ndarray) -> np.ndarray:
    """Computes the boundaries that models are trained on, uint8 `(H, W)`: 255 on the thinned Laplacian, else 0."""
    laplacian = scipy.ndimage.laplace(label_map.astype(np.int32), mode="mirror")
    return np.where(thin((laplacian != 0).astype(np.uint64)), 255, 0).astype(np.uint8)


def fill_unlabeled(label_map: np.ndarray, unlabeled: int) -> np.ndarray:
    """Gives each unlabeled pixel of a map `(H, W)` the label of the nearest labeled pixel.

    NYU leaves an unlabeled strip of a few pixels between most objects. Of the boundaries of the filled maps, 98 % are
    within 2 pixels of the published edges, and they find 97 % of those. Without filling, the strips have an edge on each
    side, and it is 56 % and 77 %.

    Returns:
        A map of the same type; the same map if no pixel is labeled.
    """
    gaps = label_map == unlabeled
    if gaps.all():  # SciPy does not define this case
        return label_map
    nearest = scipy.ndimage.distance_transform_edt(gaps, return_distances=False, return_indices=True)
    return label_map[tuple(nearest)]
