import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from transformers_sem import losses
from transformers_sem.data.labels import Label
from transformers_sem.data.row_format import encode_row
from transformers_sem.data.scenes import render_scene
from transformers_sem.data.transforms import (
    RandomCrop,
    RandomPhotometricDistortion,
    RandomZoom,
    TrainingAugmentation,
    TransformedDataset,
    row_to_tensors,
)
from transformers_sem.image_processing_sem import SEMImageProcessor
from transformers_sem.task_kinds import TaskKind
from transformers_sem.tasks import TASKS, TaskSpec, resize_label, to_label


HEIGHT, WIDTH = 96, 128
NYUD_TASKS = ["semseg", "depth", "normal", "boundary"]


def slope_row() -> dict[str, Image.Image]:
    """Every map of the row tells, in its own way, at which column (red, depth, normal) or row (green) a pixel stands."""
    x, y = np.meshgrid((np.arange(WIDTH) + 0.5) / WIDTH, (np.arange(HEIGHT) + 0.5) / HEIGHT)
    normal = np.stack([2 * x - 1, np.zeros_like(x), -np.ones_like(x)])
    arrays = {
        "image": np.round(np.stack([x, y, np.full_like(x, 0.5)], axis=-1) * 255).astype(np.uint8),
        "semseg": (4 * x).astype(np.uint8) + 4 * (4 * y).astype(np.uint8),
        "depth": 1 + x,
        "normal": normal / np.linalg.norm(normal, axis=0),
        "boundary": (y > 0.5).astype(np.float32),
    }
    return encode_row(arrays)


@pytest.fixture
def slope():
    return row_to_tensors(slope_row(), NYUD_TASKS)


@pytest.fixture
def albedo(monkeypatch):
    """A task that the package does not know: colors in [0, 1] that are interpolated, darker when enlarged."""
    spec = TaskSpec(
        name="albedo",
        num_labels=3,
        kind=TaskKind(
            values="colors in [0, 1]",
            num_channels=3,
            value_range=(0.0, 1.0),
            predict=torch.sigmoid,
            colorize=lambda values: values,
            zoom_values=lambda values, zoom: values / zoom,
            flip_values=lambda values: 1 - values,
        ),
        loss=losses.l1,
    )
    monkeypatch.setitem(TASKS, "albedo", spec)
    return spec


def same(first: tuple, second: tuple) -> bool:
    """Whether two samples have equal images and labels, NaN equal to NaN."""
    pairs = [(first[0], second[0]), *((first[1][task], second[1][task]) for task in first[1])]
    return all(a.shape == b.shape and torch.equal(a.nan_to_num(-7), b.nan_to_num(-7)) for a, b in pairs)


def assert_valid_sample(image: Tensor, labels: dict[str, Tensor]) -> None:
    """Types and sizes, and that `to_label` allows the values."""
    assert type(image) is Tensor
    assert image.dtype == torch.uint8
    for task, label in labels.items():
        assert type(label) is Label and label.task == task
        assert label.shape[-2:] == image.shape[-2:], task
        torch.testing.assert_close(to_label(task, label), label, equal_nan=True)


# Rows


def test_row_to_tensors(slope):
    image, labels = slope
    shapes = {task: tuple(label.shape[:-2]) for task, label in labels.items()}
    assert shapes == {"semseg": (), "depth": (1,), "normal": (3,), "boundary": ()}
    assert_valid_sample(image, labels)


def test_images_become_rgb():
    for mode in ["L", "P", "RGBA", "CMYK", "1"]:
        image, _ = row_to_tensors({"image": Image.new(mode, (5, 4))}, [])
        assert (image.shape, image.dtype) == ((3, 4, 5), torch.uint8)


@pytest.mark.parametrize(
    ("column", "remove"),
    [("image", dict.pop), ("depth", dict.pop), ("image", lambda row, key: row.update({key: None}))],
)
def test_missing_column_is_named(column, remove):
    row = slope_row()
    remove(row, column)
    present = sorted(set(row) - {column})
    with pytest.raises(ValueError) as error:
        row_to_tensors(row, ["semseg", "depth"])
    assert f"lacks ['{column}'] and has {present}" in str(error.value)


