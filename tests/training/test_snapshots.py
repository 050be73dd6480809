import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, Features
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.data.benchmarks import BENCHMARKS
from transformers_sem.data.row_format import FEATURES, encode_row
from transformers_sem.data.scenes import render_scene
from transformers_sem.training.history import History, read_history
from transformers_sem.training.snapshots import Snapshots, log_evaluation

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


def build_snapshots(rows, history):
    size = {"height": SIZE[0], "width": SIZE[1]}
    return Snapshots(
        image_processor=SEMImageProcessor(size=size, pad_size=size, do_resize=False, do_pad=True),
        rows=rows,
        num_images=3,
        benchmark=BENCHMARKS["scenes"],
        accelerator=history.accelerator,
        history=history,
    )


@pytest.fixture
def snapshots(rows, tmp_path):
    return build_snapshots(rows, History(Accelerator(cpu=True), tmp_path, images_per_step=4))


def train(model, look):
    """Trains three steps, calls `look` after each, and returns weights, modes and states of the random generators."""
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


def test_a_snapshot_changes_nothing_of_the_training(model, snapshots, tmp_path):
    plain = train(deepcopy(model), lambda model, step: None)
    watched = train(deepcopy(model), lambda model, step: step == 1 or snapshots.take(model, step))
    assert [name for name, value in plain[0].items() if not torch.equal(value, watched[0][name])] == []
    assert any(name.endswith("initial_bases") for name in plain[0])
    assert plain[1] == watched[1] and len(set(plain[1])) == 2
    assert torch.equal(plain[2], watched[2])
    assert np.array_equal(plain[3], watched[3])
    assert plain[4] == watched[4]
    assert [entry["step"] for entry in read_history(tmp_path)] == [2, 3]


def test_modes_come_back_after_an_error(model, snapshots):
    model.train()
    snapshots.image_processor = None
    with pytest.raises(TypeError):
        snapshots.take(model, 1)
    assert all(module.training for module in model.modules())


def test_a_snapshot_scores_the_images(model, snapshots, tmp_path):
    snapshots.take(model, 20)
    (entry,) = read_history(tmp_path)
    assert entry["step"] == 20
    assert {"semseg/miou", "depth/rmse", "normal/mean_error", "boundary/odsf"} <= set(entry["scores"])
    assert {key.split("/")[0] for key in entry["scores"]} == set(WIDTHS)


def test_trackers_get_one_image_of_the_predictions(model, snapshots, monkeypatch):
    """A row of predictions and one of labels for each image, a column for the image and each task."""
    images = {}

    class Tracker:
        def __init__(self, name):
            self.name = name

        def log(self, values, step):
            pass

        def log_images(self, values, step, **kwargs):
            images[self.name] = (values, step, kwargs)

    trackers = [Tracker(name) for name in ("tensorboard", "wandb", "trackio")]
    monkeypatch.setattr(snapshots.accelerator, "trackers", trackers)
    snapshots.take(model, 20)
    assert images.keys() == {"tensorboard", "wandb"}
    for values, step, _ in images.values():
        (image,) = values["validation/predictions"]
        assert step == 20 and image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3
        assert image.shape[1] > image.shape[0] > 0
    assert images["tensorboard"][2] == {"dataformats": "NHWC"}


def test_tensorboard_shows_what_is_logged(model, rows, tmp_path):
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    accelerator.init_trackers("logs")
    history = History(accelerator, tmp_path, images_per_step=4)
    build_snapshots(rows, history).take(model, 20)
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [event.step for event in events.Images("validation/predictions")] == [20]
    assert [event.step for event in events.Scalars("validation/depth/rmse")] == [20]


def test_trackers_get_the_final_evaluation(tmp_path):
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    accelerator.init_trackers("logs")
    (tmp_path / "evaluation.json").write_text('{"scores": {"depth/rmse": 0.5}}')
    Image.new("RGB", (8, 6)).save(tmp_path / "predictions.png")
    log_evaluation(accelerator, tmp_path / "evaluation.json", tmp_path / "predictions.png", 30)
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("evaluation/depth/rmse")] == [(30, 0.5)]
    assert [(event.step, event.width) for event in events.Images("evaluation/predictions")] == [(30, 8)]


def test_images_are_spread_over_the_rows(snapshots, rows):
    chosen = [rows[index]["image"].tobytes() for index in (0, 2, 4)]
    assert [row["image"].tobytes() for row in snapshots.rows] == chosen


def test_a_task_that_is_not_finite_has_no_score(model, snapshots, tmp_path):
    torch.nn.init.constant_(list(model.heads["depth"].parameters())[-1], float("nan"))
    snapshots.take(model, 1)
    scores = read_history(tmp_path)[0]["scores"]
    assert {key.split("/")[0] for key in scores} == {"semseg", "normal", "boundary"}
