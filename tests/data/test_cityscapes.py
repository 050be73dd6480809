import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image as PILImage

from transformers_sem.cli.arguments import RECIPES_DIR
from transformers_sem.cli.prepare import main
from transformers_sem.data import prepare as preparing
from transformers_sem.data.benchmarks import get_benchmark
from transformers_sem.data.cityscapes import CLASS_NAMES, find_source, read_camera, read_depth, read_semseg
from transformers_sem.data.files import BrokenFrameError
from transformers_sem.data.row_format import FEATURES
from transformers_sem.data.sources import check_files
from transformers_sem.evaluation.metrics import METRICS
from transformers_sem.tasks import to_label
from transformers_sem.training.config import TrainingConfig, model_config, network_size
from transformers_sem.training.model import build_image_processor

from ..cli.commands import run


HEIGHT, WIDTH = 8, 40
IDS = {
    "train": ["aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313"],
    "val": ["munster_000000_000019"],
}
NAME = IDS["val"][0]
CAMERA = {"extrinsic": {"baseline": 0.222126}, "intrinsic": {"fx": 2268.36}}
# The official tables: `labelIds` -> `labelTrainIds` -> category, without void.
TRAIN_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
CATEGORIES = [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 5, 6, 6, 6, 6, 6, 6]
CATEGORY_NAMES = ["flat", "construction", "object", "nature", "sky", "human", "vehicle"]


def file_of(root: Path, folder: str, name: str, ending: str) -> Path:
    split = next(split for split, names in IDS.items() if name in names)
    return root / folder / split / name.split("_")[0] / f"{name}_{ending}"


