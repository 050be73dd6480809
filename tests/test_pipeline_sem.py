import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor

from .tiny import tiny_config


TASK = "multi-task-dense-prediction"
SIZE = {"height": 64, "width": 96}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    SEMForMultiTaskDensePrediction(tiny_config()).save_pretrained(folder)
    SEMImageProcessor(size=SIZE).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def predict(checkpoint):
    return pipeline(TASK, model=checkpoint)


def picture(height=50, width=70, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def assert_equal(actual, expected):
    assert list(actual) == list(expected)
    for task in expected:
        torch.testing.assert_close(actual[task], expected[task], rtol=0, atol=1e-5)


def test_it_gives_what_model_and_processor_give(predict, checkpoint):
    model = SEMForMultiTaskDensePrediction.from_pretrained(checkpoint).eval()
    processor = SEMImageProcessor.from_pretrained(checkpoint)
    image = Image.fromarray(picture())
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    expected = processor.post_process_dense_prediction(outputs, target_sizes=[(50, 70)])[0]
    result = predict(image)
    assert list(result) == ["predictions"]
    assert_equal(result["predictions"], expected)
    assert result["predictions"]["depth"].shape == (50, 70)


def test_every_kind_of_image_is_the_same_image(predict, tmp_path):
    pixels = picture()
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    expected = predict(Image.fromarray(pixels))["predictions"]
    channels_first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    for image in (path, str(path), pixels, channels_first, torch.from_numpy(channels_first), {"image": pixels}):
        assert_equal(predict(image)["predictions"], expected)


def test_an_image_from_the_web(predict, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "photo.png")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = predict(f"http://127.0.0.1:{server.server_port}/photo.png", timeout=20)
        server.shutdown()
    assert_equal(result["predictions"], predict(picture())["predictions"])


def test_photos_are_upright(predict, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # held on its side
    Image.fromarray(picture()).save(tmp_path / "photo.jpg", exif=exif)
    assert predict(str(tmp_path / "photo.jpg"))["predictions"]["depth"].shape == (70, 50)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_list_gives_a_list_in_any_batches(predict, batch_size):
    images = [picture(50, 70, 0), picture(31, 45, 1), picture(80, 60, 2)]
    results = predict(images, batch_size=batch_size)
    for image, result in zip(images, results, strict=True):
        assert_equal(result["predictions"], predict(image)["predictions"])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_is_a_data_set(predict, tmp_path, streaming):
    for index in range(3):
        Image.fromarray(picture(seed=index)).save(tmp_path / f"{index}.png")
    rows = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path), split="train", streaming=streaming, cache_dir=tmp_path / "cache"
    )
    results = list(predict(rows, batch_size=2))
    assert len(results) == 3
    for index, result in enumerate(results):
        assert_equal(result["predictions"], predict(picture(seed=index))["predictions"])


def test_maps_are_coloured_on_request(predict):
    result = predict(picture(), return_images=True)
    assert list(result["images"]) == list(result["predictions"])
    assert {(image.mode, image.size) for image in result["images"].values()} == {("RGB", (70, 50))}


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (picture().astype(np.float32), r"uint8 .*got float32 \(50, 70, 3\)"),
        (np.zeros((2, 50, 70, 3), np.uint8), r"got uint8 \(2, 50, 70, 3\).*list"),
        (np.zeros((0, 5, 3), np.uint8), r"got uint8 \(0, 5, 3\)"),
        ({"photo": picture()}, r"column 'image'; got \['photo'\]"),
        ("/absent/photo.png", "photo.png"),
    ],
)
def test_what_is_no_image_is_named(predict, image, words):
    with pytest.raises(ValueError, match=words):
        predict(image)


def test_the_task_is_known_after_importing_the_package(checkpoint):
    program = f"""
import numpy, transformers_sem
from transformers import pipeline
predict = pipeline("{TASK}", model={checkpoint!r})
print(*predict(numpy.zeros((40, 50, 3), numpy.uint8))["predictions"])
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["semseg", "depth", "normal", "boundary"]


def test_a_saved_pipeline_loads(predict, tmp_path):
    predict.save_pretrained(tmp_path)
    loaded = pipeline(TASK, model=str(tmp_path), trust_remote_code=True)
    assert_equal(loaded(picture())["predictions"], predict(picture())["predictions"])
