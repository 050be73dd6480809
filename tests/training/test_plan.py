from dataclasses import replace

import datasets
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from transformers_sem import TASKS, SEMForMultiTaskDensePrediction
from transformers_sem.training.config import TrainingConfig
from transformers_sem.training.optimizer import build_optimizer
from transformers_sem.training.plan import (
    compare_sizes,
    effective_settings,
    format_plan,
    measure_step,
    permanent_memory,
    random_batch,
)

from ..tiny import tiny_config


CONFIG = TrainingConfig(output_dir="runs/x", max_steps=30, batch_size=8, input_size=[32, 64], weight_decay=0.5)


@pytest.fixture
def model():
    return SEMForMultiTaskDensePrediction(tiny_config())


def test_all_settings_are_listed_and_those_that_differ_marked():
    settings = effective_settings(CONFIG, tiny_config(num_bases=64))
    marks = {name: is_default for name, _, is_default in settings}
    assert len(marks) == len(settings)
    assert {name: marks[name] for name in ("max_steps", "weight_decay", "learning_rate", "zoom")} == {
        "max_steps": False,
        "weight_decay": False,
        "learning_rate": True,
        "zoom": True,
    }
    assert (marks["model.hidden_size"], marks["model.num_bases"], marks["model.em_temperature"]) == (False, True, True)
    assert marks["model.backbone_config.model_name"] is False
    assert marks["model.backbone_config.num_channels"] is True


def test_the_papers_own_recipe_differs_in_nothing():
    config = TrainingConfig()
    settings = effective_settings(config, tiny_config().__class__())
    assert [setting.name for setting in settings if not setting.is_default] == []


@pytest.mark.parametrize("frozen", [False, True])
def test_memory_is_what_torch_allocates(model, frozen):
    model.sem.backbone.requires_grad_(not frozen)
    optimizer = build_optimizer(CONFIG, model)
    model(**random_batch(CONFIG, model.config, 1)).loss.backward()
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    memory = permanent_memory(CONFIG, model)
    tensors = [*model.parameters(), *model.buffers()]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    states = [value for state in optimizer.state.values() for value in state.values()]
    sizes = [sum(tensor.numel() * tensor.element_size() for tensor in part) for part in (tensors, gradients, states)]
    assert [memory.parameters, memory.gradients, memory.optimizer] == sizes
    assert (memory.average, memory.total) == (0, sum(sizes))


def test_an_average_is_one_more_model(model):
    memory = permanent_memory(replace(CONFIG, weight_average_decay=0.5), model)
    assert memory.average == memory.parameters > 0


def test_a_plan_has_length_and_files(model):
    plan = format_plan(replace(CONFIG, gradient_accumulation_steps=2), model, num_rows=[100], num_processes=2)
    words = ["* max_steps", "  learning_rate", "240 images, 2.4 epochs of 100", "ranks: 2", "images in each: 2"]
    words += [
        "runs/x/",
        "curves.png",
        "checkpoints/",
        "GB per device",
        f"{model.num_parameters() / 1e6:.1f} M",
    ]
    assert [word for word in words if word not in plan] == []


def test_a_plan_has_the_epochs_of_each_dataset(model):
    config = replace(CONFIG, datasets=[{"dataset": "nyud_v2", "weight": 3}, {"dataset": "scenes"}])
    plan = format_plan(config, model, num_rows=[90, 10], num_processes=1)
    assert "240 images, 2.0 epochs of 90 (nyud_v2, 75% of the images), 6.0 epochs of 10 (scenes, 25%" in plan


@pytest.mark.parametrize("task", TASKS)
def test_random_labels_have_the_format_of_their_task(task):
    config = replace(CONFIG, network_size=[16, 48], zoom=[1.0, 1.0])
    model_config = tiny_config(task_num_labels={task: TASKS[task].num_labels})
    batch = random_batch(config, model_config, 2)
    spec, labels = TASKS[task], batch["labels"][task]
    assert batch["pixel_values"].shape == (2, 3, 16, 48)
    channels = (spec.kind.num_channels,) if spec.kind.num_channels else ()
    assert labels.shape == (2, *channels, 16, 48)
    assert labels.dtype == spec.dtype
    assert spec.kind.is_allowed(labels).all()
    assert batch["labels"][task].float().max() > 0


def test_one_step_is_measured(model):
    text = measure_step(replace(CONFIG, batch_size=2), model, Accelerator(cpu=True))
    assert "on cpu (images: 2, each 32 x 64) took" in text
    assert all(parameter.grad is not None for parameter in model.heads.parameters())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_step_that_does_not_fit_in_memory_is_explained(model, monkeypatch, error):
    def run_out(*args, **kwargs):
        raise error

    monkeypatch.setattr(model, "forward", run_out)
    with pytest.raises(ValueError, match="of 8 images does not fit .*gradient_checkpointing"):
        measure_step(CONFIG, model, Accelerator(cpu=True))


def test_images_larger_than_the_input_are_warned_of(caplog):
    rows = datasets.Dataset.from_list([{"image": Image.new("RGB", size)} for size in ((64, 30), (60, 32))])
    compare_sizes(rows, [32, 64])
    many = datasets.concatenate_datasets([rows.select([1])] * 20 + [rows.select([0])] * 4)
    compare_sizes(many, [32, 64])
    assert caplog.text == ""
    compare_sizes(many, [32, 60])
    assert "up to 32 x 64, and `input_size` is [32, 60]" in caplog.text and "Set input_size=[32,64]" in caplog.text
