"""The command `export`."""

import importlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.modeling_outputs import SEMMultiTaskOutput

from ..export.graphs import export_biases, save_constant_logits
from ..tiny import tiny_config
from .commands import error_line, run


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


def test_the_example_normalizes_as_the_image_processor_does(tmp_path):
    pytest.importorskip("onnxruntime")
    from transformers_sem.export.run_onnx import read_pixels

    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    image_processor = SEMImageProcessor(
        image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.6, 0.7], do_resize=False, do_pad=False
    )
    image_processor.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    expected = image_processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(read_pixels(tmp_path / "photo.png", settings), expected, atol=1e-6)


@pytest.mark.parametrize("image_size", [(40, 60), (50, 70), (200, 90)])
@pytest.mark.parametrize("do_resize", [True, False])
@pytest.mark.parametrize("pad_size", [None, {"height": 60, "width": 80}])
def test_the_example_resizes_as_the_image_processor_does_without_padding(tmp_path, image_size, do_resize, pad_size):
    pytest.importorskip("onnxruntime")
    from transformers_sem.export.run_onnx import read_pixels

    rows, columns = np.mgrid[: image_size[0], : image_size[1]]  # a ramp: libraries round a little differently
    image = Image.fromarray(np.stack([rows, columns, rows + columns], axis=-1).astype(np.uint8) // 2)
    image.save(tmp_path / "photo.png")
    image_processor = SEMImageProcessor(
        size={"height": 45, "width": 50}, do_resize=do_resize, do_pad=True, pad_size=pad_size
    )
    image_processor.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    [(height, width)], [(padded_height, padded_width)] = image_processor.plan_sizes([image_size])
    top, left = (padded_height - height) // 2, (padded_width - width) // 2
    expected = image_processor(image, return_tensors="np")["pixel_values"]
    pixels = read_pixels(tmp_path / "photo.png", settings)
    np.testing.assert_allclose(pixels, expected[..., top : top + height, left : left + width], atol=0.03)


@pytest.mark.parametrize(
    ("image_size", "padded_size"), [((40, 60), (64, 96)), ((41, 57), (64, 90)), ((64, 90), (64, 90))]
)
def test_the_example_pads_and_crops_as_the_image_processor_does(image_size, padded_size):
    pytest.importorskip("onnxruntime")
    from transformers_sem.export.run_onnx import crop, pad

    pixels = np.random.default_rng(0).random((3, *image_size), np.float32)
    sizes = dict(zip(("height", "width"), padded_size, strict=True))
    image_processor = SEMImageProcessor(
        do_resize=False, do_rescale=False, do_normalize=False, do_pad=True, pad_size=sizes
    )
    expected = image_processor(torch.from_numpy(pixels), return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(pad(pixels[None], padded_size), expected)

    num_rows, num_columns = (-(-edge // 4) for edge in padded_size)
    rows, columns = np.mgrid[:num_rows, :num_columns].astype(np.float32)
    logits = np.stack([(rows + 0.5) / num_rows, (columns + 0.5) / num_columns])  # the place in the padded image
    cropped = crop(logits, image_size, padded_size)
    outputs = SEMMultiTaskOutput(logits={"depth": torch.from_numpy(logits)[:, None]})
    maps = image_processor.post_process_dense_prediction(outputs, target_sizes=[image_size] * 2)
    expected = torch.stack([one["depth"] for one in maps])[None]
    expected = torch.nn.functional.interpolate(expected, size=cropped.shape[1:], mode="bilinear")[0].numpy()
    assert crop(np.zeros((1, 107, 160), np.float32), (426, 500), (426, 640)).shape == (1, 107, 125)
    # the example leaves out what lies beyond the edges of the image
    np.testing.assert_allclose(cropped[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=2e-3)


def test_the_example_pads_for_a_graph_of_one_size(tmp_path):
    pytest.importorskip("onnxruntime")
    from transformers_sem.export import run_onnx

    for name, size in (("free", None), ("fixed", (64, 90))):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(run_onnx.__file__, folder)
        save_constant_logits(folder / "model.onnx", {"depth": [2.0]}, size)
        pad_size = {"height": 64, "width": 90}
        SEMImageProcessor(do_resize=False, do_pad=True, pad_size=pad_size).save_pretrained(folder)
        Image.new("RGB", (57, 41)).save(folder / "photo.png")
        subprocess.run([sys.executable, folder / "run_onnx.py", folder / "photo.png"], check=True, timeout=120)
        with np.load(folder / "photo.npz") as maps:
            np.testing.assert_allclose(maps["depth"], np.full((1, 11, 15), 2.0))


def test_the_example_refuses_floating_point_pixels(tmp_path):
    pytest.importorskip("onnxruntime")
    from transformers_sem.export.run_onnx import read_rgb

    Image.new("F", (4, 3), 1000.0).save(tmp_path / "depth.tiff")
    with pytest.raises(ValueError, match="floating point pixels"):
        read_rgb(tmp_path / "depth.tiff")


@pytest.mark.parametrize(
    ("size", "message"), [(("100000", "9"), "1 to 10000 pixels"), (("2", "9"), "one patch, 4 x 4")]
)
def test_sizes_that_no_image_may_have(tmp_path, size, message):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    SEMForMultiTaskDensePrediction(tiny_config()).save_pretrained(tmp_path / "model")
    SEMImageProcessor().save_pretrained(tmp_path / "model")
    result = run("export", "--model", tmp_path / "model", "--output", tmp_path / "onnx", "--size", *size)
    assert message in error_line(result)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
def test_a_graph_holds_for_any_size_and_batch(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from transformers_sem.export.onnx import export_graph

    model = SEMForMultiTaskDensePrediction(tiny_config()).eval()
    export_graph(model, tmp_path / "model.onnx", size=None)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for shape in ((1, 3, 97, 131), (3, 3, 32, 45), (2, 3, 64, 64), (1, 3, 5, 9)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            logits = model(images).logits
        for expected, exported in zip(
            logits.values(), session.run(None, {"pixel_values": images.numpy()}), strict=True
        ):
            np.testing.assert_allclose(exported, expected.numpy(), atol=1e-3)
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    assert (tmp_path / "model.onnx").stat().st_size < 1_000_000
    records = [*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, graph]
    assert not any(record.metadata_props or record.doc_string for record in records)  # where each node was traced
    assert any(node.name.startswith("float32_") for node in graph.node)


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


def test_options_that_do_not_go_together_are_refused_before_the_model_is_read(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "empty").mkdir()
    rules = {
        ("--output", tmp_path / "empty"): "--output must be a new folder",
        ("--web", tmp_path / "empty"): "--web must be a new folder",
        ("--output", tmp_path / "onnx", "--calibration", tmp_path / "empty"): "--calibration is for int8",
        ("--output", tmp_path / "onnx", "--runtime", tmp_path / "empty"): "--runtime is for the page of --web",
        ("--web", tmp_path / "page", "--runtime", tmp_path / "empty"): "npm install @huggingface/transformers",
        (
            "--output",
            tmp_path / "onnx",
            "--calibration",
            tmp_path / "none",
        ): "--calibration must be a folder of images",
    }
    for options, rule in rules.items():
        assert rule in error_line(run("export", "--model", tmp_path / "no_model", *options))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.fixture
def zero(tmp_path):
    """A model on scenes that predicts the same everywhere, because its last layers have no weights."""
    model = SEMForMultiTaskDensePrediction(tiny_config(task_num_labels={"depth": 1, "normal": 3}))
    for index, (_, head) in enumerate(model.heads.items(), start=1):
        head.classifier.weight.data.zero_()
        head.classifier.bias.data.fill_(index)
    model.save_pretrained(tmp_path / "model")
    SEMImageProcessor(size={"height": 32, "width": 64}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_every_precision_is_written_compared_and_scored(zero, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    folder = importlib.import_module("transformers_sem.export.folder")
    monkeypatch.setattr(folder, "export_graph", export_biases)
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(tmp_path / "photos" / "photo.png")
    output = tmp_path / "onnx"
    settings = ["dataset=scenes", "dataset_kwargs={num_train: 1, num_validation: 2, height: 32, width: 64}"]
    options = ["--precisions", "fp16", "int8", "--calibration", tmp_path / "photos", "--evaluate", *settings]
    result = run("export", "--model", zero, "--output", output, *options)
    assert result.code == 0, result.errors
    report = json.loads((output / "export.json").read_text())
    graphs = report["graphs"]
    assert {name: graph["file"] for name, graph in graphs.items()} == {
        "fp32": "model.onnx",
        "fp16": "model_fp16.onnx",
        "int8": "model_int8.onnx",
    }
    assert all((output / graph["file"]).is_file() for graph in graphs.values())
    assert list(graphs["fp32"]["largest_difference"]) == ["32 x 64", "17 x 35"]
    assert graphs["fp32"]["largest_difference"]["32 x 64"] == 0
    assert 0 < graphs["fp32"]["scores"]["depth/rmse"] < 10
    for graph in graphs.values():
        assert graph["scores"] == pytest.approx(graphs["fp32"]["scores"], abs=0.1)
    assert "depth/rmse" in result.output and "model_int8.onnx: " in result.output
    assert "commit" in report["environment"] and (output / "run_onnx.py").is_file()


def test_a_dataset_of_other_classes_is_refused_before_the_export(tmp_path):
    pytest.importorskip("onnx")
    names = {index: f"class {index}" for index in range(15)}  # as many as those of the dataset
    config = tiny_config(task_num_labels={"semseg": 15}, task_id2label={"semseg": names})
    SEMForMultiTaskDensePrediction(config).save_pretrained(tmp_path / "model")
    SEMImageProcessor(size={"height": 32, "width": 64}).save_pretrained(tmp_path / "model")
    settings = ["dataset=scenes", "dataset_kwargs={num_train: 1, num_validation: 1, height: 32, width: 64}"]
    result = run("export", "--model", tmp_path / "model", "--output", tmp_path / "onnx", "--evaluate", *settings)
    assert "Those of 'semseg' are ['class 0'" in error_line(result) and not (tmp_path / "onnx").exists()


def test_a_page_has_the_layout_of_transformers_js(zero, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    folder = importlib.import_module("transformers_sem.export.folder")
    monkeypatch.setattr(folder, "export_graph", export_biases)
    result = run("export", "--model", zero, "--web", tmp_path / "page")
    assert result.code == 0, result.errors
    names = {
        path.relative_to(tmp_path / "page").as_posix() for path in (tmp_path / "page").rglob("*") if path.is_file()
    }
    assert {"index.html", "page.js", "README.md", "config.json", "preprocessor_config.json", "export.json"} <= names
    assert {"onnx/model.onnx", "onnx/model_fp16.onnx"} <= names and "run_onnx.py" not in names
    config = json.loads((tmp_path / "page" / "config.json").read_text())
    assert config["model_type"] == "sem" and config["transformers.js_config"] == {"dtype": "fp32"}
    assert SEMForMultiTaskDensePrediction.config_class.from_pretrained(tmp_path / "page").tasks == ["depth", "normal"]


def test_int8_of_convolutions_needs_images(tmp_path):
    pytest.importorskip("onnxruntime")
    backbone = {"model_name": "test_resnet", "out_indices": [1, 2, 3, 4]}
    SEMForMultiTaskDensePrediction(tiny_config(backbone_config=backbone)).save_pretrained(tmp_path / "model")
    SEMImageProcessor().save_pretrained(tmp_path / "model")
    refused = run("export", "--model", tmp_path / "model", "--output", tmp_path / "onnx", "--precisions", "int8")
    assert "Pass --calibration FOLDER" in error_line(refused) and not (tmp_path / "onnx").exists()
