"""Rows become batches, in a `DataLoader` over a dataset of `datasets` too."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor, collate_rows
from transformers_sem.data.transforms import row_to_tensors

from ..samples import random_labels
from ..tiny import tiny_config


SIZE = {"height": 32, "width": 48}


def assert_same(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def make_dataset(processor):
    """Three images; the second has no depth."""
    rng = np.random.default_rng(0)
    columns = {
        "image": [Image.fromarray(rng.integers(0, 256, (32, 48, 3), np.uint8)) for _ in range(3)],
        "semseg": [Image.fromarray(rng.integers(0, 40, (32, 48), np.uint8)) for _ in range(3)],
        "depth": [Image.fromarray(rng.uniform(1, 9, (32, 48)).astype(np.float32)) for _ in range(3)],
    }
    columns["depth"][1] = None
    types = {"image": datasets.Image(), "semseg": datasets.Image(), "depth": datasets.Image(mode="F")}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(types))
    tasks = ("semseg", "depth")
    return rows.with_transform(
        lambda rows: processor(rows["image"], maps={task: rows[task] for task in tasks}, return_tensors="pt")
    )


def test_processor_output_is_split_by_row():
    rows = make_dataset(SEMImageProcessor(size=SIZE))
    batch = rows[:]
    assert batch["labels"]["depth"].shape == (3, 1, 32, 48) and batch["labels"]["depth"][1].isnan().all()
    for index in range(3):
        assert list(rows[index]["labels"]) == ["semseg", "depth"]
        assert_same(rows[index]["pixel_values"], batch["pixel_values"][index])
        assert_same(rows[index]["labels"]["depth"], batch["labels"]["depth"][index])


def test_a_loader_gives_what_the_model_takes():
    rows = make_dataset(SEMImageProcessor(size=SIZE))
    model = SEMForMultiTaskDensePrediction(tiny_config()).eval()
    for collate in (None, collate_rows):
        (batch,) = DataLoader(rows, batch_size=3, collate_fn=collate)
        losses = model(**batch).losses
        assert list(losses) == ["semseg", "depth"] and all(loss.isfinite() for loss in losses.values())
    assert_same(model(**rows[:]).losses, losses)


def test_rows_may_have_labels_of_different_tasks():
    labels = {task: random_labels(task, 1, (4, 6))[0] for task in ("semseg", "normal", "boundary")}
    rows = [{"pixel_values": torch.rand(3, 4, 6), "labels": {task: labels[task]}} for task in labels]
    batch = collate_rows([*rows, {"pixel_values": torch.rand(3, 4, 6), "id": "x"}])
    assert batch["pixel_values"].shape == (4, 3, 4, 6) and list(batch["labels"]) == list(labels)
    for index, task in enumerate(labels):
        assert_same(batch["labels"][task][index], labels[task])
    assert (batch["labels"]["semseg"][1:] == 255).all() and batch["labels"]["semseg"].dtype == torch.int64
    assert batch["labels"]["normal"][[0, 2, 3]].isnan().all() and (batch["labels"]["boundary"][:2] == 255).all()
    assert list(collate_rows([{"pixel_values": torch.rand(3, 4, 6)}])) == ["pixel_values"]


def test_images_of_several_sizes_are_refused():
    with pytest.raises(ValueError, match=r"one size; got \(height, width\) \[\(4, 6\), \(5, 6\)\]"):
        collate_rows([{"pixel_values": torch.rand(3, height, 6)} for height in (4, 5)])


def test_images_of_rows_are_read_as_the_image_processor_reads_them():
    image = Image.fromarray(np.full((4, 5), 40_000, np.uint16))
    pixels, _ = row_to_tensors({"image": image}, [])
    assert_same(pixels, SEMImageProcessor().read_image(image))
    assert pixels.unique().tolist() == [156]
