"""Images of the model's internal states, as in Fig. 1 and 3 of the paper, for any image."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..image_processing_sem import SEMImageProcessor, predict_map
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..task_kinds import colorize_ids
from ..tasks import get_task
from .colors import colorize_features, colorize_map
from .panels import FONT_SIZE, draw_panel, to_channels_last


# one per encoder stage, from shallow to deep
STAGE_COLORS = ("#ffd92f", "#f46d43", "#d6308f", "#3e6fe0")


@torch.no_grad()
def inside_panel(
    model: SEMForMultiTaskDensePrediction, image_processor: SEMImageProcessor, image: Tensor
) -> Image.Image:
    """Draws the predictions of each task together with the internal states behind them.

    Args:
        model (`SEMForMultiTaskDensePrediction`): The model, in evaluation mode.
        image_processor (`SEMImageProcessor`): Image processor of the model.
        image (`Tensor`): uint8 `(3, height, width)`.

    Returns:
        `PIL.Image.Image`: a panel with one row per task. The columns are the prediction; the features before the head; the
        deformed points, colored by the encoder stage that they belong to (stage 1 is the shallowest that the intra-task
        module uses); the same points, colored by the stage with the largest weight there, with an area proportional to
        that weight; and for each decoder stage the basis with the largest responsibility at each position. Everything is
        drawn over the image as the model receives it, including padding.
    """
    pixel_values = image_processor(image, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    outputs = model(pixel_values, output_sem_states=True)
    size = tuple(pixel_values.shape[-2:])
    maps = {task: predict_map(get_task(task).kind, logits[0], size) for task, logits in outputs.logits.items()}
    model_input = _undo_normalization(pixel_values[0], image_processor)
    states, columns, rows = outputs.sem_states, ["image", "prediction"], []
    columns += ["features", *(["deformed points", "stage weights"] if states.points else [])]
    columns += [f"bases, stage {stage}" for stage in range(1, len(states.responsibilities) + 1)]
    for task, prediction in maps.items():
        row = [model_input, colorize_map(task, prediction), colorize_features(states.features[task][0])]
        if states.points:
            row += draw_hierarchy(model_input, states.points[task], states.stage_weights[task])
        row += [draw_assignment(model_input, by_task[task][0]) for by_task in states.responsibilities]
        rows.append(row)
    panel = draw_panel(rows, list(maps), columns)
    return draw_legend(panel, model.config.num_intra_task_stages) if states.points else panel


def draw_hierarchy(image: np.ndarray, points: tuple[Tensor, ...], stage_weights: Tensor) -> list[np.ndarray]:
    """Draws the deformed points of one task twice: colored by their own stage, and by the stage with the largest weight.

    Args:
        image (`np.ndarray`): uint8 `(height, width, 3)`.
        points (`tuple[Tensor, ...]`): For each stage `(1, num_points, 2)` as (y, x) in [-1, 1].
        stage_weights (`Tensor`): `(1, num_points of all stages, num_stages)`.

    Returns:
        `list[np.ndarray]`: two images as [`draw_points`] returns them.
    """
    all_points = torch.cat([stage_points[0] for stage_points in points])
    own_stages = torch.repeat_interleave(
        torch.arange(len(points)), torch.tensor([stage_points.shape[1] for stage_points in points])
    )
    weights, heaviest_stages = stage_weights[0].max(dim=-1)
    return [
        draw_points(image, all_points, own_stages, torch.ones(len(all_points))),
        draw_points(image, all_points, heaviest_stages, weights),
    ]


def _undo_normalization(pixel_values: Tensor, image_processor: SEMImageProcessor) -> np.ndarray:
    """Converts pixel values `(3, height, width)` to an image, uint8 `(height, width, 3)`."""
    pixels = pixel_values.float().cpu()
    if image_processor.do_normalize:
        mean, std = (
            torch.tensor(values).view(3, 1, 1) for values in (image_processor.image_mean, image_processor.image_std)
        )
        pixels = pixels * std + mean
    return to_channels_last((pixels.clamp(0, 1) * 255).round().byte())


def draw_points(image: np.ndarray, points: Tensor, stages: Tensor, areas: Tensor) -> np.ndarray:
    """Draws points over the gray image, in the colors of encoder stages.

    Args:
        image (`np.ndarray`): uint8 `(height, width, 3)`.
        points (`Tensor`): `(num_points, 2)` as (y, x), where -1 and 1 are the edges of the image; points outside are skipped.
        stages (`Tensor`): int `(num_points,)`, the stage that gives each point its color, 0 is the shallowest.
        areas (`Tensor`): `(num_points,)` in [0, 1], relative area of each dot; at 1 it nearly touches its neighbors.

    Returns:
        `np.ndarray`: uint8 `(4 * height, 4 * width, 3)`.
    """
    # enlarged, so that small dots are round and placed exactly
    canvas = Image.fromarray(image).convert("L").convert("RGB").resize((4 * image.shape[1], 4 * image.shape[0]))
    draw, max_radius = ImageDraw.Draw(canvas), 0.4 * (canvas.width * canvas.height / len(points)) ** 0.5
    for (y, x), stage, area in zip(points.tolist(), stages.tolist(), areas.tolist(), strict=True):
        if max(abs(y), abs(x)) <= 1:
            center = ((x + 1) / 2 * canvas.width, (y + 1) / 2 * canvas.height)
            color = STAGE_COLORS[stage % len(STAGE_COLORS)]
            draw.circle(center, radius=max_radius * area**0.5, fill=color, outline="black", width=2)
    return np.asarray(canvas)


def draw_assignment(image: np.ndarray, responsibilities: Tensor) -> np.ndarray:
    """Colors each position by the basis with the largest responsibility, blended with the gray image.

    Args:
        image (`np.ndarray`): uint8 `(height, width, 3)`.
        responsibilities (`Tensor`): `(num_bases, h, w)` over the whole image.

    Returns:
        `np.ndarray`: uint8 `(height, width, 3)`.
    """
    background = Image.fromarray(image)
    # from 1 on, since color 0 is the light gray of backgrounds
    colors = Image.fromarray(colorize_ids((responsibilities.argmax(dim=0) % 253 + 1).cpu().numpy()))
    colors = colors.resize(background.size, Image.Resampling.NEAREST)
    return np.asarray(Image.blend(colors, background.convert("L").convert("RGB"), 0.35))


def draw_legend(panel: Image.Image, num_stages: int) -> Image.Image:
    """Adds a line below a panel with the color of each encoder stage."""
    font, height = ImageFont.load_default(size=FONT_SIZE), 32
    canvas = Image.new("RGB", (panel.width, panel.height + height), "white")
    canvas.paste(panel)
    draw, middle, left = ImageDraw.Draw(canvas), panel.height + height / 2, 8
    for stage in range(num_stages):
        color = STAGE_COLORS[stage % len(STAGE_COLORS)]
        draw.circle((left + 8, middle), radius=8, fill=color, outline="black")
        title = f"encoder stage {stage + 1}"
        draw.text((left + 22, middle), title, "black", font, anchor="lm")
        left += 22 + draw.textlength(title, font) + 24
    return canvas
