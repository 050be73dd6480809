import json
import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, Features
from PIL import Image

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.data.benchmarks import BENCHMARKS
from transformers_sem.data.row_format import FEATURES, encode_row
from transformers_sem.data.scenes import render_scene
from transformers_sem.training.snapshots import (
    Snapshots,
    cut_grid,
    draw_grid,
    list_snapshots,
    snapshot_step,
    summarize_states,
)
from transformers_sem.visualization.colors import colorize_maps
from transformers_sem.visualization.panels import Prediction

from ..samples import random_labels
from ..tiny import TINY_BACKBONE, tiny_config


SIZE = (32, 64)
WIDTHS = {"semseg": 40, "depth": 1, "normal": 3, "boundary": 1}


@pytest.fixture(scope="module")
def rows():
    return Dataset.from_list(
        [encode_row(render_scene(2 * seed + 1, *SIZE)) for seed in range(5)], features=Features(FEATURES)
    )


@pytest.fixture
def model():
    backbone = {**TINY_BACKBONE, "drop_path_rate": 0.5}
    return SEMForMultiTaskDensePrediction(tiny_config(task_num_labels=dict(WIDTHS), backbone_config=backbone))


@pytest.fixture
def snapshots(rows, tmp_path):
    size = {"height": SIZE[0], "width": SIZE[1]}
    return Snapshots(
        folder=tmp_path / "snapshots",
        image_processor=SEMImageProcessor(size=size, pad_size=size, do_resize=False, do_pad=True),
        rows=rows,
        num_images=3,
        benchmark=BENCHMARKS["scenes"],
        accelerator=Accelerator(cpu=True),
    )