def write_frame(root: Path, name: str) -> None:
    rng = np.random.default_rng(int(name[-3:]))
    label_ids = np.tile(np.arange(WIDTH, dtype=np.uint8) % 34, (HEIGHT, 1))  # every id
    disparity = rng.integers(0, 32000, (HEIGHT, WIDTH)).astype(np.uint16)
    disparity[0, :3] = 0, 1, 2
    files = {
        ("leftImg8bit", "leftImg8bit.png"): rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8),
        ("gtFine", "gtFine_labelIds.png"): label_ids,
        ("disparity", "disparity.png"): disparity,
    }
    for (folder, ending), values in files.items():
        path = file_of(root, folder, name, ending)
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(values).save(path)
    path = file_of(root, "camera", name, "camera.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(CAMERA))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A tiny Cityscapes folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for names in IDS.values():
        for name in names:
            write_frame(tmp_path / "data" / "Cityscapes", name)
    return tmp_path / "data" / "Cityscapes"


def read_array(path: Path) -> np.ndarray:
    return np.asarray(PILImage.open(path))


def slow_depth(levels: np.ndarray, product: float) -> np.ndarray:
    depth = np.full(levels.shape, np.nan)
    for place, level in np.ndenumerate(levels):
        if level > 1 and product / ((int(level) - 1) / 256) <= 80:
            depth[place] = product / ((int(level) - 1) / 256)
    return depth


def test_rows_hold_what_the_files_hold(root):
    rows = get_benchmark("cityscapes").load(str(root.parent))
    assert {split: list(part["id"]) for split, part in rows.items()} == {
        "train": IDS["train"],
        "validation": IDS["val"],
    }
    row, features = rows["validation"][0], rows["train"].features
    assert list(features) == ["id", "image", "semseg", "depth", "semseg_classes", "derived"]
    assert all(features[column] == FEATURES[column] for column in ("image", "semseg", "depth"))
    assert features["semseg_classes"].feature.names == CLASS_NAMES[19]["semseg"]
    assert row["semseg_classes"] == [*range(19)] and row["derived"] == ["depth"]
    image = file_of(root, "leftImg8bit", NAME, "leftImg8bit.png")
    np.testing.assert_array_equal(np.asarray(row["image"]), read_array(image))
    label_ids = read_array(file_of(root, "gtFine", NAME, "gtFine_labelIds.png")).tolist()
    expected = [[TRAIN_IDS.index(index) if index in TRAIN_IDS else 255 for index in line] for line in label_ids]
    assert to_label("semseg", row["semseg"]).tolist() == expected
    levels = read_array(file_of(root, "disparity", NAME, "disparity.png"))
    depth = slow_depth(levels, 0.222126 * 2268.36)
    assert np.isnan(depth[0, :3]).all() and np.nanmax(depth) > 40
    np.testing.assert_allclose(to_label("depth", row["depth"])[0].numpy(), depth, rtol=1e-5)


def test_class_names():
    assert CLASS_NAMES[7]["semseg"] == CATEGORY_NAMES
    names = CLASS_NAMES[19]["semseg"]
    assert [names[index] for index in (0, 1, 10, 13, 18)] == ["road", "sidewalk", "sky", "car", "bicycle"]
    assert len(names) == 19


@pytest.mark.parametrize(("num_classes", "classes"), [(19, [*range(19)]), (7, CATEGORIES)])
def test_both_kinds_of_ids_give_the_same_classes(tmp_path, num_classes, classes):
    images = {"labelIds": [*TRAIN_IDS, 0, 9, 15], "labelTrainIds": [*range(19), 255, 255, 255]}
    for name, ids in images.items():
        path = tmp_path / f"a_gtFine_{name}.png"
        PILImage.fromarray(np.array([ids], np.uint8)).save(path)
        assert read_semseg(str(path), num_classes).tolist() == [[*classes, 255, 255, 255]]


def test_ids_of_other_files_are_refused(tmp_path):
    for name, index in (("labelIds", 34), ("labelTrainIds", 19)):
        path = tmp_path / f"a_gtFine_{name}.png"
        PILImage.fromarray(np.array([[index]], np.uint8)).save(path)
        with pytest.raises(ValueError, match=rf"ids must be 0\.\.{index - 1}, and 255 where unlabeled; got {index}"):
            read_semseg(str(path), 19)


def test_train_ids_are_read_where_there_are_no_label_ids(root):
    path = file_of(root, "gtFine", NAME, "gtFine_labelIds.png")
    expected = read_semseg(str(path), 19)
    PILImage.fromarray(expected).save(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    path.unlink()
    source = find_source(root)
    np.testing.assert_array_equal(source.read(source.frames["validation"][0])["semseg"], expected)


@pytest.mark.parametrize(
    ("level", "depth"), [(0, None), (1, None), (1515, None), (1517, 80.0), (257 * 64 - 63, 7.4), (65535, 1.85)]
)
def test_depth_of_a_disparity(tmp_path, level, depth):
    """1516 is where the most frequent camera sees 80 m."""
    path = tmp_path / "a_disparity.png"
    PILImage.fromarray(np.array([[level]], np.uint16)).save(path)
    value = read_depth(str(path), camera=None)
    assert value.dtype == np.float32
    assert np.isnan(value[0, 0]) if depth is None else value[0, 0] == pytest.approx(depth, rel=1e-3)


def test_disparity_of_eight_bits_is_refused(tmp_path):
    path = tmp_path / "a_disparity.png"
    PILImage.fromarray(np.array([[9]], np.uint8)).save(path)
    with pytest.raises(ValueError, match="gray levels of 16 bits.*uint8"):
        read_depth(str(path), camera=None)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"extrinsic": {"baseline": "0.2"}, "intrinsic": {"fx": 2}}']
    + [
        '{"extrinsic": {"baseline": 0}, "intrinsic": {"fx": 2}}',
        '{"extrinsic": {"baseline": NaN}, "intrinsic": {"fx": 2}}',
    ],
)
def test_broken_cameras_are_named(tmp_path, text):
    path = tmp_path / "a_camera.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} must be JSON with .*baseline and intrinsic.fx"):
        read_camera(str(path))


def test_a_camera_that_is_a_pipe_is_named(tmp_path):
    os.mkfifo(tmp_path / "a_camera.json")
    with pytest.raises(ValueError, match="must be JSON.*no regular file"):
        read_camera(str(tmp_path / "a_camera.json"))


