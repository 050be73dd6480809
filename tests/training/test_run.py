"""The parts of a run that need no training."""

import pytest
import torch
from accelerate import Accelerator

from transformers_sem.data.mixture import DatasetConfig
from transformers_sem.evaluation.constant_predictor import ConstantPredictor
from transformers_sem.training.config import TrainingConfig
from transformers_sem.training.run import check_present, load_data


def test_data_without_maps_of_a_task_is_refused_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    rows = DatasetConfig(
        dataset="scenes", dataset_kwargs={"num_train": 2, "num_validation": 1, "height": 32, "width": 48}
    ).load()
    monkeypatch.setattr(DatasetConfig, "load", lambda self: rows.remove_columns("depth"))  # as without its folder
    config = TrainingConfig(dataset="scenes", output_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"none of \['depth'\]. Add them, or set tasks=\['semseg', 'normal'\]"):
        load_data(config, ["semseg", "depth", "normal"], Accelerator(cpu=True))
    rows["train"] = rows["train"].map(lambda _: {"depth": None})  # as with `allow_missing`
    monkeypatch.setattr(DatasetConfig, "load", lambda self: rows)
    with pytest.raises(ValueError, match=r"none of \['depth'\]"):
        load_data(config, ["semseg", "depth", "normal"], Accelerator(cpu=True))
    data = load_data(config, ["semseg", "normal"], Accelerator(cpu=True))
    assert data.sizes == [2] and not (tmp_path / "run").exists()


def test_tasks_without_a_valid_pixel_are_named():
    constant = ConstantPredictor({"semseg": 3, "depth": 1})
    constant.add({"semseg": torch.tensor([[0, 2, 255]]), "depth": torch.full((1, 1, 3), torch.nan)})
    assert constant.num_pixels == {"semseg": 2, "depth": 0}
    with pytest.raises(ValueError, match=r"valid pixel in some training image; got none of \['depth'\]"):
        check_present(["semseg", "depth"], constant.num_pixels, "valid pixel")