def test_a_missing_label_is_invalid_everywhere(slope):
    row = {**slope_row(), "depth": None, "semseg": None}
    image, labels = row_to_tensors(row, NYUD_TASKS)
    assert_valid_sample(image, labels)
    for task in NYUD_TASKS:
        assert labels[task].shape == slope[1][task].shape and labels[task].dtype == slope[1][task].dtype
        assert labels[task].kind.is_invalid(labels[task]).all() == (row[task] is None)
    image, labels = TrainingAugmentation((64, 80))(image, labels)
    assert labels["depth"].isnan().all() and (labels["semseg"] == 255).all()


def test_map_of_another_size_is_named():
    row = {**slope_row(), "depth": Image.new("F", (7, 5), 1.0)}
    with pytest.raises(ValueError, match=r"the depth map is \(5, 7\), the image \(96, 128\)"):
        row_to_tensors(row, NYUD_TASKS)


# Zoom


def test_zoom_divides_depth_and_keeps_ids(slope):
    for zoom in [0.5, 0.75, 1.0, 1.5, 2.0]:
        image, labels = slope
        zoomed_image, zoomed = RandomZoom(zoom, zoom)(image, labels)
        assert_valid_sample(zoomed_image, zoomed)
        assert zoomed_image.shape == (3, HEIGHT * zoom, WIDTH * zoom)
        assert set(zoomed["depth"].unique().tolist()) <= set((labels["depth"].unique() / zoom).tolist())
        assert zoomed["semseg"].unique().tolist() == labels["semseg"].unique().tolist()
        assert zoomed["boundary"].unique().tolist() == [0, 1]


def test_zoom_range(slope):
    sizes = []
    for seed in range(40):
        torch.manual_seed(seed)
        sizes.append(RandomZoom()(slope[0], {})[0].shape[-1])
    assert 0.5 * WIDTH <= min(sizes) < 0.7 * WIDTH
    assert 1.8 * WIDTH < max(sizes) <= 2 * WIDTH


def test_zooms_enlarge_and_shrink_alike():
    """The mean of the logarithm is 0; with a uniform factor it would be 0.15, and every depth 14 % too near."""
    torch.manual_seed(0)
    label = Label(torch.ones(1, 100, 100), "depth")
    zooms = [
        1 / RandomZoom()(torch.zeros(3, 100, 100), {"depth": label})[1]["depth"][0, 0, 0].item() for _ in range(400)
    ]
    assert np.mean(np.log(zooms)) == pytest.approx(0, abs=0.05)


def test_zoom_of_depth_is_the_one_that_took_place():
    row = {"image": Image.new("RGB", (7, 7)), "depth": Image.new("F", (7, 7), 1.0)}
    image, labels = RandomZoom(0.65, 0.65)(*row_to_tensors(row, ["depth"]))
    assert image.shape[-2:] == (5, 5)
    torch.testing.assert_close(labels["depth"], torch.full((1, 5, 5), 7 / 5))


def test_zoomed_normals_are_unit_vectors_or_invalid():
    for zoom in [0.5, 0.8, 1.3, 2.0]:
        generator = torch.Generator().manual_seed(0)
        normals = torch.nn.functional.normalize(torch.randn(3, 40, 60, generator=generator), dim=0)
        normals[:, :20, 30:] = torch.nan
        _, labels = RandomZoom(zoom, zoom)(torch.zeros(3, 40, 60), {"normal": Label(normals, "normal")})
        lengths = labels["normal"].norm(dim=0)
        valid = lengths.isfinite()
        torch.testing.assert_close(lengths[valid], torch.ones(int(valid.sum())))
        assert valid.float().mean() > 0.3
        assert lengths[: int(20 * zoom), int(np.ceil(30 * zoom)) :].isnan().all()