def test_maps_whose_folder_is_missing_are_left_out(root):
    shutil.rmtree(root / "camera")
    assert "6 % farther" in find_source(root).derived["depth"]
    shutil.rmtree(root / "disparity")
    source = find_source(root)
    assert (source.columns, source.derived) == (["image", "semseg"], {})
    assert set(source.read(source.frames["train"][0])) == {"image", "semseg"}


def test_missing_parts_are_named(root):
    shutil.rmtree(root / "leftImg8bit" / "val")
    with pytest.raises(
        FileNotFoundError, match=r"needs images .*leftImg8bit/val/CITY/ID_leftImg8bit\.png; there are none"
    ):
        find_source(root)
    for folder in ("gtFine", "disparity"):
        shutil.rmtree(root / folder)
    with pytest.raises(
        FileNotFoundError, match="needs gtFine/ or disparity/ beside leftImg8bit/; .*Cityscapes has neither"
    ):
        find_source(root)
    with pytest.raises(FileNotFoundError, match="Pass the folder Cityscapes that has leftImg8bit/.*holds"):
        find_source(root / "leftImg8bit")
    with pytest.raises(ValueError, match="data_dir is None; pass the folder Cityscapes"):
        find_source(None)


def test_missing_and_broken_files_are_named(root):
    source = find_source(root)
    camera = file_of(root, "camera", NAME, "camera.json")
    camera.write_text("{}")
    disparity = file_of(root, "disparity", NAME, "disparity.png")
    with pytest.raises(BrokenFrameError, match=f"{re.escape(str(disparity))}: its camera {re.escape(str(camera))}"):
        source.read_row(source.frames["validation"][0])
    camera.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(camera))):
        check_files(source)


def test_frames_may_lack_maps_where_that_is_allowed(root):
    file_of(root, "disparity", NAME, "disparity.png").unlink()
    file_of(root, "gtFine", IDS["train"][0], "gtFine_labelIds.png").unlink()
    with pytest.raises(FileNotFoundError, match="2 are missing"):
        check_files(find_source(root))
    (root / "dataset.yaml").write_text("allow_missing: true\n")
    rows = get_benchmark("cityscapes").load(str(root))
    assert rows["validation"][0]["depth"] is None and rows["validation"][0]["derived"] == []
    assert rows["train"][0]["semseg"] is None and rows["train"][0]["depth"] is not None
    file_of(
        root, "camera", IDS["train"][0], "camera.json"
    ).unlink()  # without it, depth would be that of another camera
    with pytest.raises(FileNotFoundError, match="1 are missing.*camera.json"):
        check_files(find_source(root))


def test_a_map_of_another_size_is_refused(root):
    PILImage.fromarray(np.zeros((4, 5), np.uint16)).save(file_of(root, "disparity", NAME, "disparity.png"))
    source = find_source(root)
    with pytest.raises(BrokenFrameError, match=r"size of its image, \(8, 40\).*got \(4, 5\)"):
        source.read_row(source.frames["validation"][0])


def test_number_of_classes_is_chosen_by_dataset_kwargs(root):
    kwargs = {"num_classes": 7}
    benchmark = get_benchmark("cityscapes", root, kwargs)
    assert benchmark.task_num_labels == {"semseg": 7, "depth": 1}
    assert get_benchmark("cityscapes").task_num_labels == {"semseg": 19, "depth": 1}
    assert benchmark.count_rows(str(root), **kwargs) == {"train": 3, "validation": 1}
    rows = benchmark.load(str(root), **kwargs)["validation"]
    assert rows.features["semseg_classes"].feature.names == CATEGORY_NAMES and rows[0]["semseg_classes"] == [*range(7)]
    with pytest.raises(ValueError, match="holds other semseg classes than Cityscapes with 7"):
        benchmark.load(str(root))
    with pytest.raises(ValueError, match=r"Cityscapes has 19 or 7 classes; got num_classes=8"):
        get_benchmark("cityscapes", root, {"num_classes": 8})
    with pytest.raises(ValueError, match=r"got num_classes=\[7\]"):
        get_benchmark("cityscapes", root, {"num_classes": [7]})
    with pytest.raises(ValueError, match=r"Unknown fields of NYUDv2 \['num_classes'\]"):
        get_benchmark("nyud_v2", root, kwargs)


