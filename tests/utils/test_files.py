import locale
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from transformers_sem import TASKS, SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.evaluation.evaluator import save_image_scores
from transformers_sem.evaluation.map_files import save_maps
from transformers_sem.utils.environment import save_report
from transformers_sem.utils.files import atomic_write, locked, plain_disk_errors, save_trained, write_text
from transformers_sem.visualization.panels import Prediction, save_panel

from ..disk import full_disk
from ..tiny import tiny_config


SIZE = (6, 9)


def random_maps(seed=0):
    """Maps of every task in physical units."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(3, *SIZE))
    maps = {
        "semseg": generator.integers(0, 40, SIZE),
        "depth": (generator.random(SIZE) * 70).astype(np.float32),
        "normal": (vectors / np.linalg.norm(vectors, axis=0)).astype(np.float32),
        "boundary": generator.random(SIZE).astype(np.float32),
        "parsing": generator.integers(0, 7, SIZE),
        "saliency": generator.random(SIZE).astype(np.float32),
    }
    return {task: torch.from_numpy(values) for task, values in maps.items()}


def read_image(path):
    with Image.open(path) as image:
        return np.asarray(image)


# ----------------------------------------------------------------------------------------------------------------------
# Files are written whole or not at all


def write_report(folder, seed):
    save_report(folder / "evaluation.json", scores={f"semseg/score {index}": seed for index in range(500)})


def write_image_scores(folder, seed):
    scores = np.random.default_rng(seed).random(500).tolist()
    save_image_scores(folder / "evaluation.parquet", [{"id": "a", "depth/rmse": score} for score in scores])


def write_maps(folder, seed):
    save_maps(folder, "0001", random_maps(seed))


def write_arrays(folder, seed):
    with pytest.MonkeyPatch.context() as patch:
        kind = replace(TASKS["depth"].kind, encode=None)
        patch.setitem(TASKS, "depth", replace(TASKS["depth"], kind=kind))
        save_maps(folder, "0001", {"depth": random_maps(seed)["depth"]})


def write_panel(folder, seed):
    image = torch.randint(256, (3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    save_panel(folder / "predictions.png", [Prediction(image, random_maps(seed))])


every_writer = pytest.mark.parametrize(
    "write", [write_report, write_image_scores, write_maps, write_arrays, write_panel]
)


@contextmanager
def stopped_before_renaming():
    def stop(source, target):
        raise OSError("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", stop)
        yield


def finished_files(folder):
    """Their content, by path."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("unfinished")]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


@every_writer
@pytest.mark.parametrize("failure", [full_disk, stopped_before_renaming])
def test_a_failed_write_leaves_what_was_there_and_can_be_repeated(tmp_path, write, failure):
    with failure(), pytest.raises(OSError):
        write(tmp_path, seed=0)
    assert finished_files(tmp_path) == {}
    write(tmp_path, seed=0)
    before = finished_files(tmp_path)
    assert before
    with failure(), pytest.raises(OSError):
        write(tmp_path, seed=1)
    assert finished_files(tmp_path) == before
    write(tmp_path, seed=1)
    assert finished_files(tmp_path).keys() == before.keys()
    assert finished_files(tmp_path) != before
    assert not list(tmp_path.rglob("unfinished*"))