def test_a_mask_of_0_and_255_is_warned_of(monkeypatch, caplog):
    """A row of one's own cannot be refused: it may have pixels without a class and none of the second class."""
    monkeypatch.setitem(TASKS, "mask", replace(TASKS["semseg"], name="mask", num_labels=2))
    row = slope_row()
    row["mask"] = Image.fromarray(np.asarray(row["semseg"]) // 8 * 255)
    row_to_tensors(row, ["mask"])
    assert "A mask map has no pixel of id 1, and 255 marks" in caplog.text


def test_holes_do_not_grow():
    """Invalid pixels neither spread to their neighbors nor mix with them."""
    for zoom in [0.5, 2.0]:
        normals = torch.zeros(3, 30, 30)
        normals[2] = -1
        normals[:, 10:20, 10:20] = torch.nan
        resized = resize_label("normal", normals, [int(30 * zoom)] * 2)
        assert resized.isnan().float().mean() == pytest.approx(1 / 9, abs=0.01)
        assert resized[2].nanmean() == -1


# Crop


def test_crop_size(slope):
    for size, expected in [
        ((20, 30), (20, 30)),
        ((200, 30), (96, 30)),
        ((20, 200), (20, 128)),
        ((500, 500), (96, 128)),
    ]:
        image, labels = RandomCrop(size)(*slope)
        assert image.shape[-2:] == expected
        assert_valid_sample(image, labels)


def test_is_varied():
    for ids, varied in [
        ([0, 0, 0, 1], True),
        ([0, 0, 0, 0, 1], False),
        ([3, 3, 3], False),
        ([3, 255, 255, 255, 255, 7], True),
        ([255, 255], False),
    ]:
        assert RandomCrop((1, 1)).is_varied(torch.tensor([ids])) == varied


def wide_sample(task: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Class 0 on 90 % of the image, and a strip of class 1 at its right."""
    ids = torch.zeros(20, 200, dtype=torch.int64)
    ids[:, 180:] = 1
    return torch.arange(200, dtype=torch.uint8).expand(3, 20, 200), {task: Label(ids, task)}


def crop_starts(crop: RandomCrop, task: str) -> list[int]:
    """First columns of the crops of a hundred seeds."""
    starts = []
    for seed in range(100):
        torch.manual_seed(seed)
        starts.append(int(crop(*wide_sample(task))[0][0, 0, 0]))
    return starts


def test_crop_is_retried_until_varied():
    crop = RandomCrop((20, 40), num_tries=10)
    once = crop_starts(RandomCrop((20, 40), num_tries=1), "semseg")
    often = crop_starts(crop, "semseg")
    # Of 161 columns the crop may start at, the 11 from 150 on show at least a quarter of class 1.
    assert sum(start >= 150 for start in once) < 20
    assert 30 < sum(start >= 150 for start in often) < 75  # 1 - (150 / 161) ** 10 = 51 %
    assert all(later == first for first, later in zip(once, often, strict=True) if first >= 150)


def test_crop_without_class_ids_is_not_retried():
    once = crop_starts(RandomCrop((20, 40), num_tries=1), "saliency")
    assert crop_starts(RandomCrop((20, 40), num_tries=10), "saliency") == once


def test_crop_looks_at_the_class_ids_that_an_image_has(slope):
    """A row of another dataset has no labels of the first task."""
    image, labels = slope
    ids = Label(torch.zeros(image.shape[-2:], dtype=torch.int64), "parsing")
    ids[:, -20:] = 1
    missing = Label(torch.full_like(ids, 255), "semseg")
    for seed in range(5):
        torch.manual_seed(seed)
        alone = RandomCrop((20, 40))(image, {"parsing": ids})
        torch.manual_seed(seed)
        both = RandomCrop((20, 40))(image, {"semseg": missing, "parsing": ids})
        assert torch.equal(alone[0], both[0])


def test_share_of_one_accepts_any_crop():
    once = crop_starts(RandomCrop((20, 40), num_tries=1), "semseg")
    assert crop_starts(RandomCrop((20, 40), max_class_share=1.0), "semseg") == once


# Flip


def test_flip_twice_is_identity(slope):
    flip = v2.RandomHorizontalFlip(1.0)
    flipped = flip(*slope)
    assert not same(flipped, slope)
    assert_valid_sample(*flipped)
    assert same(flip(*flipped), slope)


def test_flip_negates_x_of_normals(slope):
    _, labels = slope
    _, flipped = v2.RandomHorizontalFlip(1.0)(*slope)
    mirrored = labels["normal"].flip(-1)
    torch.testing.assert_close(flipped["normal"][0], -mirrored[0])
    torch.testing.assert_close(flipped["normal"][1:], mirrored[1:])


def test_flip_probability(slope):
    for p, share in [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)]:
        torch.manual_seed(0)
        image = slope[0][:, :2]
        flips = [not torch.equal(v2.RandomHorizontalFlip(p)(image, {})[0], image) for _ in range(200)]
        assert np.mean(flips) == pytest.approx(share, abs=0.1)


# Colors


def test_distortion_ranges():
    ranges = {
        "brightness_factor": (1 - 32 / 255, 1 + 32 / 255),
        "contrast_factor": (0.5, 1.5),
        "saturation_factor": (0.5, 1.5),
        "hue_factor": (-0.1, 0.1),
    }
    torch.manual_seed(0)
    distort = RandomPhotometricDistortion()
    drawn = [distort.make_params([torch.zeros(3, 4, 4)]) for _ in range(300)]
    assert all(params["channel_permutation"] is None for params in drawn)
    for name, (low, high) in ranges.items():
        values = [params[name] for params in drawn if params[name] is not None]
        assert len(values) / len(drawn) == pytest.approx(0.5, abs=0.1)
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high


def test_distortion_leaves_labels_alone(slope):
    samples = []
    for probability in (0.0, 1.0):
        torch.manual_seed(0)
        samples.append(TrainingAugmentation((64, 80), distortion_probability=probability)(*slope))
    (image, labels), (distorted, kept) = samples
    assert not torch.equal(distorted, image)
    assert same((image, kept), (image, labels))


# All of it


def test_image_and_maps_stay_aligned(slope):
    for seed in range(12):
        torch.manual_seed(seed)
        image, labels = TrainingAugmentation((64, 80), distortion_probability=0.0)(*slope)
        assert_valid_sample(image, labels)
        x, y = image[0] / 255, image[1] / 255

        zoom = ((1 + x) / labels["depth"][0]).median()
        assert 0.49 <= zoom <= 2.01  # sizes are rounded to whole pixels
        torch.testing.assert_close(labels["depth"][0] * zoom, 1 + x, atol=0.02, rtol=0)

        is_flipped = x[0, -1] < x[0, 0]
        direction = -labels["normal"][0] / labels["normal"][2] * (-1 if is_flipped else 1)
        torch.testing.assert_close((direction + 1) / 2, x, atol=0.02, rtol=0)

        inside = (((4 * x) % 1 - 0.5).abs() < 0.4) & (((4 * y) % 1 - 0.5).abs() < 0.4)
        assert inside.any()
        assert torch.equal(labels["semseg"][inside], ((4 * x).long() + 4 * (4 * y).long())[inside])
        away = (y - 0.5).abs() > 0.02
        assert torch.equal(labels["boundary"][away], (y > 0.5).float()[away])


SHIFTS = [(0, 0), (0, 3), (0, -3), (3, 0), (-3, 0)]


def agreement(task: str, label: Tensor, expected: Tensor) -> float:
    """How well two maps agree, 0 to 1: pixels of the same class, within 2 % or 5 degrees; boundaries in common."""
    if TASKS[task].dtype == torch.int64:
        return float((label == expected).float().mean())
    if task == "depth":
        return float(((label / expected - 1).abs() < 0.02).float().mean())
    if task == "normal":
        return float(((label * expected).sum(0) > np.cos(np.radians(5))).float().mean())
    return float((label * expected).sum() / expected.sum())


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("zoom", [0.75, 2.0])
def test_a_scene_rendered_after_the_transform_agrees_with_its_maps(monkeypatch, seed, flip, zoom):
    windows = []
    sample_window = RandomCrop.sample_window
    monkeypatch.setattr(
        RandomCrop, "sample_window", lambda self, size: windows.append(sample_window(self, size)) or windows[-1]
    )
    sample = row_to_tensors(encode_row(render_scene(seed, HEIGHT, WIDTH)), TASKS)
    torch.manual_seed(seed)
    augment = TrainingAugmentation((64, 80), zoom=(zoom, zoom), flip_probability=flip, distortion_probability=0.0)
    image, labels = augment(*sample)
    assert_valid_sample(image, labels)

    # The same room, seen through a longer lens, by a window, in a mirror.
    rendered = render_scene(seed, int(HEIGHT * zoom), int(WIDTH * zoom))
    expected_image, expected = row_to_tensors(encode_row(rendered), TASKS)
    expected = {"image": expected_image.float(), **expected}
    expected = {name: v2.functional.crop(values, **windows[-1]) for name, values in expected.items()}
    expected["depth"] = expected["depth"] / zoom
    if flip:
        expected = {name: values.flip(-1) for name, values in expected.items()}
        expected["normal"] = expected["normal"] * torch.tensor([-1.0, 1.0, 1.0])[:, None, None]

    difference = [(image.roll(shift, (-2, -1)) - expected["image"]).abs().mean() for shift in SHIFTS]
    assert difference[0] == min(difference) and difference[0] < 12
    for task, label in labels.items():
        agreements = [agreement(task, label.roll(shift, (-2, -1)), expected[task]) for shift in SHIFTS]
        assert agreements[0] == max(agreements), task
        assert agreements[0] > (0.2 if task == "boundary" else 0.8), (task, agreements)
    length = labels["normal"].norm(dim=0)
    torch.testing.assert_close(length[~length.isnan()], torch.ones(int((~length.isnan()).sum())))


def test_transforms_compose_with_others(slope):
    """They are transforms of torchvision's v2 like any other."""
    both = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.RandomGrayscale(1.0), v2.RandomHorizontalFlip(1.0)])
    image, labels = both(*slope)
    assert (image[0] == image[1]).all() and type(image) is Tensor
    assert same((image, labels), (v2.functional.rgb_to_grayscale(slope[0], 3), slope[1]))
    assert "RandomZoom(low=0.5, high=2.0)" in repr(TrainingAugmentation((64, 80)))


