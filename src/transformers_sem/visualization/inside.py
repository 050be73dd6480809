"""Pictures of what goes on inside the model: the paper's Fig. 1 and 3 for any photo."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from transformers_sem.task_kinds import colorize_ids

from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from .colors import colorize_features, colorize_pair
from .panels import draw_panel


# Of the encoder stages, from shallow to deep
STAGE_COLORS = ("#ffd92f", "#f46d43", "#d6308f", "#3e6fe0")


@torch.no_grad()
def inside_panel(
    model: SEMForMultiTaskDensePrediction, image_processor: SEMImageProcessor, image: Tensor
) -> Image.Image:
    """Draws, for each task, what it predicts and how it comes to it.

    Args:
        model (`SEMForMultiTaskDensePrediction`): In evaluation mode.
        image_processor (`SEMImageProcessor`): Of the model.
        image (`Tensor`): uint8 `(3, height, width)`.

    Returns:
        `PIL.Image.Image`: a row for each task; columns for the prediction, the features it is made of, the deformed points in
        the colours of the encoder stages that placed them (the shallowest that the intra-task module sees is 1),
        the same points in the colour of the stage that weighs most there, the larger the more it does, and for each decoder
        stage which basis is responsible for which place. All of the image as the model gets it, padding included.
    """
    pixel_values = image_processor(image, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    outputs = model(pixel_values, output_sem_states=True)
    (maps,) = image_processor.post_process_dense_prediction(outputs, target_sizes=[tuple(pixel_values.shape[-2:])])
    photo = _as_picture(pixel_values[0], image_processor)
    states, columns, rows = outputs.sem_states, ["image", "prediction"], []
    columns += ["features", *(["deformed points", "stage weights"] if states.points else [])]
    columns += [f"bases, stage {stage}" for stage in range(1, len(states.responsibilities) + 1)]
    for task, prediction in maps.items():
        row = [photo, colorize_pair(task, prediction, None)[0], colorize_features(_to_numpy(states.features[task]))]
        if states.points:
            row += draw_hierarchy(photo, states.points[task], states.stage_weights[task])
        row += [draw_assignment(photo, _to_numpy(by_task[task])) for by_task in states.responsibilities]
        rows.append(row)
    panel = draw_panel(rows, list(maps), columns)
    return draw_legend(panel, model.config.num_intra_task_stages) if states.points else panel


def draw_hierarchy(photo: np.ndarray, points: tuple[Tensor, ...], stage_weights: Tensor) -> list[np.ndarray]:
    """Two pictures of the deformed points of one task: which stage placed each, and which stage weighs most there."""
    placed_by = np.repeat(np.arange(len(points)), [stage_points.shape[1] for stage_points in points])
    weights, all_points = _to_numpy(stage_weights), np.concatenate([_to_numpy(part) for part in points])
    return [
        draw_points(photo, all_points, placed_by, np.ones(len(all_points))),
        draw_points(photo, all_points, weights.argmax(axis=1), weights.max(axis=1)),
    ]


def _as_picture(pixel_values: Tensor, image_processor: SEMImageProcessor) -> np.ndarray:
    """Undoes the normalisation, uint8 `(height, width, 3)`."""
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (image_processor.image_mean, image_processor.image_std)
    )
    pixels = pixel_values.float().cpu()
    pixels = pixels * std + mean if image_processor.do_normalize else pixels
    return (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def _to_numpy(values: Tensor) -> np.ndarray:
    """The only image of a batch."""
    return values[0].float().cpu().numpy()


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
