import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor, pipeline_sem
from transformers_sem.pipeline_sem import read_image_file, to_upright_rgb

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


def random_pixels(height=50, width=70, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def assert_equal(actual, expected):
    assert list(actual) == list(expected)
    for task in expected:
        torch.testing.assert_close(actual[task], expected[task], rtol=0, atol=1e-5)


def test_predictions_equal_those_of_model_and_processor(predict, checkpoint):
    model = SEMForMultiTaskDensePrediction.from_pretrained(checkpoint).eval()
    processor = SEMImageProcessor.from_pretrained(checkpoint)
    image = Image.fromarray(random_pixels())
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    expected = processor.post_process_dense_prediction(outputs, target_sizes=[(50, 70)])[0]
    result = predict(image)
    assert list(result) == ["predictions"]
    assert_equal(result["predictions"], expected)
    assert result["predictions"]["depth"].shape == (50, 70)


def test_all_input_types_give_the_same_predictions(predict, tmp_path):
    pixels = random_pixels()
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    expected = predict(Image.fromarray(pixels))["predictions"]
    channels_first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    for image in (path, str(path), pixels, channels_first, torch.from_numpy(channels_first), {"image": pixels}):
        assert_equal(predict(image)["predictions"], expected)


def test_images_are_read_from_urls(predict, tmp_path):
    Image.fromarray(random_pixels()).save(tmp_path / "photo.png")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = predict(f"http://127.0.0.1:{server.server_port}/photo.png", timeout=20)
        server.shutdown()
    assert_equal(result["predictions"], predict(random_pixels())["predictions"])


def test_predictions_are_upright(predict, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated
    Image.fromarray(random_pixels()).save(tmp_path / "photo.jpg", exif=exif)
    assert predict(str(tmp_path / "photo.jpg"))["predictions"]["depth"].shape == (70, 50)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_list_gives_a_list_for_any_batch_size(predict, batch_size):
    images = [random_pixels(50, 70, 0), random_pixels(31, 45, 1), random_pixels(80, 60, 2)]
    results = predict(images, batch_size=batch_size)
    for image, result in zip(images, results, strict=True):
        assert_equal(result["predictions"], predict(image)["predictions"])


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_are_supported(predict, tmp_path, streaming):
    for index in range(3):
        Image.fromarray(random_pixels(seed=index)).save(tmp_path / f"{index}.png")
    rows = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path), split="train", streaming=streaming, cache_dir=tmp_path / "cache"
    )
    results = list(predict(rows, batch_size=2))
    assert len(results) == 3
    for index, result in enumerate(results):
        assert_equal(result["predictions"], predict(random_pixels(seed=index))["predictions"])


def test_color_images_are_optional(predict):
    result = predict(random_pixels(), return_images=True)
    assert list(result["images"]) == list(result["predictions"])
    assert {(image.mode, image.size) for image in result["images"].values()} == {("RGB", (70, 50))}


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (random_pixels().astype(np.float32), r"uint8 .*got float32 \(50, 70, 3\)"),
        (np.zeros((2, 50, 70, 3), np.uint8), r"got uint8 \(2, 50, 70, 3\).*list"),
        (np.zeros((0, 5, 3), np.uint8), r"got uint8 \(0, 5, 3\)"),
        ({"photo": random_pixels()}, r"column 'image'; got \['photo'\]"),
        ("/absent/photo.png", "photo.png"),
    ],
)
def test_invalid_inputs_raise(predict, image, words):
    with pytest.raises(ValueError, match=words):
        predict(image)


def test_importing_the_package_registers_the_task(predict):
    assert isinstance(predict, pipeline_sem.MultiTaskDensePredictionPipeline)
    predictions = predict(np.zeros((40, 50, 3), np.uint8))["predictions"]
    assert list(predictions) == ["semseg", "depth", "normal", "boundary"]


def test_a_saved_pipeline_loads(predict, tmp_path):
    predict.save_pretrained(tmp_path)
    loaded = pipeline(TASK, model=str(tmp_path), trust_remote_code=True)
    assert_equal(loaded(random_pixels())["predictions"], predict(random_pixels())["predictions"])


