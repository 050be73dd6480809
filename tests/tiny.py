"""Configuration of a small model with every part of SEM: a timm test encoder, 8 or 16 channels, four bases."""

from copy import deepcopy
from pathlib import Path

from transformers_sem import SEMConfig, SEMForMultiTaskDensePrediction, SEMImageProcessor


TINY_BACKBONE = {
    "model_name": "test_convnext",
    "out_indices": [1, 2, 3, 4],
    "drop_path_rate": 0.0,
    "model_kwargs": {"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]},
}


TINY_MODEL = {
    "backbone_config": TINY_BACKBONE,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "mlp_ratio": 2.0,
    "decoder_hidden_sizes": [16, 16, 8, 8],
    "decoder_num_attention_heads": [2, 2, 1, 1],
    "num_bases": 4,
    "num_em_iterations": 2,
}


def tiny_config(**overrides) -> SEMConfig:
    return SEMConfig(**{**deepcopy(TINY_MODEL), **overrides})


def save_tiny_model(folder: Path) -> Path:
    """Writes a model of two tasks and its image processor to a folder, and returns it."""
    SEMForMultiTaskDensePrediction(tiny_config(task_num_labels={"depth": 1, "normal": 3})).save_pretrained(folder)
    SEMImageProcessor().save_pretrained(folder)
    return folder
