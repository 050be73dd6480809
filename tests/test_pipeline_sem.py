import base64
import importlib
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
from transformers_sem.image_files import read_image_file

from .tiny import tiny_config


TASK = "multi-task-dense-prediction"
SIZE = {"height": 64, "width": 96}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model = SEMForMultiTaskDensePrediction(tiny_config())
    # Scaling the short normals of an untrained model to unit length would enlarge the rounding of a batch
    model.heads["normal"].classifier.bias.data.copy_(torch.tensor([0.3, -0.5, 0.8]))
    model.save_pretrained(folder)
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


def test_images_are_read_from_urls_as_from_files(predict, tmp_path):
    Image.fromarray(random_pixels()[..., 0].astype(np.uint16) * 250).save(tmp_path / "photo.png")
    (tmp_path / "photo.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        result = predict(f"{address}/photo.png", timeout=20)
        for name, words in (("photo.eps", "not an image of JPEG"), ("absent.png", "404")):
            with pytest.raises(ValueError, match=f"Cannot read {address}/{name}: .*{words}"):
                predict(f"{address}/{name}", timeout=20)
        server.shutdown()
    assert_equal(result["predictions"], predict(tmp_path / "photo.png")["predictions"])
    text = base64.b64encode((tmp_path / "photo.png").read_bytes()).decode()
    assert_equal(predict(f"data:image/png;base64,{text}")["predictions"], result["predictions"])


def image_files(folder):
    """One image in files of many modes, orientations and depths, and with damaged metadata."""
    pixels, exif = random_pixels(), Image.Exif()
    image, mask = Image.fromarray(pixels), Image.fromarray(pixels[..., 0])
    exif[0x0112], exif[0x010F] = 6, "camera"
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    for mode in ("1", "L", "P", "LA", "RGBA"):
        converted = image.convert(mode)
        if mode in ("LA", "RGBA"):
            converted.putalpha(mask)
        converted.save(folder / f"{mode}.png", exif=exif)
    image.convert("P").save(folder / "transparent.png", transparency=7)
    image.convert("CMYK").save(folder / "CMYK.jpg")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(folder / "16_bits.png", exif=exif)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(
        folder / "16_bits.tif", exif=exif, compression="tiff_lzw"
    )
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        image.save(folder / f"orientation_{orientation}.jpg", exif=exif)
    content = bytearray((folder / "orientation_6.jpg").read_bytes())
    offset = content.index(b"\x87\x69")  # the pointer to a part of the metadata
    content[offset + 8 : offset + 12] = b"\xff\xff\xff\xff"
    (folder / "damaged.jpg").write_bytes(content)
    return sorted(folder.iterdir())


def test_a_file_has_the_same_pixels_everywhere(predict, tmp_path):
    onnx = pytest.importorskip("onnxruntime") and importlib.import_module("transformers_sem.export.run_onnx")
    processor = SEMImageProcessor(do_resize=False)
    files = image_files(tmp_path)
    assert len(files) == 18
    for path in files:
        read = read_image_file(path)
        assert (read.size == (50, 70)) == (
            path.stem not in ("transparent", "CMYK", *map("orientation_{}".format, range(1, 5)))
        )
        expected = processor(np.asarray(read), return_tensors="pt")["pixel_values"]
        for image in (path, str(path), Image.open(path), np.asarray(onnx.read_rgb(path))):
            found = processor(image, return_tensors="pt")["pixel_values"]
            torch.testing.assert_close(found, expected, rtol=0, atol=0, msg=path.name)
        resized = predict.image_processor(read, return_tensors="pt")["pixel_values"]
        for image in (str(path), Image.open(path), {"image": Image.open(path)}):
            inputs = predict.preprocess(image)
            torch.testing.assert_close(inputs["pixel_values"], resized, rtol=0, atol=0, msg=path.name)
            assert inputs["target_size"].tolist() == [[read.height, read.width]]


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
        (random_pixels().astype(np.float32) / 255, r"levels 0\.\.255.*got 0 to 1\. .*do_rescale=False"),
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
