"""Images and maps stay aligned on the way in, and predictions find the way back to the photo, to the pixel."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from transformers import AutoImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from transformers_sem import TASKS, SEMImageProcessor, image_processing_sem
from transformers_sem.image_processing_sem import center_padding, predict_map, shrink_to_fit
from transformers_sem.losses import cross_entropy
from transformers_sem.modeling_sem import SEMMultiTaskOutput
from transformers_sem.task_kinds import CLASS_IDS, METRES
from transformers_sem.tasks import TaskSpec, register_task, to_label

from .samples import random_labels, random_logits


PAD_ONLY = {"do_resize": False, "do_pad": True}


def size_of(height, width):
    return {"height": height, "width": width}


def random_image(height=40, width=60):
    return torch.randint(256, (height, width, 3), dtype=torch.uint8).numpy()


def normalized(image):
    """`(height, width, 3)` uint8 -> `(3, height, width)`."""
    values = (image / 255 - np.array(IMAGENET_DEFAULT_MEAN)) / np.array(IMAGENET_DEFAULT_STD)
    return torch.from_numpy(values.transpose(2, 0, 1)).float()


def random_maps(size, num_images=1):
    return {task: list(random_labels(task, num_images, size)) for task in TASKS}


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def is_invalid(task, label):
    invalid_value = TASKS[task].kind.invalid_value
    return label.isnan() if np.isnan(invalid_value) else label == invalid_value


# Images


@pytest.mark.parametrize(
    "images",
    [
        lambda image: Image.fromarray(image),
        lambda image: image,
        lambda image: image.transpose(2, 0, 1),
        lambda image: torch.from_numpy(image).permute(2, 0, 1),
        lambda image: torch.from_numpy(image),
        lambda image: [Image.fromarray(image)],
        lambda image: [torch.from_numpy(image).permute(2, 0, 1)],
        lambda image: torch.from_numpy(image).permute(2, 0, 1)[None],
        lambda image: image[None],
        lambda image: Image.fromarray(np.dstack([image, np.full(image.shape[:2], 255, dtype=np.uint8)])),
    ],
    ids=["PIL", "HWC", "CHW", "tensor CHW", "tensor HWC", "list of PIL", "list of tensor", "BCHW", "BHWC", "RGBA"],
)
def test_kinds_of_images(images):
    image = random_image()
    pixel_values = SEMImageProcessor(do_resize=False)(images(image), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values, normalized(image)[None])


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "CMYK"])
def test_images_without_rgb(mode):
    image = Image.fromarray(random_image()).convert(mode)
    pixel_values = SEMImageProcessor(do_resize=False)(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values, normalized(np.asarray(image.convert("RGB")))[None])


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_grey_arrays_become_rgb(kind):
    gray = random_image()[..., 0]
    pixel_values = SEMImageProcessor(do_resize=False)(kind(gray[None]), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values, normalized(np.repeat(gray[..., None], 3, axis=-1))[None])


@pytest.mark.parametrize(
    "image",
    [
        lambda image: image[::2, ::-1],
        lambda image: image[..., ::-1][..., ::-1],
        lambda image: image.astype(">f4"),
        lambda image: image.astype(np.int32),
        lambda image: torch.from_numpy(image).double(),
        lambda image: image.astype(np.longdouble),
        lambda image: np.dstack([image, np.full(image.shape[:2], 255)]).astype(np.float32),
    ],
    ids=["negative strides", "from OpenCV", "byte order", "int32", "double", "long double", "RGBA float"],
)
def test_layouts_of_arrays(image):
    pixels = random_image()
    expected = normalized(pixels[::2, ::-1] if image(pixels).shape[0] == 20 else pixels)[None]
    pixel_values = SEMImageProcessor(do_resize=False)(image(pixels), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values, expected)


def test_gray_arrays_without_channels():
    gray = random_image()[..., 0]
    processor = SEMImageProcessor(do_resize=False)
    expected = processor(Image.fromarray(gray), return_tensors="pt")["pixel_values"]
    assert_same(processor(gray, return_tensors="pt")["pixel_values"], expected)
    assert_same(processor([gray, gray], return_tensors="pt")["pixel_values"][1:], expected)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (random_image() / 255, "levels 0..255, which are rescaled to [0, 1]; got 0 to 1. Pass do_rescale=False"),
        (np.full((6, 7, 3), np.nan), "got nan to nan"),
        (np.full((6, 7, 3), -1.0), "got -1 to -1"),
        (random_image().astype(np.uint16) * 257, "uint8 levels 0..255; got torch.uint16"),
        (np.ones((6, 7, 3), dtype=bool), "got torch.bool from 1 to 1"),
        (np.full((6, 7, 3), 256), "got torch.int64 from 256 to 256"),
        (np.zeros((6, 7, 2), dtype=np.uint8), "1, 3 or 4 channels"),
        (np.zeros((0, 5, 3), dtype=np.uint8), "at least one pixel; got uint8 (0, 5, 3)"),
        (np.zeros((6, 7, 3), dtype=object), "holds numbers; got object"),
        (Image.new("F", (4, 5)), "floating-point values"),
        (np.ma.masked_array(random_image(), mask=True), "holds numbers; got MaskedArray"),
        (torch.zeros(3, 6, 7).to_sparse(), "a dense tensor that holds numbers; got torch.float32, torch.sparse_coo"),
        (torch.zeros(3, 6, 7, device="meta"), "on meta"),
        (torch.zeros(3, 6, 7, dtype=torch.complex64), "got torch.complex64"),
        (np.full((6, 7, 4), -1.0), "got -1 to -1"),
        (Image.new("RGB", (0, 5)), "at least one pixel; got 0 x 5"),
        (Image.new("La", (4, 5)), "mode La cannot be converted to RGB"),
        ([], "empty list"),
        (np.zeros((0, 4, 5, 3), dtype=np.uint8), "empty list"),
        (
            [random_image(6, 7), random_image(7, 6)],
            "one size; got (height, width) [(6, 7), (7, 6)]. Set do_resize=True",
        ),
        (None, "got NoneType"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "image",
)
def test_images_that_cannot_be_read_are_refused(image, words):
    with pytest.raises(ValueError) as error:
        SEMImageProcessor(do_resize=False)(image, return_tensors="pt")
    assert words in str(error.value)


def test_an_array_whose_channels_may_be_first_or_last_is_refused():
    """Read as RGBA, an image of four rows would silently be another one; tensors have their channels first."""
    image = random_image(4, 3)
    processor = SEMImageProcessor(do_resize=False)
    with pytest.raises(ValueError, match=r"channels first or last; got uint8 \(4, 3, 3\).*input_data_format="):
        processor(image)
    expected = normalized(image)
    for found in (
        processor(image, input_data_format="channels_last"),
        processor(torch.from_numpy(image).permute(2, 0, 1)),
    ):
        torch.testing.assert_close(found["pixel_values"][0], expected)


def test_transparent_floating_point_levels_are_white():
    levels = np.full((4, 6, 7), 51.0)
    levels[3] = np.array([0, 255, 102]).repeat(14).reshape(6, 7)
    pixel_values = SEMImageProcessor(do_resize=False, do_normalize=False)(levels, return_tensors="pt")["pixel_values"]
    expected = torch.tensor([1.0, 0.2, 0.68]).repeat_interleave(14).view(1, 6, 7).expand(1, 3, 6, 7)
    torch.testing.assert_close(pixel_values, expected)


def test_values_that_are_not_finite_are_refused_without_rescaling_too():
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite numbers; got"):
            SEMImageProcessor(do_resize=False)(np.full((6, 7, 3), value), do_rescale=False)


def test_values_in_0_to_1_without_rescaling():
    image = random_image()
    processor = SEMImageProcessor(do_resize=False)
    pixel_values = processor(image / 255, do_rescale=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values, normalized(image)[None])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, orientation):
    exif, path = Image.Exif(), tmp_path / "photo.png"
    exif[0x0112] = orientation
    Image.fromarray(random_image()).save(path, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(path))
    processor = SEMImageProcessor(do_resize=False)
    expected = processor(np.asarray(upright), return_tensors="pt")["pixel_values"]
    for image in (Image.open(path), str(path), path, Image.open(path).convert("RGB"), processor.read_image(path)):
        assert_same(processor(image, return_tensors="pt")["pixel_values"], expected)


def test_the_default_size_is_the_papers():
    images = [random_image(30, 50), random_image(50, 30)]
    assert SEMImageProcessor()(images, return_tensors="pt")["pixel_values"].shape == (2, 3, 448, 576)


def test_steps_can_be_switched_off_for_one_call():
    image = random_image()
    processor = SEMImageProcessor(do_resize=False)
    batch = processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")
    assert_same(batch["pixel_values"], torch.from_numpy(image).permute(2, 0, 1)[None])
    torch.testing.assert_close(processor(image, return_tensors="pt")["pixel_values"], normalized(image)[None])


@pytest.mark.parametrize(("return_tensors", "kind"), [("pt", torch.Tensor), ("np", np.ndarray), (None, list)])
def test_kinds_of_output(return_tensors, kind):
    batch = SEMImageProcessor(size=size_of(8, 12))(
        [random_image()] * 2, maps=random_maps((40, 60), 2), return_tensors=return_tensors
    )
    assert type(batch["pixel_values"]) is kind
    assert {type(labels) for labels in batch["labels"].values()} == {kind}
    assert {len(labels) for labels in batch["labels"].values()} == {2}


# Images and maps together


def two_halves(split):
    """A photo that is white right of `split`, and maps that say so."""
    right = np.zeros((40, 60), dtype=bool)
    right[:, split:] = True
    image = np.repeat(255 * right[..., None], 3, axis=-1).astype(np.uint8)
    facing = np.where(right, 1.0, -1.0)
    maps = {
        "semseg": right.astype(np.uint8),
        "depth": 1.0 + right,
        "normal": np.stack([facing, 0 * facing, 0 * facing]),
        "boundary": right.astype(float),
        "saliency": right.astype(np.uint8),
    }
    return image, maps


@pytest.mark.parametrize(
    "settings",
    [
        {"size": size_of(80, 120)},
        {"size": size_of(32, 96)},
        {"size": size_of(20, 30)},
        {"size": size_of(40, 120), "do_pad": True, "pad_size": size_of(51, 140)},
        {**PAD_ONLY, "pad_size": size_of(47, 64)},
        {**PAD_ONLY, "pad_size": size_of(30, 30)},
    ],
    ids=str,
)
def test_maps_stay_aligned_with_the_image(settings):
    image, maps = two_halves(split=24)
    batch = SEMImageProcessor(**settings)(image, maps=maps, return_tensors="pt", do_normalize=False)
    ids, white = batch["labels"]["semseg"][0], batch["pixel_values"][0, 0]
    inside = ids != 255
    assert ((white - ids).abs() < 0.5)[inside].float().mean() > 0.97
    assert_same(batch["labels"]["depth"][0, 0][inside], 1.0 + ids[inside])
    assert_same(batch["labels"]["boundary"][0][inside], ids[inside].float())
    assert_same(batch["labels"]["saliency"][0], ids)
    facing = batch["labels"]["normal"][0, 0]
    known = facing.isfinite()
    assert (facing.sign() == 2 * ids - 1)[inside & known].float().mean() > 0.97
    assert_same(batch["labels"]["depth"][0, 0].isnan(), ~inside)
    assert (white[~inside] == 0).all()


@pytest.mark.parametrize("task", list(TASKS))
def test_resized_labels_keep_what_the_task_allows(task):
    label = random_labels(task, 1, (40, 60))[0]
    batch = SEMImageProcessor(size=size_of(64, 72))(random_image(), maps={task: [label]}, return_tensors="pt")
    resized = batch["labels"][task][0]
    assert resized.dtype == TASKS[task].dtype
    if task == "normal":
        lengths = resized.norm(dim=0)
        torch.testing.assert_close(lengths[lengths.isfinite()], torch.ones_like(lengths[lengths.isfinite()]))
        return
    rows, columns = (torch.arange(64) + 0.5) * 40 / 64, (torch.arange(72) + 0.5) * 60 / 72
    assert_same(resized, label[..., rows.long()[:, None], columns.long()])


def test_maps_without_resizing_are_the_labels():
    maps = random_maps((40, 60))
    labels = SEMImageProcessor(do_resize=False)(random_image(), maps=maps, return_tensors="pt")["labels"]
    assert list(labels) == list(TASKS)
    for task, label in labels.items():
        torch.testing.assert_close(label[0], maps[task][0], equal_nan=True)


def test_maps_may_be_images_arrays_and_tensors_single_or_batched():
    ids = torch.randint(7, (2, 40, 60))
    depth = torch.rand(2, 1, 40, 60)
    processor = SEMImageProcessor(do_resize=False)
    kinds = {
        "semseg": [Image.fromarray(image.numpy().astype(np.uint8)) for image in ids],
        "parsing": ids,
        "depth": depth.numpy(),
    }
    labels = processor([random_image()] * 2, maps=kinds, return_tensors="pt")["labels"]
    assert_same(labels["semseg"], ids)
    assert_same(labels["parsing"], ids)
    assert_same(labels["depth"], depth)
    for single in (ids[0], ids[0].numpy(), Image.fromarray(ids[0].numpy().astype(np.uint8)), ids[:1]):
        batch = processor(random_image(), maps={"semseg": single}, return_tensors="pt")
        assert_same(batch["labels"]["semseg"], ids[:1])


# Padding


def test_padding_is_centered_and_invalid():
    image, maps = random_image(), random_maps((40, 60))
    batch = SEMImageProcessor(**PAD_ONLY, pad_size=size_of(45, 63))(image, maps=maps, return_tensors="pt")
    inside = torch.zeros(45, 63, dtype=torch.bool)
    inside[2:42, 1:61] = True  # the odd row and column are below and right
    torch.testing.assert_close(batch["pixel_values"][0, :, 2:42, 1:61], normalized(image))
    assert (batch["pixel_values"][..., ~inside] == 0).all()
    for task, labels in batch["labels"].items():
        torch.testing.assert_close(labels[0, ..., 2:42, 1:61], maps[task][0], equal_nan=True)
        assert is_invalid(task, labels[..., ~inside]).all()


def test_images_are_padded_to_the_largest_of_the_batch():
    images = [random_image(40, 60), random_image(51, 33)]
    maps = {"semseg": [np.zeros(image.shape[:2], dtype=np.uint8) for image in images]}
    batch = SEMImageProcessor(**PAD_ONLY)(images, maps=maps, return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 51, 60)
    assert [(labels == 0).sum().item() for labels in batch["labels"]["semseg"]] == [40 * 60, 51 * 33]


def test_too_large_images_are_shrunk_before_padding():
    images = [np.full((100, 200, 3), 255, dtype=np.uint8), np.full((20, 10, 3), 255, dtype=np.uint8)]
    maps = {"semseg": [np.zeros(image.shape[:2], dtype=np.uint8) for image in images]}
    processor = SEMImageProcessor(**PAD_ONLY, pad_size=size_of(64, 64))
    batch = processor(images, maps=maps, return_tensors="pt", do_normalize=False)
    wide, small = batch["pixel_values"][:, 0]
    assert (wide[16:48] > 0.99).all()
    assert (wide[:16] == 0).all() and (wide[48:] == 0).all()
    assert (small > 0).sum() == 20 * 10
    assert_same(batch["labels"]["semseg"] == 0, batch["pixel_values"][:, 0] > 0)


@pytest.mark.parametrize(
    ("size", "largest", "expected"),
    [
        ((40, 60), (64, 64), (40, 60)),
        ((100, 200), (64, 64), (32, 64)),
        ((200, 100), (64, 64), (64, 32)),
        ((64, 65), (64, 64), (63, 64)),
        ((1000, 2), (64, 64), (64, 1)),
    ],
)
def test_shrinking_keeps_the_shape(size, largest, expected):
    assert shrink_to_fit(size, largest) == expected


def test_padding_adds_up():
    for extra_rows in range(4):
        left, top, right, bottom = center_padding((10, 20), (10 + extra_rows, 25))
        assert (top + bottom, left + right) == (extra_rows, 5)
        assert 0 <= bottom - top <= 1 and right - left == 1


def test_padded_images_are_stretched_alike():
    """An image of 40 x 60 in a field of 80 x 80 becomes the middle of 20 x 40."""
    size, pad_size = size_of(20, 40), size_of(80, 80)
    processor = SEMImageProcessor(size=size, do_pad=True, pad_size=pad_size)
    image, depth = np.full((40, 60, 3), 255, np.uint8), torch.full((1, 40, 60), 3.0)
    batch = processor(image, maps={"depth": depth}, return_tensors="pt", do_normalize=False)
    inside = torch.zeros(20, 40, dtype=torch.bool)
    inside[5:15, 5:35] = True
    assert_same(batch["pixel_values"][0] > 0.99, inside.expand(3, -1, -1))
    assert_same(batch["labels"]["depth"][0, 0].isfinite(), inside)
    outputs = outputs_of(depth=batch["labels"]["depth"].nan_to_num(0.0))
    (prediction,) = processor.post_process_dense_prediction(outputs, target_sizes=[(40, 60)])
    assert_same(prediction["depth"][5:-5, 5:-5], depth[0, 5:-5, 5:-5])
    # a larger image is shrunk into the field first
    large = processor(np.full((80, 160, 3), 255, np.uint8), return_tensors="pt", do_normalize=False)["pixel_values"]
    assert_same(large[0, 0] > 0.99, (torch.arange(20) // 5 % 3 > 0)[:, None].expand(-1, 40))


# The way back


def logits_of_ids(ids, num_labels):
    return F.one_hot(ids, num_labels).movedim(-1, -3).float()


def outputs_of(**logits):
    return SEMMultiTaskOutput(logits=logits)


@pytest.mark.parametrize("sizes", [[(40, 60)], [(40, 60), (33, 21), (45, 63)]], ids=str)
def test_padding_is_taken_off_exactly(sizes):
    maps = [torch.randint(7, size) for size in sizes]
    processor = SEMImageProcessor(**PAD_ONLY, pad_size=size_of(45, 63))
    batch = processor([random_image(*size) for size in sizes], maps={"parsing": maps}, return_tensors="pt")
    padded = batch["labels"]["parsing"]
    outputs = outputs_of(parsing=logits_of_ids(padded.where(padded != 255, 0), 7), depth=padded[:, None].float())
    predictions = processor.post_process_dense_prediction(outputs, target_sizes=sizes)
    for prediction, ids in zip(predictions, maps, strict=True):
        assert_same(prediction["parsing"], ids)
        assert_same(prediction["depth"], ids.float())


def test_padding_to_the_largest_of_the_batch_is_taken_off_exactly():
    sizes = [(40, 60), (51, 33)]
    maps = [torch.randint(7, size) for size in sizes]
    processor = SEMImageProcessor(**PAD_ONLY)
    batch = processor([random_image(*size) for size in sizes], maps={"parsing": maps}, return_tensors="pt")
    padded = batch["labels"]["parsing"]
    outputs = outputs_of(parsing=logits_of_ids(padded.where(padded != 255, 0), 7))
    predictions = processor.post_process_dense_prediction(outputs, target_sizes=torch.tensor(sizes))
    for prediction, ids in zip(predictions, maps, strict=True):
        assert_same(prediction["parsing"], ids)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": size_of(32, 48)},
        {"size": size_of(32, 48), "do_pad": True, "pad_size": size_of(64, 64)},
        {**PAD_ONLY, "pad_size": size_of(32, 32)},
        {**PAD_ONLY, "pad_size": size_of(128, 160)},
    ],
    ids=str,
)
def test_labels_come_back_through_quarter_resolution(settings):
    """Two halves, processed, seen by a model at a quarter of the size and brought back to the photo."""
    image, maps = two_halves(split=24)
    processor = SEMImageProcessor(**settings)
    labels = processor(image, maps=maps, return_tensors="pt")["labels"]["semseg"]
    logits = F.interpolate(logits_of_ids(labels.where(labels != 255, 0), 2), scale_factor=1 / 4, mode="area")
    prediction = processor.post_process_dense_prediction(outputs_of(semseg=logits), target_sizes=[(40, 60)])[0]
    agreement = prediction["semseg"] == torch.from_numpy(maps["semseg"])
    assert agreement.shape == (40, 60)
    assert agreement.float().mean() > 0.9
    assert agreement[:, :20].all() and agreement[10:30, 29:58].all()


def test_predictions_without_target_sizes_have_the_size_of_the_logits():
    outputs = outputs_of(**{task: random_logits(task, 2, (6, 9)) for task in TASKS})
    predictions = SEMImageProcessor().post_process_dense_prediction(outputs)
    assert [list(prediction) for prediction in predictions] == [list(TASKS)] * 2
    for index, prediction in enumerate(predictions):
        for task, value in prediction.items():
            assert_same(value, TASKS[task].kind.predict(outputs.logits[task])[index])


@pytest.mark.parametrize("method", ["dense_prediction", "semantic_segmentation", "depth_estimation"])
@pytest.mark.parametrize("sizes", [[(4, 5)], [(4, 5)] * 3, []], ids=len)
def test_a_wrong_number_of_target_sizes_raises(method, sizes):
    outputs = outputs_of(semseg=torch.zeros(2, 5, 4, 4), depth=torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match=f"got {len(sizes)} for a batch of 2"):
        getattr(SEMImageProcessor(), f"post_process_{method}")(outputs, target_sizes=sizes)


@pytest.mark.parametrize("method", ["dense_prediction", "semantic_segmentation", "depth_estimation"])
@pytest.mark.parametrize(
    "size",
    [
        *(
            40,
            (0, 5),
            (-4, 5),
            (float("nan"), 5),
            (40.5, 60),
            (40, 60, 3),
            (True, True),
            (10**12, 5),
            "ab",
            ("a", "b"),
        ),
        *(torch.ones(2, 2, dtype=torch.long), np.ones((2, 2), np.int64)),
    ],
    ids=str,
)
def test_target_sizes_are_whole_numbers_of_pixels(method, size):
    outputs = outputs_of(semseg=torch.zeros(1, 5, 4, 4), depth=torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="`target_sizes` has the .height, width. of each image, whole numbers"):
        getattr(SEMImageProcessor(), f"post_process_{method}")(outputs, target_sizes=[size])


@pytest.mark.parametrize("method", ["dense_prediction", "semantic_segmentation", "depth_estimation"])
@pytest.mark.parametrize("outputs", [None, (torch.zeros(1, 5, 4, 4),), torch.zeros(1, 5, 4, 4)], ids=type)
def test_post_processing_takes_outputs_with_names(method, outputs):
    with pytest.raises(ValueError, match=f"fields by name; got {type(outputs).__name__}.*return_dict=False"):
        getattr(SEMImageProcessor(), f"post_process_{method}")(outputs)


def test_images_may_be_long():
    outputs = outputs_of(depth=torch.ones(1, 1, 4, 4))
    (prediction,) = SEMImageProcessor().post_process_dense_prediction(outputs, target_sizes=[(1, 20_000)])
    assert prediction["depth"].shape == (1, 20_000)


def test_a_plain_dictionary_is_an_output():
    logits = {"depth": torch.ones(1, 1, 4, 4)}
    (prediction,) = SEMImageProcessor().post_process_dense_prediction({"logits": logits})
    assert prediction["depth"].shape == (4, 4)
    with pytest.raises(ValueError, match="fields"):
        SEMImageProcessor().post_process_dense_prediction({"logits": {}})


@pytest.mark.parametrize("target_sizes", [None, [(40, 60), (20, 30)]], ids=["logits", "target sizes"])
def test_semantic_segmentation(target_sizes):
    outputs = outputs_of(depth=torch.zeros(2, 1, 8, 12), parsing=torch.randn(2, 7, 8, 12))
    processor = SEMImageProcessor(size=size_of(32, 48))
    expected = processor.post_process_dense_prediction(outputs, target_sizes)
    ids = processor.post_process_semantic_segmentation(outputs, target_sizes)
    scored = processor.post_process_semantic_segmentation(outputs, target_sizes, return_segmentation_scores=True)
    for image_ids, result, prediction in zip(ids, scored, expected, strict=True):
        assert_same(image_ids, prediction["parsing"])
        assert_same(result["segmentation"], image_ids)
        assert result["segmentation_scores"].shape == (7, *image_ids.shape)
        assert_same(result.segmentation_scores.argmax(dim=0), image_ids)


@pytest.mark.parametrize("target_sizes", [None, [(40, 60), (20, 30)]], ids=["logits", "target sizes"])
def test_depth_estimation(target_sizes):
    outputs = outputs_of(semseg=torch.zeros(2, 5, 8, 12), depth=torch.randn(2, 1, 8, 12))
    processor = SEMImageProcessor(size=size_of(32, 48))
    results = processor.post_process_depth_estimation(outputs, target_sizes)
    expected = processor.post_process_dense_prediction(outputs, target_sizes)
    for result, prediction, size in zip(results, expected, target_sizes or [(8, 12)] * 2, strict=True):
        assert_same(result["predicted_depth"], prediction["depth"])
        assert result["predicted_depth"].shape == size
        assert result["predicted_depth"].min() == 0


def test_a_model_without_the_task_says_so():
    outputs = outputs_of(normal=torch.zeros(1, 3, 4, 4))
    for post_process in ("post_process_semantic_segmentation", "post_process_depth_estimation"):
        with pytest.raises(ValueError, match=r"\['normal'\].*post_process_dense_prediction"):
            getattr(SEMImageProcessor(), post_process)(outputs)


# Errors


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        ({"depth": [np.ones((40, 61))]}, "A depth map has the size of its image, 40 x 60; got 40 x 61"),
        ({"semseg": [np.ones((40, 60))] * 2}, "Give one semseg map per image; got 2 for 1 images"),
        ({"semseg": []}, "Give one semseg map per image; got 0 for 1 images"),
        ({"flow": [np.ones((40, 60))]}, "Unknown task 'flow'"),
        ({"normal": [np.ones((40, 60))]}, "A normal map has the shape (3, height, width); got (40, 60)"),
        ({"saliency": [np.full((40, 60), 7)]}, "A saliency map holds 0 or 1, 255 invalid; got values from 7 to 7"),
        ({"semseg": np.ones((2, 40, 60))}, "semseg"),
    ],
    ids=["size", "too many", "none", "unknown", "shape", "values", "batch"],
)
def test_a_wrong_map_is_named(maps, expected):
    with pytest.raises(ValueError) as error:
        SEMImageProcessor()(random_image(), maps=maps, return_tensors="pt")
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"size": []}, "`size` is {'height'"),
        ({"size": [1]}, "`size` is {'height'"),
        ({"pad_size": (64, 64, 64)}, "`pad_size` is {'height'"),
        ({"pad_size": {}}, "`pad_size` is {'height'"),
        ({"device": []}, "`device` is the name of a device"),
        ({"device": "meta"}, "`device` is the name of a device"),
        ({"input_data_format": {}}, "`input_data_format` is 'channels_first' or"),
        ({"data_format": "channels_last"}, "`data_format` is 'channels_first'"),
        ({"resample": {}}, "`resample` is a filter of Pillow"),
        ({"image_std": 10**400}, "`image_std` is finite and above 0"),
        ({"rescale_factor": 1e-278}, "`rescale_factor` is finite and above 0"),
        ({"image_mean": []}, "`image_mean` is finite numbers"),
        ({"image_std": [0.5, 0.5]}, "`image_std` has one value per channel, 3; got [0.5, 0.5]"),
        ({"image_mean": [0.5] * 4}, "`image_mean` has one value per channel, 3; got [0.5, 0.5, 0.5, 0.5]"),
    ],
    ids=str,
)
def test_an_argument_that_no_image_can_be_processed_with_is_named(arguments, expected):
    with pytest.raises(ValueError) as error:
        SEMImageProcessor(do_resize=False)(random_image(), **arguments)
    assert expected in str(error.value)


def test_an_incomplete_size_is_named():
    with pytest.raises(ValueError, match="height and a width"):
        SEMImageProcessor(size={"shortest_edge": 64})(random_image(), return_tensors="pt")


@pytest.mark.parametrize("kind", [np.asarray, Image.fromarray, torch.from_numpy], ids=["array", "PIL", "tensor"])
def test_a_mask_of_0_and_255_is_no_map_of_two_classes(kind, monkeypatch):
    """Its foreground would be invalid, the loss 0 and the scores perfect."""
    register_task(TaskSpec(name="two_classes", kind=CLASS_IDS, num_labels=2, loss=cross_entropy))
    mask, processor = np.eye(6, dtype=np.uint8) * 255, SEMImageProcessor(do_resize=False)
    image, told = np.zeros((6, 6, 3), np.uint8), []
    monkeypatch.setattr(image_processing_sem.logger, "warning_once", told.append)
    try:
        with pytest.raises(ValueError, match="two_classes map holds 0 and 255 alone.* Divide a mask by 255; pass"):
            processor(image, maps={"two_classes": kind(mask)})
        assert processor(image, maps={"two_classes": kind(mask // 255)})["labels"]["two_classes"][0].sum() == 6
    finally:
        del TASKS["two_classes"]
    processor(image, maps={"semseg": kind(mask // 255), "parsing": kind(mask | 255)})
    assert told == []
    processor(image, maps={"semseg": kind(mask)})
    assert len(told) == 1 and "semseg map holds 0 and 255 alone" in told[0]


# Batches, saving


@pytest.mark.parametrize("arguments", [(torch.bfloat16,), ("cpu", torch.bfloat16)], ids=str)
def test_casting_a_batch_keeps_the_labels(arguments):
    maps = random_maps((40, 60))
    batch = SEMImageProcessor(size=size_of(8, 12))(random_image(), maps=maps, return_tensors="pt")
    expected = {task: label.clone() for task, label in batch["labels"].items()}
    cast = batch.to(*arguments)
    assert cast["pixel_values"].dtype == torch.bfloat16
    for task, label in cast["labels"].items():
        assert_same(label, expected[task])


def test_moving_a_batch_moves_the_labels():
    batch = SEMImageProcessor(size=size_of(8, 12))(random_image(), maps=random_maps((40, 60)), return_tensors="pt")
    moved = batch.to("meta")
    assert {label.device.type for label in moved["labels"].values()} == {"meta"}


def test_moving_a_batch_without_labels():
    batch = SEMImageProcessor(size=size_of(8, 12))(random_image(), return_tensors="pt").to(torch.bfloat16)
    assert list(batch) == ["pixel_values"]


@pytest.mark.parametrize("loader", [SEMImageProcessor, AutoImageProcessor])
def test_saved_and_reloaded(loader, tmp_path):
    settings = {**PAD_ONLY, "pad_size": size_of(45, 63), "image_mean": [0.5, 0.4, 0.3]}
    processor = SEMImageProcessor(**settings)
    processor.save_pretrained(tmp_path)
    reloaded = loader.from_pretrained(tmp_path)
    assert type(reloaded) is SEMImageProcessor
    assert reloaded.to_dict() == processor.to_dict()
    image = random_image()
    assert_same(
        reloaded(image, return_tensors="pt")["pixel_values"], processor(image, return_tensors="pt")["pixel_values"]
    )


def test_labels_are_what_to_label_reads():
    image = Image.fromarray(np.full((40, 60, 3), (128, 128, 0), dtype=np.uint8))
    labels = SEMImageProcessor(do_resize=False)(random_image(), maps={"normal": image}, return_tensors="pt")["labels"]
    assert_same(labels["normal"][0], to_label("normal", image))


@pytest.mark.parametrize("name", ["do_reduce_labels", "do_center_crop"])
def test_arguments_of_other_processors_that_would_have_no_effect_are_refused(name):
    with pytest.raises(ValueError, match=f"SEMImageProcessor has no `{name}`"):
        SEMImageProcessor(**{name: True})
    processor = SEMImageProcessor(**{name: False})
    with pytest.raises(ValueError, match=f"SEMImageProcessor has no `{name}`"):
        processor(np.zeros((8, 8, 3), np.uint8), **{name: True})


def test_arguments_of_other_processors_are_refused_beside_a_file(tmp_path):
    """transformers drops what it does not know, without a word."""
    SEMImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no `do_reduce_labels`.*Give class ids from 0"):
        AutoImageProcessor.from_pretrained(tmp_path, do_reduce_labels=True)
    with pytest.raises(ValueError, match="has no `keep_aspect_ratio`.*do_pad=True"):
        SEMImageProcessor.from_pretrained(tmp_path, keep_aspect_ratio=True)
    assert AutoImageProcessor.from_pretrained(tmp_path, do_pad=True).do_pad


def test_levels_of_another_factor_are_not_between_0_and_1():
    image = np.full((6, 7, 3), 0.9)
    for rescale_factor in (1 / 127.5, 1 / 65535):
        with pytest.raises(ValueError, match="do_rescale=False for values in"):
            SEMImageProcessor(do_resize=False, rescale_factor=rescale_factor)(image)
    SEMImageProcessor(do_resize=False, rescale_factor=1.0)(image)


def test_segmentation_maps_are_called_maps():
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="no `segmentation_maps`.*maps={task"):
        SEMImageProcessor()(image, segmentation_maps=image[..., 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bands_of_logits_in_half_precision(monkeypatch, dtype):
    logits = torch.randn(40, 8, 16, dtype=dtype)
    expected = predict_map(CLASS_IDS, logits, (90, 121))
    monkeypatch.setattr(image_processing_sem, "MAX_BAND_VALUES", 40 * 121 * 4)
    assert (predict_map(CLASS_IDS, logits, (90, 121)) == expected).float().mean() > 0.95
    depth = predict_map(METRES, logits[:1], (90, 121))
    monkeypatch.setattr(image_processing_sem, "MAX_BAND_VALUES", 90 * 121)
    torch.testing.assert_close(depth, predict_map(METRES, logits[:1], (90, 121)), rtol=2e-2, atol=2e-2)


def test_large_predictions_are_computed_in_bands(monkeypatch):
    """The same values, and never all logits at the size of the image."""
    processor = SEMImageProcessor(**PAD_ONLY, pad_size=size_of(32, 64))
    widths = {"semseg": 40, "depth": 1, "normal": 3, "boundary": 1}
    outputs = SEMMultiTaskOutput(logits={task: torch.randn(2, width, 8, 16) for task, width in widths.items()})
    sizes = [(90, 121), (33, 30)]
    expected = processor.post_process_dense_prediction(outputs, target_sizes=sizes)
    limit, largest, interpolate = 40 * 121 * 4, [], F.interpolate

    def note_size(values, **kwargs):
        resized = interpolate(values, **kwargs)
        largest.append(resized.numel())
        return resized

    monkeypatch.setattr(image_processing_sem, "MAX_BAND_VALUES", limit)
    monkeypatch.setattr(F, "interpolate", note_size)
    for found, maps in zip(processor.post_process_dense_prediction(outputs, sizes), expected, strict=True):
        assert (found["semseg"] == maps["semseg"]).float().mean() > 0.999
        for task in ("depth", "normal", "boundary"):
            torch.testing.assert_close(found[task], maps[task], rtol=1e-4, atol=1e-5)
            assert found[task].shape == maps[task].shape
    assert max(largest) <= max(limit, 40 * 32 * 64)  # the second is the padded input, which is cropped
    (first, _) = processor.post_process_semantic_segmentation(outputs, sizes)
    torch.testing.assert_close(first, processor.post_process_dense_prediction(outputs, sizes)[0]["semseg"])
