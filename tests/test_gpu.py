"""What a CUDA device changes: kernels, precisions, compilation, and training that resumes there."""

import copy
import shutil

import pytest
import torch
from accelerate.utils import send_to_device
from safetensors.torch import load_file
from torch.torch_version import TorchVersion

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.training.accelerator import MIN_TORCH_TO_COMPILE

from .cli.commands import SETTINGS, read_report, run
from .tiny import tiny_config


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

NUM_LABELS = {"semseg": 5, "depth": 1, "normal": 3, "boundary": 1}


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch):
    """Convolutions of float32 in float32, and not in TF32, which has ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def build_model():
    return SEMForMultiTaskDensePrediction(tiny_config(task_num_labels=NUM_LABELS)).eval()


def make_batch(num_images=2):
    labels = {
        "semseg": torch.randint(5, (num_images, 64, 96)),
        "depth": torch.rand(num_images, 1, 64, 96) + 1,
        "normal": torch.nn.functional.normalize(torch.randn(num_images, 3, 64, 96), dim=1),
        "boundary": torch.randint(2, (num_images, 64, 96)).float(),
    }
    return {"pixel_values": torch.randn(num_images, 3, 64, 96), "labels": labels}


def to_cuda(batch):
    return send_to_device(batch, "cuda")


def learn(model, batch, dtype=torch.float32):
    """Loss, gradients and bases of one training step."""
    device = batch["pixel_values"].device.type
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        loss = model(**batch).loss
    loss.backward()
    gradients = {name: value.grad.cpu() for name, value in model.named_parameters() if value.grad is not None}
    return loss.detach().cpu(), gradients, {name: value.cpu() for name, value in model.named_buffers()}


def test_it_predicts_and_learns_like_the_cpu():
    model, batch = build_model(), make_batch()
    twin = copy.deepcopy(model).cuda()
    expected = model(**batch).logits
    for task, logits in twin(**to_cuda(batch)).logits.items():
        torch.testing.assert_close(logits.cpu(), expected[task], rtol=1e-3, atol=1e-3)
    loss, gradients, buffers = learn(twin.train(), to_cuda(batch))
    expected = learn(model.train(), batch)
    torch.testing.assert_close(loss, expected[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(buffers, expected[2], rtol=0, atol=1e-3)
    largest = max(gradient.abs().max().item() for gradient in expected[1].values())
    torch.testing.assert_close(gradients, expected[1], rtol=1e-2, atol=1e-3 * largest)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_learns_almost_the_same(dtype):
    model, batch = build_model().train().cuda(), to_cuda(make_batch())
    loss, gradients, _ = learn(copy.deepcopy(model), batch, dtype)
    expected = learn(model, batch)
    torch.testing.assert_close(loss, expected[0], rtol=0.05, atol=0)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_weights_in_bfloat16_predict_almost_the_same():
    model, batch = build_model().cuda(), to_cuda(make_batch())
    expected = model(batch["pixel_values"]).logits
    for task, logits in model.bfloat16()(batch["pixel_values"].bfloat16()).logits.items():
        error = (logits.float() - expected[task]).norm() / expected[task].norm()
        assert error < 0.1, task


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@torch.no_grad()
def test_compiled_it_predicts_the_same(mode):
    """The second mode replays CUDA graphs."""
    torch.compiler.reset()
    model, images = build_model().cuda(), make_batch()["pixel_values"].cuda()
    expected = {task: logits.clone() for task, logits in model(images).logits.items()}
    compiled = torch.compile(model, mode=mode, fullgraph=True)
    for _ in range(3):
        torch.compiler.cudagraph_mark_step_begin()
        torch.testing.assert_close(dict(compiled(images).logits), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(TorchVersion(torch.__version__) < MIN_TORCH_TO_COMPILE, reason="training refuses to compile")
def test_compiled_it_learns_the_same():
    torch.compiler.reset()
    model, batch = build_model().train().cuda(), to_cuda(make_batch())
    twin = copy.deepcopy(model)
    model.compile(fullgraph=True)
    loss, gradients, _ = learn(model, batch)
    expected = learn(twin, batch)
    torch.testing.assert_close(loss, expected[0], rtol=1e-3, atol=0)
    largest = max(gradient.abs().max().item() for gradient in expected[1].values())
    torch.testing.assert_close(gradients, expected[1], rtol=1e-2, atol=1e-3 * largest)


def test_channels_last_predicts_the_same():
    model, images = build_model().cuda(), make_batch()["pixel_values"].cuda()
    expected = model(images).logits
    logits = model.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(dict(logits), dict(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_run_trains_evaluates_and_resumes(precision, tmp_path):
    """The same steps in one go and in two end with the same weights."""
    settings = [*SETTINGS, f"mixed_precision={precision}", "deterministic=true", "pretrained_backbone=false"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ["--config", "quickstart", *settings]
    result = run("train", *arguments, f"output_dir={whole}")
    assert result.code == 0, result.errors
    assert "semseg/miou" in read_report(whole / "evaluation.json")[0]
    # The last checkpoint of a run of six steps is that of step 6; one of step 4 is what a stop leaves.
    assert run("train", *arguments, f"output_dir={parts}", "keep_checkpoints=3").code == 0
    for name in ("model.safetensors", "evaluation.json"):
        (parts / name).unlink()
    shutil.rmtree(parts / "checkpoints" / "step_000006")
    assert run("train", *arguments, f"output_dir={parts}", "keep_checkpoints=3").code == 0
    torch.testing.assert_close(
        load_file(parts / "model.safetensors"), load_file(whole / "model.safetensors"), rtol=0, atol=0
    )


def test_scores_are_those_of_the_cpu(tmp_path):
    """Predictions and post-processing on the device, statistics as on the CPU."""
    model, processor = build_model(), SEMImageProcessor(size={"height": 64, "width": 96})
    images = list(torch.randint(256, (3, 3, 50, 80), dtype=torch.uint8))
    inputs = processor(images, return_tensors="pt")
    expected = processor.post_process_dense_prediction(model(inputs["pixel_values"]), target_sizes=[(50, 80)] * 3)
    outputs = model.cuda()(inputs["pixel_values"].cuda())
    found = processor.post_process_dense_prediction(outputs, target_sizes=[(50, 80)] * 3)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one["depth"].cpu(), other["depth"], rtol=1e-3, atol=1e-3)
        assert (one["semseg"].cpu() == other["semseg"]).float().mean() > 0.99
