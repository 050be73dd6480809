"""The prediction run around the predictor. The `predict` command is tested in tests/test_scripts.py."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from transformers_sem.inference import runner
from transformers_sem.inference.inputs import InputItem, find_inputs
from transformers_sem.inference.outputs import OutputFolder
from transformers_sem.inference.runner import PredictionRunner, make_batches


def predict_depth(images):
    """A predictor that rejects small images."""
    if min(min(image.shape[-2:]) for image in images) < 4:
        raise ValueError("An image must be at least one patch large.")
    return [{"depth": torch.ones(image.shape[-2:])} for image in images]


def build_runner(folder, batch_size=1):
    predict_depth.batch_size = batch_size
    return PredictionRunner(predict_depth, OutputFolder(folder, {}, "digest", {}), Accelerator(cpu=True))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_image_that_the_model_rejects_does_not_affect_the_others(tmp_path, batch_size):
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name, size in {"a": (9, 8), "b": (1, 1), "c": (7, 6)}.items():
        Image.new("RGB", size).save(images / f"{name}.png")
    summary = build_runner(output, batch_size).run(find_inputs([str(images)], output))
    assert (summary.num_predicted, summary.num_done_before) == (2, 0)
    assert summary.failures == [f"Cannot predict {images / 'b.png'}: An image must be at least one patch large."]
    assert sorted(path.stem for path in output.glob("json/*")) == ["a", "c"]


def test_batches_of_large_images_are_small(monkeypatch):
    monkeypatch.setattr(runner, "MAX_BATCH_PIXELS", 250)
    images = [(index, None, torch.zeros(3, edge, 10)) for index, edge in enumerate([10, 10, 10, 90, 1, 1, 1])]
    assert [[image[0] for image in batch] for batch in make_batches(iter(images), 3)] == [[0, 1], [2], [3], [4, 5, 6]]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"fingerprint": null}'])
def test_other_json_files_do_not_mark_an_item_as_complete(tmp_path, text):
    item = InputItem(tmp_path / "photo.png", "photo", "image")
    item.path.write_bytes(np.arange(9).tobytes())
    outputs = OutputFolder(tmp_path, {}, "digest", {})
    outputs.path("json", item, ".json").write_text(text)
    assert not outputs.is_complete(item, outputs.fingerprint(item))


def test_cameras_are_never_complete(tmp_path):
    item = InputItem(tmp_path / "0", "camera0", "camera")
    outputs = OutputFolder(tmp_path, {}, "digest", {})
    outputs.write_description(item, outputs.fingerprint(item), [])
    assert not outputs.is_complete(item, outputs.fingerprint(item))
    assert not outputs.is_complete(SimpleNamespace(kind="image", path=tmp_path / "absent", name="absent"), None)