def train(model, look):
    """Trains three steps, calls `look` between them, and returns the weights and all that is random."""
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    model.sem.backbone.encoder.model.stem.eval()  # not all modules are in one mode
    for step in range(1, 4):
        labels = {task: random_labels(task, 2, SIZE) for task in WIDTHS}
        model(torch.randn(2, 3, *SIZE), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        look(model, step)
    modes = [module.training for module in model.modules()]
    return deepcopy(model.state_dict()), modes, torch.get_rng_state(), np.random.get_state()[1], random.getstate()


def test_looking_changes_not_one_bit_of_the_training(model, snapshots):
    plain = train(deepcopy(model), lambda model, step: None)
    watched = train(deepcopy(model), lambda model, step: step == 1 or snapshots.take(model, step))
    assert [name for name, value in plain[0].items() if not torch.equal(value, watched[0][name])] == []
    assert any(name.endswith("initial_bases") for name in plain[0])
    assert plain[1] == watched[1] and len(set(plain[1])) == 2
    assert torch.equal(plain[2], watched[2])
    assert np.array_equal(plain[3], watched[3])
    assert plain[4] == watched[4]
    assert [snapshot_step(path) for path in list_snapshots(snapshots.folder)] == [2, 3]


def test_modes_come_back_after_an_error(model, snapshots):
    model.train()
    snapshots.image_processor = None
    with pytest.raises(TypeError):
        snapshots.take(model, 1)
    assert all(module.training for module in model.modules())


def test_a_snapshot_says_what_the_model_sees(model, snapshots):
    snapshots.take(model, 20)
    assert sorted(path.name for path in snapshots.folder.iterdir()) == ["step_000020.json", "step_000020.png"]
    facts = json.loads((snapshots.folder / "step_000020.json").read_text())
    assert (facts["step"], facts["tasks"]) == (20, list(WIDTHS))
    assert (facts["num_images"], facts["num_pictures"]) == (3, 3)
    assert {"semseg/miou", "depth/rmse", "normal/mean_error", "boundary/odsf"} <= set(facts["scores"])
    # the offset networks start at zero
    assert facts["offsets"] == {task: [pytest.approx(0, abs=1e-4)] * 4 for task in WIDTHS}
    for task, weights in facts["stage_weights"].items():
        assert len(weights) == 4 and sum(weights) == pytest.approx(1), task
    with Image.open(snapshots.folder / "step_000020.png") as grid:
        assert (grid.width, grid.height) == (256 * (1 + len(WIDTHS)), 128 * 2 * 3)


def test_images_are_spread_over_the_rows(snapshots, rows):
    chosen = [rows[index]["image"].tobytes() for index in (0, 2, 4)]
    assert [row["image"].tobytes() for row in snapshots.rows] == chosen


@pytest.mark.parametrize("size", [(32, 64), (40, 50)], ids=str)
def test_offsets_are_pixels_of_the_image(model, size):
    """Every point moves by 0.01, where 2 is the whole height and the whole width of the padded image."""
    for module in model.sem.intra_task.task_modules.values():
        for network in module.attention.offset_networks:
            torch.nn.init.zeros_(network.offset.weight)
            torch.nn.init.constant_(network.offset.bias, np.arctanh(0.01))
    states = model.eval()(torch.randn(1, 3, *size), output_sem_states=True).sem_states
    padded = [-(-edge // model.sem.size_divisor) * model.sem.size_divisor for edge in size]
    offsets = summarize_states(model.sem, states, size)["offsets"]
    assert offsets == {task: [pytest.approx(0.01 * np.mean(padded) / 2, rel=1e-3)] * 4 for task in WIDTHS}


def test_stages_that_are_not_seen_have_no_offset(snapshots):
    config = tiny_config(task_num_labels=dict(WIDTHS), num_intra_task_stages=2)
    snapshots.take(SEMForMultiTaskDensePrediction(config), 1)
    facts = json.loads((snapshots.folder / "step_000001.json").read_text())
    assert {len(values) for name in ("offsets", "stage_weights") for values in facts[name].values()} == {2}


@pytest.mark.parametrize("overrides", [{"use_intra_task": False}, {"use_decoder": False}], ids=str)
def test_a_model_without_intra_task_modules_has_no_states(snapshots, overrides):
    snapshots.take(SEMForMultiTaskDensePrediction(tiny_config(task_num_labels=dict(WIDTHS), **overrides)), 1)
    facts = json.loads((snapshots.folder / "step_000001.json").read_text())
    assert (facts["offsets"], facts["stage_weights"]) == ({}, {})


def test_a_task_that_is_not_finite_has_no_score(model, snapshots):
    torch.nn.init.constant_(list(model.heads["depth"].parameters())[-1], float("nan"))
    snapshots.take(model, 1)
    scores = json.loads((snapshots.folder / "step_000001.json").read_text())["scores"]
    assert {key.split("/")[0] for key in scores} == {"semseg", "normal", "boundary"}


def test_steps_ahead_are_forgotten(snapshots):
    snapshots.folder.mkdir()
    names = [f"step_{step:06d}.{ending}" for step in (1, 2, 10) for ending in ("json", "png")]
    for name in (*names, "unfinished_step_000010.png", "step_notes.txt", "step_.json"):
        (snapshots.folder / name).touch()
    snapshots.truncate_after(2)
    assert sorted(path.name for path in snapshots.folder.iterdir()) == [
        "step_.json",
        "step_000001.json",
        "step_000001.png",
        "step_000002.json",
        "step_000002.png",
        "step_notes.txt",
    ]
    assert [snapshot_step(path) for path in list_snapshots(snapshots.folder)] == [1, 2]
    snapshots.truncate_after(0)
    assert list_snapshots(snapshots.folder) == []


def test_cells_come_out_of_the_grid_as_they_went_in():
    images = np.random.default_rng(0).integers(0, 256, (2, 128, 256, 3), dtype=np.uint8)
    depth = torch.linspace(1, 3, 128 * 256).view(128, 256)
    predictions = [
        Prediction(torch.from_numpy(image).permute(2, 0, 1), {"depth": depth}, {"depth": 4 - depth})
        for image in images
    ]
    cells = cut_grid(draw_grid(predictions), num_rows=4, num_columns=2)
    predicted, expected = colorize_maps("depth", [depth, 4 - depth])
    for index, image in enumerate(images):
        assert np.array_equal(np.asarray(cells[2 * index][0]), image)
        assert np.array_equal(np.asarray(cells[2 * index][1]), predicted)
        assert np.asarray(cells[2 * index + 1][0]).min() == 255
        assert np.array_equal(np.asarray(cells[2 * index + 1][1]), expected)
