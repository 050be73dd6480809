"""The command `export`."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor

from ..tiny import tiny_config
from .commands import run


@pytest.mark.slow
def test_an_export_predicts_without_torch(trained, tmp_path):
    Image.fromarray(np.zeros((50, 70, 3), np.uint8)).save(tmp_path / "photo.png")
    exported = run("export", "--model", str(trained), "--output", str(tmp_path / "onnx"))
    assert exported.code == 0, exported.errors
    assert exported.output.count("largest difference") == 2
    blocked = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
    blocked += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", blocked, str(tmp_path / "onnx" / "run_onnx.py"), str(tmp_path / "photo.png")]
    subprocess.run(command, check=True, timeout=120)
    with np.load(tmp_path / "photo.npz") as maps:
        config = SEMForMultiTaskDensePrediction.from_pretrained(trained).config
        assert {task: maps[task].shape[0] for task in maps} == config.task_num_labels
    again = run("export", "--model", str(trained), "--output", str(tmp_path / "onnx"))
    assert again.code == 1 and "must be a new folder" in again.errors


@pytest.mark.slow
def test_windows_are_exported_for_one_size(tmp_path):
    swin = {"model_type": "swin", "embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    model = SEMForMultiTaskDensePrediction(tiny_config(backbone_config={**swin, "out_indices": [1, 2, 3, 4]}))
    model.save_pretrained(tmp_path / "model")
    SEMImageProcessor().save_pretrained(tmp_path / "model")
    arguments = ["export", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "onnx")]
    refused = run(*arguments)
    assert refused.code == 1 and "SwinBackbone" in refused.errors and "--size HEIGHT WIDTH" in refused.errors
    assert not (tmp_path / "onnx").exists()
    exported = run(*arguments, "--size", "64", "90")
    assert exported.code == 0, exported.errors
    assert "64 x 90: largest difference" in exported.output
    settings = json.loads((tmp_path / "onnx" / "preprocessor_config.json").read_text())
    assert settings["do_resize"] and settings["size"] == {"height": 64, "width": 90}
