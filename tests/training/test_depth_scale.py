"""The predicted depth is unbiased."""

import json

import pytest

from transformers_sem.training.config import TrainingConfig
from transformers_sem.training.run import run_training

from ..tiny import TINY_MODEL


SETTINGS = {
    "dataset": "scenes",
    "dataset_kwargs": {"height": 48, "width": 64, "num_train": 200, "num_validation": 40},
    "tasks": ["depth"],
    "model": {
        **TINY_MODEL,
        "hidden_size": 32,
        "decoder_hidden_sizes": [32, 24, 16, 16],
        "num_bases": 8,
        "use_auxiliary_heads": False,
        "initializer_range": 0.06,
    },
    "pretrained_backbone": False,
    "input_size": [48, 64],
    "network_size": [32, 48],
    "zoom": [0.8, 1.25],
    "max_steps": 200,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "num_workers": 0,
    "snapshot_every": 200,
    "num_snapshot_images": 1,
    "trackers": [],
}


@pytest.mark.slow
def test_mean_predicted_depth_is_mean_true_depth(tmp_path):
    """With views that are only enlarged, zoom=[1.0, 1.25], and heads that start at zero the ratio was 0.90."""
    run_training(TrainingConfig(output_dir=str(tmp_path), **SETTINGS))
    report = json.loads((tmp_path / "evaluation.json").read_text())
    scores, constant_scores = report["scores"], report["constant_scores"]
    assert scores["depth/scale"] == pytest.approx(1, abs=0.05)
    assert scores["depth/rmse"] < 0.9 * constant_scores["depth/rmse"]
    assert constant_scores["depth/scale"] == pytest.approx(1, abs=0.1)