def test_the_command_writes_categories_at_half_the_size(root, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "FRAMES_PER_SHARD", 2)
    output = tmp_path / "prepared"
    main(["cityscapes", str(root), "--output", str(output), "--processes", "1", "--shrink", "2", "--num-classes", "7"])
    rows = load_dataset(str(output))
    assert rows["train"].num_rows == 3 and rows["train"].features["semseg_classes"].feature.names == CATEGORY_NAMES
    whole = find_source(root, num_classes=7)
    maps = whole.read(whole.frames["validation"][0])
    for column in ("semseg", "depth"):
        np.testing.assert_array_equal(np.asarray(rows["validation"][0][column]), maps[column][1::2, 1::2])
    card = (output / "README.md").read_text()
    assert "| train | 3 | 2975 |" in card and "| `depth` |" in card and "baseline * fx / disparity" in card
    assert "num_rows" not in card and str(tmp_path) not in card
    assert (
        get_benchmark("cityscapes", output, {"num_classes": 7}).load(str(output), num_classes=7)["train"].num_rows == 3
    )
    with pytest.raises(ValueError, match="holds other semseg classes than Cityscapes with 19"):
        get_benchmark("cityscapes", output).load(str(output))


def test_other_benchmarks_have_no_choice_of_classes(root):
    with pytest.raises(SystemExit, match="--num-classes is a choice of cityscapes; nyud_v2 has none"):
        main(["nyud_v2", str(root), "--verify", "--num-classes", "7"])


def test_scores_are_of_valid_pixels(root):
    """A perfect prediction has no error, whatever it says where the disparity is unknown."""
    row = get_benchmark("cityscapes").load(str(root))["validation"][0]
    semseg, depth = to_label("semseg", row["semseg"]), to_label("depth", row["depth"])
    metric = METRICS["semseg"]
    statistics = metric.statistics(semseg.masked_fill(semseg == 255, 3), semseg, 19)
    assert metric.reduce(statistics)["miou"] == 1 and metric.per_class(statistics).tolist() == [1.0] * 19
    metric = METRICS["depth"]
    scores = metric.reduce(metric.statistics(torch.nan_to_num(depth[0], nan=999.0) * 1.1, depth, 1))
    assert scores["abs_rel"] == pytest.approx(0.1, rel=1e-5)
    assert scores["rmse"] == pytest.approx(0.1 * np.sqrt(np.nanmean(depth.numpy() ** 2)), rel=1e-5)


TINY = ["input_size=[64,128]", "network_size=[32,64]", "batch_size=1", "num_workers=0", "model.hidden_size=8"]
TINY += [
    "model.decoder_hidden_sizes=[8,8,8,8]",
    "model.num_attention_heads=1",
    "model.decoder_num_attention_heads=[1,1,1,1]",
]


@pytest.mark.slow
def test_a_dry_run_of_the_recipe(root, tmp_path):
    arguments = ["--config", "swin_tiny_cityscapes", "--dry-run", f"data_dir={root}", f"output_dir={tmp_path / 'run'}"]
    result = run("train", *arguments, *TINY, "dataset_kwargs.num_classes=7")
    assert result.code == 0, result.errors
    assert "{'semseg': 7, 'depth': 1}" in result.output and "epochs of 3" in result.output
    assert not (tmp_path / "run").exists()


def test_the_recipe_sees_training_and_evaluation_images_at_the_same_scale():
    """An image that the processor shrinks for the evaluation alone would be twice as far away as in training."""
    config = TrainingConfig.load(RECIPES_DIR / "swin_tiny_cityscapes.yaml")
    model = model_config(config, get_benchmark(config.dataset))
    assert model.task_num_labels == {"semseg": 19, "depth": 1}
    assert model.task_id2label["semseg"][18] == "bicycle"
    assert model.task_loss_weights == {"semseg": 1.0, "depth": 0.1}
    content_sizes, _ = build_image_processor(config, model.backbone_config).plan_sizes([(1024, 2048)])
    assert content_sizes == [(512, 1024)] == [network_size(config)]
    assert config.input_size == [1024, 2048]