# ----------------------------------------------------------------------------------------------------------------------
# Image files


RED, BLUE = (250, 10, 20), (10, 20, 250)


def red_above_blue(size=(12, 8)):
    pixels = np.empty((size[1], size[0], 3), np.uint8)
    pixels[: size[1] // 2], pixels[size[1] // 2 :] = RED, BLUE
    return Image.fromarray(pixels)


def is_red_above_blue(image, tolerance=40):
    pixels = np.asarray(image).astype(int)
    assert image.mode == "RGB"
    return (abs(pixels[1, 5] - RED) < tolerance).all() and (abs(pixels[-2, 5] - BLUE) < tolerance).all()


def save_rotated(path, orientation):
    """Saves the image as a rotated camera does."""
    undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    red_above_blue().transpose(undo[orientation]).save(path, exif=exif, quality=95)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_images_are_upright(tmp_path, orientation):
    save_rotated(tmp_path / "photo.jpg", orientation)
    image = read_image_file(tmp_path / "photo.jpg")
    assert image.size == (12, 8) and is_red_above_blue(image)


@pytest.mark.parametrize(("mode", "ending"), [("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("P", "gif")])
def test_other_modes_are_converted_to_rgb(tmp_path, mode, ending):
    image = red_above_blue().quantize(8) if mode == "P" else red_above_blue().convert(mode)
    image.save(tmp_path / f"photo.{ending}")
    assert is_red_above_blue(read_image_file(tmp_path / f"photo.{ending}"))


def test_an_animation_is_read_as_its_first_frame(tmp_path):
    red_above_blue().save(tmp_path / "photo.gif", save_all=True, append_images=[Image.new("RGB", (12, 8), "green")])
    assert is_red_above_blue(read_image_file(tmp_path / "photo.gif"))


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_gray_is_scaled_not_clipped(tmp_path, ending):
    levels = np.linspace(0, 65535, 200).astype(np.uint16).reshape(10, 20)
    Image.fromarray(levels).save(tmp_path / f"photo.{ending}")
    image = np.asarray(read_image_file(tmp_path / f"photo.{ending}"))
    np.testing.assert_allclose(image[..., 0], levels / 257, atol=0.51)
    assert (image == image[..., :1]).all()


def test_transparent_pixels_are_white():
    image = Image.new("LA", (4, 3), (0, 0))
    image.putpixel((0, 0), (100, 255))
    pixels = np.asarray(to_upright_rgb(image))
    assert pixels[0, 0].tolist() == [100] * 3 and pixels[2, 3].tolist() == [255] * 3


def test_images_may_exceed_the_limit_of_pillow(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    red_above_blue().save(tmp_path / "photo.png")
    assert is_red_above_blue(read_image_file(tmp_path / "photo.png"))
    assert Image.MAX_IMAGE_PIXELS == 20 and not recwarn
    monkeypatch.setattr(pipeline_sem, "MAX_PIXELS", 50)
    with pytest.raises(ValueError, match=r"photo.png: an image has at most 0 million pixels; got 12 x 8. Shrink it"):
        read_image_file(tmp_path / "photo.png")


def write(content):
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (write(b""), "it is empty"),
        (write(b"some text"), "not an image"),
        (write(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"), "not an image"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.symlink_to("nowhere"), "No such file"),
        (lambda path: Image.new("F", (3, 4)).save(path, format="TIFF"), "8 bits"),
        (lambda path: Image.new("I", (3, 4), -5).save(path, format="TIFF"), "got -5 to -5"),
    ],
    ids=["empty", "text", "postscript", "folder", "dangling", "float", "negative"],
)
def test_unreadable_files_raise(tmp_path, make, words):
    path = tmp_path / "photo.jpg"
    make(path)
    with pytest.raises(ValueError, match=f"Cannot read .*photo.jpg: .*{words}"):
        read_image_file(path)


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "tif", "webp"])
def test_truncated_images_raise(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    path = tmp_path / f"photo.{ending}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="Cannot read"):
        read_image_file(path)
