"""Checkpoints with custom code, loaded in processes without the package."""

import os
import subprocess
import sys

import pytest
import torch


BACKBONES = {
    "timm": '{"model_name": "test_convnext", "out_indices": [1, 2, 3, 4], "drop_path_rate": 0.0}',
    "transformers": """{"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2],
        "window_size": 4, "out_indices": [1, 2, 3, 4]}""",
}
SAVE = """
import torch
from transformers import pipeline
from transformers_sem import SEMConfig, SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem import MultiTaskDensePredictionPipeline
SEMConfig.register_for_auto_class()
SEMForMultiTaskDensePrediction.register_for_auto_class("AutoModelForUniversalSegmentation")
SEMImageProcessor.register_for_auto_class("AutoImageProcessor")
config = SEMConfig(backbone_config={backbone}, hidden_size=16, num_attention_heads=2, num_bases=4,
                   decoder_hidden_sizes=[16, 16, 8, 8], decoder_num_attention_heads=[2, 2, 1, 1])
model = SEMForMultiTaskDensePrediction(config).eval()
processor = SEMImageProcessor(size={{"height": 64, "width": 96}})
MultiTaskDensePredictionPipeline(model=model, image_processor=processor).save_pretrained({folder!r})
model.save_pretrained({folder!r} + "/model")
processor.save_pretrained({folder!r} + "/model")
"""
PREDICT = """
import torch
torch.manual_seed(0)
images = torch.randn(1, 3, 64, 96)
with torch.no_grad():
    torch.save(dict(model.eval()(images).logits), {output!r})
"""
WITHOUT_THE_PACKAGE = "import sys; sys.modules['transformers_sem'] = None\n"
LOAD_CODE = """
from transformers import AutoConfig, AutoImageProcessor, AutoModelForUniversalSegmentation
folder = {folder!r} + "/model"
model = AutoModelForUniversalSegmentation.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules"), type(model)
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).tasks == ["semseg", "depth", "normal", "boundary"]
assert AutoImageProcessor.from_pretrained(folder, trust_remote_code=True).size["width"] == 96
"""
LOAD_PIPELINE = """
import numpy
from transformers import pipeline
predict = pipeline("multi-task-dense-prediction", model={folder!r}, trust_remote_code=True)
assert predict(numpy.zeros((30, 40, 3), numpy.uint8))["predictions"]["depth"].shape == (30, 40)
"""
LOAD_PACKAGE = """
import transformers_sem
from transformers import AutoModelForUniversalSegmentation
model = AutoModelForUniversalSegmentation.from_pretrained({folder!r} + "/model")
assert type(model) is transformers_sem.SEMForMultiTaskDensePrediction
"""


def run(program, folder):
    environment = {**os.environ, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", program]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)
    assert finished.returncode == 0, finished.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["timm", "transformers"])
def test_a_checkpoint_with_its_code_needs_no_package(backbone, tmp_path):
    folder = str(tmp_path / "checkpoint")
    run(SAVE.format(backbone=BACKBONES[backbone], folder=folder), tmp_path)
    programs = {
        "package": LOAD_PACKAGE + PREDICT,
        "code": WITHOUT_THE_PACKAGE + LOAD_PIPELINE + LOAD_CODE + PREDICT,
    }
    for name, program in programs.items():
        run(program.format(folder=folder, output=str(tmp_path / f"{name}.pt")), tmp_path)
    logits = {name: torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in programs}
    torch.testing.assert_close(logits["code"], logits["package"], rtol=0, atol=0)