def test_a_model_is_saved_whole_and_over_an_unfinished_one(tmp_path):
    model, image_processor = SEMForMultiTaskDensePrediction(tiny_config()), SEMImageProcessor()
    with stopped_before_renaming(), pytest.raises(OSError, match="stopped"):
        save_trained(model, image_processor, tmp_path)
    assert finished_files(tmp_path / "unfinished_model") != {}
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished_model"]
    save_trained(model, image_processor, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    loaded = SEMForMultiTaskDensePrediction.from_pretrained(tmp_path, local_files_only=True).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_an_unfinished_file_has_a_name_that_fits_and_that_is_no_neighbors(tmp_path):
    for name in ("n" * 251 + ".png", "z.png"):
        with atomic_write(tmp_path / name) as unfinished:
            unfinished.touch()
            assert unfinished.name != "unfinished_z.png" and unfinished.suffix == ".png"
        assert (tmp_path / name).exists()


def test_a_lock_is_held_by_one(tmp_path):
    with (
        locked(tmp_path / "new" / ".lock", "One thing at a time"),
        pytest.raises(ValueError, match=r"One thing at a time; another one holds .*\.lock"),
        locked(tmp_path / "new" / ".lock", "One thing at a time"),
    ):
        pass
    for _ in range(2):
        with locked(tmp_path / "new" / ".lock", "One thing at a time"):
            pass


def test_a_model_on_a_full_disk_is_an_error_with_a_remedy(tmp_path):
    """safetensors and torch raise errors of their own."""
    model, image_processor = SEMForMultiTaskDensePrediction(tiny_config()), SEMImageProcessor()
    with full_disk(5000), pytest.raises(OSError, match=r"Cannot write to .* \(os error 27\).* Free some space"):
        save_trained(model, image_processor, tmp_path)
    assert finished_files(tmp_path).keys() <= {Path("unfinished_model", "config.json")}
    with full_disk(), pytest.raises(OSError, match="Cannot write to .* Free some space"), plain_disk_errors(tmp_path):
        torch.save(model.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(RuntimeError, match="^another$"), plain_disk_errors(tmp_path):
        raise RuntimeError("another")


# ----------------------------------------------------------------------------------------------------------------------
# What is in them


def test_image_scores_are_a_row_each_and_null_where_there_are_none(tmp_path):
    image_scores = [{"id": "b"}, {"id": "a", "depth/rmse": 1 / 3}, {"id": "c", "semseg/miou": 0.5, "depth/rmse": 2.0}]
    save_image_scores(tmp_path / "evaluation.parquet", image_scores)
    assert pq.read_table(tmp_path / "evaluation.parquet").to_pylist() == [
        {"id": "b", "depth/rmse": None, "semseg/miou": None},
        {"id": "a", "depth/rmse": 1 / 3, "semseg/miou": None},
        {"id": "c", "depth/rmse": 2.0, "semseg/miou": 0.5},
    ]


def test_maps_are_saved_as_images_of_their_values(tmp_path):
    maps = {task: values.numpy() for task, values in random_maps().items()}
    save_maps(tmp_path, "0001", random_maps())
    images = {task: read_image(tmp_path / task / "0001.png") for task in maps}
    assert len(list(tmp_path.rglob("*.*"))) == len(TASKS)
    for task in ("semseg", "parsing"):
        assert images[task].dtype == np.uint8
        np.testing.assert_array_equal(images[task], maps[task])
    assert images["depth"].dtype == np.uint16
    np.testing.assert_allclose(images["depth"] / 1000, maps["depth"].clip(max=65.535), atol=0.00051)
    np.testing.assert_allclose(images["normal"] / 127.5 - 1, maps["normal"].transpose(1, 2, 0), atol=1 / 254)
    for task in ("boundary", "saliency"):
        np.testing.assert_array_equal(images[task], np.floor(maps[task] * 255))


def test_a_task_without_an_image_encoding_is_an_array(tmp_path):
    write_arrays(tmp_path, seed=0)
    np.testing.assert_array_equal(np.load(tmp_path / "depth" / "0001.npy"), random_maps()["depth"])


def test_a_name_with_a_folder_is_in_that_folder(tmp_path):
    paths = save_maps(tmp_path, "kitchen/0001", {"semseg": random_maps()["semseg"]})
    assert paths == {"semseg": tmp_path / "semseg" / "kitchen" / "0001.png"}
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [*paths.values()]


def test_a_panel_shows_the_first_images_only(tmp_path):
    images = iter(range(100))

    def predictions():
        for seed in images:
            yield Prediction(torch.zeros(3, *SIZE, dtype=torch.uint8), random_maps(seed))

    save_panel(tmp_path / "predictions.png", predictions(), num_images=2)
    assert next(images) == 2
    assert read_image(tmp_path / "predictions.png").ndim == 3


def test_text_is_in_utf_8_whatever_the_locale(tmp_path):
    earlier = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    try:
        write_text(tmp_path / "table.md", "Δm 1.5 ± 0.5 ↑")
    finally:
        locale.setlocale(locale.LC_CTYPE, earlier)
    assert (tmp_path / "table.md").read_bytes() == "Δm 1.5 ± 0.5 ↑".encode()


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=r"Cannot write to the folder '.*file/run': .*Choose another one"),
        locked(tmp_path / "file" / "run" / ".lock", "One at a time"),
    ):
        pass
