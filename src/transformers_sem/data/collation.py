"""Rows of single images as batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..tasks import invalid_labels


def collate_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor | dict[str, Tensor]]:
    """Stacks rows to a batch for the model, as `data_collator` of transformers' `Trainer` or `collate_fn` of a `DataLoader`.

    The rows may have labels of different tasks. A label that a row lacks is invalid in every pixel.

    Args:
        rows: "pixel_values" `(3, height, width)` and "labels", `{task: label}`, of each image, all of one size. Other columns
            are left out.

    Returns:
        "pixel_values" `(batch_size, 3, height, width)` and, where a row has any, "labels", `{task: labels}`.

    Raises:
        ValueError: If the images have several sizes.
    """
    sizes = {tuple(row["pixel_values"].shape[-2:]) for row in rows}
    if len(sizes) != 1:
        raise ValueError(
            f"Images of a batch have one size; got (height, width) {sorted(sizes)}. Set `do_resize=True` or `pad_size` in the "
            "image processor."
        )
    size = sizes.pop()
    row_labels = [row.get("labels") or {} for row in rows]
    labels = {
        task: torch.stack(
            [torch.as_tensor(labels.get(task, invalid_labels(task, 1, size)[0])) for labels in row_labels]
        )
        for task in dict.fromkeys(task for labels in row_labels for task in labels)
    }
    batch = {"pixel_values": torch.stack([torch.as_tensor(row["pixel_values"]) for row in rows])}
    return {**batch, "labels": labels} if labels else batch


__all__ = ["collate_rows"]
