"""What happens around the predictor; the script itself is run in tests/test_scripts.py."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from transformers_sem.inference import runner as running
from transformers_sem.inference.inputs import Source, find_sources
from transformers_sem.inference.outputs import Results
from transformers_sem.inference.runner import PredictionRun, batches


def predict_depth(photos):
    """A model that refuses small photos."""
    if min(min(photo.shape[-2:]) for photo in photos) < 4:
        raise ValueError("An image must be at least one patch large.")
    return [{"depth": torch.ones(photo.shape[-2:])} for photo in photos]


def build_run(folder, batch_size=1):
    predict_depth.batch_size = batch_size
    return PredictionRun(predict_depth, Results(folder, {}, "digest", {}), Accelerator(cpu=True))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_photo_that_the_model_refuses_does_not_spoil_the_others(tmp_path, batch_size):
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name, size in {"a": (9, 8), "b": (1, 1), "c": (7, 6)}.items():
        Image.new("RGB", size).save(photos / f"{name}.png")
    summary = build_run(output, batch_size).run(find_sources([str(photos)], output))
    assert (summary.num_predicted, summary.num_done_before) == (2, 0)
    assert summary.failures == [f"Cannot predict {photos / 'b.png'}: An image must be at least one patch large."]
    assert sorted(path.stem for path in output.glob("json/*")) == ["a", "c"]


def test_batches_of_large_photos_are_small(monkeypatch):
    monkeypatch.setattr(running, "PIXELS_OF_A_BATCH", 250)
    photos = [(index, None, torch.zeros(3, edge, 10)) for index, edge in enumerate([10, 10, 10, 90, 1, 1, 1])]
    assert [[item[0] for item in batch] for batch in batches(iter(photos), 3)] == [[0, 1], [2], [3], [4, 5, 6]]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"fingerprint": null}'])
def test_what_is_no_note_of_ours_is_not_taken_for_done(tmp_path, text):
    source = Source(tmp_path / "photo.png", "photo", "photo")
    source.path.write_bytes(np.arange(9).tobytes())
    results = Results(tmp_path, {}, "digest", {})
    results.path("json", source, ".json").write_text(text)
    assert not results.is_done(source, results.fingerprint(source))


def test_a_camera_is_never_done(tmp_path):
    source = Source(tmp_path / "0", "camera0", "camera")
    results = Results(tmp_path, {}, "digest", {})
    results.write_facts(source, results.fingerprint(source), [])
    assert not results.is_done(source, results.fingerprint(source))
    assert not results.is_done(SimpleNamespace(kind="photo", path=tmp_path / "absent", name="absent"), None)