def test_invalid_settings():
    for build, message in [
        (lambda: RandomZoom(0.0, 1.0), "0 < low <= high; got 0.0 and 1.0"),
        (lambda: RandomZoom(2.0, 1.0), "0 < low <= high; got 2.0 and 1.0"),
        (lambda: RandomCrop((0, 4)), r"at least 1; got \(0, 4\) and 10"),
        (lambda: RandomCrop((4, 4), num_tries=0), r"at least 1; got \(4, 4\) and 0"),
        (lambda: RandomCrop((4, 4), max_class_share=75), "max_class_share must be a probability, 0 to 1; got 75"),
        (lambda: TrainingAugmentation((4, 4), flip_probability=-0.1), "flip_probability must be .* 0 to 1; got -0.1"),
        (lambda: RandomPhotometricDistortion(1.5), "p must be a probability, 0 to 1; got 1.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            build()


def test_a_seed_fixes_the_augmentation(slope):
    augment = TrainingAugmentation((64, 80))

    def augment_with(seed: int, augment: TrainingAugmentation = augment) -> tuple:
        torch.manual_seed(seed)
        return augment(*slope)

    assert same(augment_with(3), augment_with(3))
    assert same(augment_with(3), augment_with(3, pickle.loads(pickle.dumps(augment))))
    assert not same(augment_with(3), augment_with(4))


def test_inputs_are_left_as_they_were(slope):
    before = pickle.loads(pickle.dumps(slope))
    torch.manual_seed(1)
    TrainingAugmentation((64, 80), flip_probability=1.0)(*slope)
    assert same(slope, before)


def test_any_tasks_of_a_scene():
    for tasks in [[], ["normal"], ["saliency", "parsing"], [*TASKS]]:
        sample = row_to_tensors(encode_row(render_scene(1, 48, 64)), tasks)
        torch.manual_seed(0)
        image, labels = TrainingAugmentation((32, 40))(*sample)
        assert list(labels) == tasks
        assert_valid_sample(image, labels)


def test_task_of_the_user(albedo):
    colors = Image.new("RGB", (12, 8), (51, 102, 204))
    row = {"image": colors, "albedo": colors, "semseg": Image.new("L", (12, 8), 3)}
    augment = TrainingAugmentation((64, 64), zoom=(2.0, 2.0), flip_probability=1.0)
    image, labels = augment(*row_to_tensors(row, ["albedo", "semseg"]))
    assert image.shape == (3, 16, 24)
    expected = 1 - torch.tensor([0.2, 0.4, 0.8]) / 2
    torch.testing.assert_close(labels["albedo"], expected[:, None, None].expand(3, 16, 24))


# Dataset


class PlainProcessor:
    """Calls for and returns what `SEMImageProcessor` does, without padding or normalizing."""

    def __call__(self, images, labels, return_tensors):
        assert return_tensors == "pt"
        assert all(type(value) is Tensor for value in (*images, *(label for (label,) in labels.values())))
        return {
            "pixel_values": torch.stack(images) / 255,
            "labels": {task: torch.stack(task_labels) for task, task_labels in labels.items()},
        }


@pytest.mark.parametrize("augmentation", [None, TrainingAugmentation((32, 32))], ids=["plain", "augmented"])
def test_transformed_dataset(augmentation):
    dataset = TransformedDataset([slope_row()] * 2, NYUD_TASKS, PlainProcessor(), augmentation)
    size = (HEIGHT, WIDTH) if augmentation is None else (32, 32)
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=2)))
    assert len(dataset) == 2
    assert batch["pixel_values"].shape == (2, 3, *size)
    shapes = {task: tuple(label.shape) for task, label in batch["labels"].items()}
    assert shapes == {
        "semseg": (2, *size),
        "depth": (2, 1, *size),
        "normal": (2, 3, *size),
        "boundary": (2, *size),
    }


