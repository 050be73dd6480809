"""Colours and panels: for people only, at the very end. Nothing here feeds a number."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont


INVALID_COLOR = (60, 60, 60)
# Of the encoder stages, from shallow to deep
STAGE_COLORS = ("#ffd92f", "#f46d43", "#d6308f", "#3e6fe0")


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


def colorize_features(feature_map: np.ndarray) -> np.ndarray:
    """Colours the length of feature vectors `(channels, height, width)`, short dark and long bright."""
    return colorize_range(
        np.linalg.norm(feature_map - feature_map.mean(axis=(1, 2), keepdims=True), axis=0), "viridis"
    )


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


def draw_points(image: np.ndarray, points: np.ndarray, stages: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Draws points over the image, in the colours of encoder stages.

    Args:
        image (`np.ndarray`): uint8 `(height, width, 3)`.
        points (`np.ndarray`): `(num_points, 2)` as (y, x), the edges of the image at -1 and 1; points beyond it are left out.
        stages (`np.ndarray`): The stage that each point is coloured by, int `(num_points,)`, 0 the shallowest.
        shares (`np.ndarray`): Area of each dot in [0, 1], `(num_points,)`; a dot of 1 nearly touches its neighbours.

    Returns:
        `np.ndarray`: uint8 `(height, width, 3)`.
    """
    # four pixels for one, so that small dots are round and as far apart as they are
    canvas = Image.fromarray(image).convert("L").convert("RGB").resize((4 * image.shape[1], 4 * image.shape[0]))
    draw, largest = ImageDraw.Draw(canvas), 0.4 * (canvas.width * canvas.height / len(points)) ** 0.5
    for (y, x), stage, share in zip(points, stages, shares, strict=True):
        if max(abs(y), abs(x)) <= 1:
            center = ((x + 1) / 2 * canvas.width, (y + 1) / 2 * canvas.height)
            color = STAGE_COLORS[stage % len(STAGE_COLORS)]
            draw.circle(center, radius=largest * float(share) ** 0.5, fill=color, outline="black", width=2)
    return np.asarray(canvas)


def draw_assignment(image: np.ndarray, responsibilities: np.ndarray) -> np.ndarray:
    """Colours each place by the basis that is most responsible for it, with the image shining through.

    Args:
        image (`np.ndarray`): uint8 `(height, width, 3)`.
        responsibilities (`np.ndarray`): `(num_bases, h, w)` over the whole image.

    Returns:
        `np.ndarray`: uint8 `(height, width, 3)`.
    """
    photo = Image.fromarray(image)
    # from 1 on: 0 is light grey, for backgrounds
    colors = Image.fromarray(colorize_ids(responsibilities.argmax(axis=0) % 253 + 1))
    colors = colors.resize(photo.size, Image.Resampling.NEAREST)
    return np.asarray(Image.blend(colors, photo.convert("L").convert("RGB"), 0.35))


def draw_legend(panel: Image.Image, num_stages: int) -> Image.Image:
    """Adds a line below a panel that says which colour is which encoder stage."""
    font, height = ImageFont.load_default(size=16), 32
    labelled = Image.new("RGB", (panel.width, panel.height + height), "white")
    labelled.paste(panel)
    draw, middle, left = ImageDraw.Draw(labelled), panel.height + height / 2, 8
    for stage in range(num_stages):
        color = STAGE_COLORS[stage % len(STAGE_COLORS)]
        draw.circle((left + 8, middle), radius=8, fill=color, outline="black")
        title = f"encoder stage {stage + 1}"
        draw.text((left + 22, middle), title, "black", font, anchor="lm")
        left += 22 + draw.textlength(title, font) + 24
    return labelled


def draw_panel(
    rows: Sequence[Sequence[np.ndarray | None]],
    row_titles: Sequence[str],
    column_titles: Sequence[str],
    cell_width: int = 224,
) -> Image.Image:
    """Draws a labelled grid of pictures.

    Args:
        rows (`Sequence[Sequence[np.ndarray | None]]`): uint8 pictures `(height, width, 3)`; `None` leaves a cell empty.
        row_titles (`Sequence[str]`): One per row.
        column_titles (`Sequence[str]`): One per column.
        cell_width (`int`, *optional*, defaults to 224): Width of a cell in pixels; heights keep the aspect ratio.

    Returns:
        `PIL.Image.Image`: the panel.
    """
    font = ImageFont.load_default(size=16)
    margin, gap, header = 128, 6, 28
    heights = [max(_cell_height(cell, cell_width) for cell in row if cell is not None) for row in rows]
    width = margin + len(column_titles) * (cell_width + gap)
    panel = Image.new("RGB", (width, header + sum(heights) + gap * len(rows)), "white")
    draw = ImageDraw.Draw(panel)
    for column, title in enumerate(column_titles):
        draw.text((margin + column * (cell_width + gap) + cell_width / 2, 5), title, "black", font, anchor="ma")
    top = header
    for row, title, height in zip(rows, row_titles, heights, strict=True):
        draw.text((8, top + height / 2), title, "black", font, anchor="lm")
        for column, cell in enumerate(row):
            if cell is not None:
                size = (cell_width, _cell_height(cell, cell_width))
                picture = Image.fromarray(cell).resize(size, Image.Resampling.LANCZOS)
                panel.paste(picture, (margin + column * (cell_width + gap), top))
        top += height + gap
    return panel


def draw_side_by_side(image: np.ndarray, cells: dict[str, np.ndarray], max_height: int = 720) -> np.ndarray:
    """Draws a picture at the left, and others of the same shape in a grid of the same height at the right.

    Args:
        image (`np.ndarray`): uint8 `(height, width, 3)`.
        cells (`dict[str, np.ndarray]`): `{title: picture}`, uint8 `(height, width, 3)`.
        max_height (`int`, *optional*, defaults to 720): A higher picture is shrunk.

    Returns:
        `np.ndarray`: uint8 of even height and width, as videos need it.
    """
    num_rows = max(1, round(len(cells) ** 0.5))
    num_columns = -(-len(cells) // num_rows)
    shrink = min(1.0, max_height / image.shape[0])
    # an even size of a cell makes every other size even
    height, width = (max(2, 2 * round(edge * shrink / num_rows / 2)) for edge in image.shape[:2])
    canvas = Image.new("RGB", ((num_rows + num_columns) * width, num_rows * height))
    canvas.paste(Image.fromarray(image).resize((num_rows * width, num_rows * height), Image.Resampling.BILINEAR))
    font, draw = ImageFont.load_default(size=16), ImageDraw.Draw(canvas)
    for index, (title, cell) in enumerate(cells.items()):
        corner = ((num_rows + index % num_columns) * width, index // num_columns * height)
        canvas.paste(Image.fromarray(cell).resize((width, height), Image.Resampling.BILINEAR), corner)
        draw.text((corner[0] + 6, corner[1] + 4), title, "white", font, stroke_width=2, stroke_fill="black")
    return np.asarray(canvas)


def _cell_height(cell: np.ndarray, cell_width: int) -> int:
    return max(1, round(cell_width * cell.shape[0] / cell.shape[1]))