def test_transformed_dataset_without_augmentation_keeps_values(slope):
    item = TransformedDataset([slope_row()], NYUD_TASKS, PlainProcessor())[0]
    assert torch.equal(item["pixel_values"], slope[0] / 255)
    assert all(torch.equal(item["labels"][task], label) for task, label in slope[1].items())


def test_transformed_dataset_with_the_image_processor(slope):
    """Smaller than the wanted size, a sample is padded with what is invalid, and its labels are not changed."""
    processor = SEMImageProcessor(do_resize=False, do_pad=True, pad_size={"height": HEIGHT + 4, "width": WIDTH + 2})
    item = TransformedDataset([slope_row()], NYUD_TASKS, processor)[0]
    assert item["pixel_values"].shape == (3, HEIGHT + 4, WIDTH + 2)
    assert item["pixel_values"].dtype == torch.float32
    for task, label in item["labels"].items():
        torch.testing.assert_close(label[..., 2:-2, 1:-1], slope[1][task], equal_nan=True)
        border = torch.cat([label[..., :2, :].flatten(), label[..., :1].flatten()])
        assert ((border == TASKS[task].kind.invalid_value) | border.isnan()).all()


def test_workers_draw_their_own_augmentations(slope):
    """And a seed fixes what each of them draws."""
    processor = SEMImageProcessor(do_resize=False, do_pad=True, pad_size={"height": 64, "width": 80})
    dataset = TransformedDataset([slope_row()] * 4, ["depth"], processor, TrainingAugmentation((64, 80)))

    def load(seed: int) -> Tensor:
        torch.manual_seed(seed)
        loader = torch.utils.data.DataLoader(dataset, num_workers=2)
        return torch.cat([batch["pixel_values"] for batch in loader])

    first = load(0)
    assert len(first.flatten(1).unique(dim=0)) == 4
    assert torch.equal(first, load(0))


def test_decoded_rows_give_the_same_samples(slope):
    processor = SEMImageProcessor(do_resize=False, do_pad=True, pad_size={"height": 64, "width": 80})
    plain, decoded = (
        TransformedDataset([slope_row()] * 2, NYUD_TASKS, processor, TrainingAugmentation((64, 80))) for _ in range(2)
    )
    decoded.decode_all(show_progress=False)
    for index in (0, 1, 0):  # twice: a sample leaves what is decoded as it is
        torch.manual_seed(index)
        expected = plain[index]
        torch.manual_seed(index)
        torch.testing.assert_close(decoded[index], expected, rtol=0, atol=0, equal_nan=True)
