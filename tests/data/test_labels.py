import copy
import pickle
import random

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional
from torchvision.transforms.v2.functional import _utils

from transformers_sem.data.labels import WARPS, Label
from transformers_sem.data.row_format import encode_row
from transformers_sem.data.scenes import render_scene
from transformers_sem.data.transforms import RandomCrop, RandomZoom, TransformedDataset, row_to_tensors
from transformers_sem.image_processing_sem import SEMImageProcessor
from transformers_sem.task_kinds import keep_values
from transformers_sem.tasks import TASKS, resize_label, to_label

from ..samples import random_labels


HEIGHT, WIDTH = 24, 32
STEADY = ["semseg", "boundary", "parsing", "saliency"]  # tasks whose values no change of geometry changes


@pytest.fixture(scope="module")
def scene():
    return row_to_tensors(encode_row(render_scene(3, HEIGHT, WIDTH)), TASKS)


def random_label(task):
    return Label(random_labels(task, 1, (HEIGHT, WIDTH))[0], task)


def plain(label):
    return label.as_subclass(Tensor).nan_to_num(-7)


def assert_same(first, second):
    assert torch.equal(first[0], second[0])
    for task, label in first[1].items():
        assert type(label) is Label and label.task == task
        assert torch.equal(plain(label), plain(second[1][task])), task


def invalid(label):
    values = label.as_subclass(Tensor).reshape(-1, *label.shape[-2:])
    return label.kind.is_invalid(values).all(0)


# Changes that have a rule


def test_flipped_twice_a_sample_is_the_same(scene):
    flip = v2.RandomHorizontalFlip(1.0)
    image, labels = flip(*scene)
    assert torch.equal(image, scene[0].flip(-1))
    assert not torch.equal(plain(labels["normal"]), plain(scene[1]["normal"].flip(-1)))
    assert_same(flip(image, labels), scene)


def test_a_flipped_scene_has_the_normals_and_depths_of_its_mirror_image():
    """Points of a plane z = a + b x + c y, mirrored: x becomes -x, so b becomes -b."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, HEIGHT), torch.linspace(-1, 1, WIDTH), indexing="ij")

    def plane(slope):
        depth = 3 / (1 - slope * columns - 0.2 * rows)  # z of the ray (x, y, 1) t
        normal = torch.tensor([slope, 0.2, -1.0])
        normal = (normal / normal.norm()).view(3, 1, 1).expand(3, HEIGHT, WIDTH)
        return {"depth": Label(depth[None], "depth"), "normal": Label(normal, "normal")}

    flipped = functional.horizontal_flip(plane(0.3)["depth"]), functional.horizontal_flip(plane(0.3)["normal"])
    torch.testing.assert_close(flipped[0], plane(-0.3)["depth"])
    torch.testing.assert_close(flipped[1], plane(-0.3)["normal"])


@pytest.mark.parametrize("seed", range(5))
def test_resizing_follows_the_rules_of_the_kinds(seed):
    draw = random.Random(seed)
    for task, spec in TASKS.items():
        height, width = draw.randint(1, 60), draw.randint(1, 60)
        label = random_label(task)
        expected = resize_label(task, label.as_subclass(Tensor), (height, width))
        expected = spec.kind.zoom_values(expected, (height / HEIGHT + width / WIDTH) / 2)
        resized = v2.Resize((height, width), interpolation=functional.InterpolationMode.BICUBIC)(label)
        assert resized.task == task
        assert torch.equal(plain(resized), plain(expected))
        torch.testing.assert_close(to_label(task, resized), resized, equal_nan=True)


def test_depth_twice_as_large_is_half_as_far():
    depth = Label(torch.full((1, HEIGHT, WIDTH), 4.0), "depth")
    assert (functional.resize(depth, [2 * HEIGHT, 2 * WIDTH]) == 2).all()
    assert (functional.resized_crop(depth, 0, 0, HEIGHT // 2, WIDTH // 2, [HEIGHT, WIDTH]) == 2).all()
    assert (
        functional.resize(Label(depth * 200, "depth"), [HEIGHT // 2, WIDTH // 2]).isnan().all()
    )  # 1,600 m: no sensor sees that far
    assert functional.resize(depth, [HEIGHT // 2]).shape == (1, HEIGHT // 2, WIDTH // 2)  # the shorter edge
    assert functional.resize(depth, None, max_size=64).shape == (1, 48, 64)


@pytest.mark.parametrize("seed", range(5))
def test_a_crop_moves_pixels_and_is_invalid_outside(seed):
    draw = random.Random(seed)
    top, left, height, width = draw.randint(-5, 20), draw.randint(-5, 28), draw.randint(1, 40), draw.randint(1, 40)
    image = torch.arange(1, HEIGHT * WIDTH + 1, dtype=torch.float32).view(1, HEIGHT, WIDTH)
    expected = functional.crop(image, top, left, height, width)[0].long()
    for task in TASKS:
        label = random_label(task)
        cropped = functional.crop(label, top, left, height, width)
        assert cropped.dtype == label.dtype and cropped.shape == (*label.shape[:-2], height, width)
        assert invalid(cropped)[expected == 0].all()
        values, kept = plain(label).reshape(-1, HEIGHT * WIDTH), plain(cropped).reshape(-1, height, width)
        assert torch.equal(kept[:, expected > 0], values[:, expected[expected > 0] - 1])


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric"])
def test_padding_is_invalid_in_every_mode_and_cropped_away_again(scene, mode):
    padded = v2.Pad([3, 1, 2, 4], fill=1, padding_mode=mode)(*scene)
    assert padded[0].shape == (3, HEIGHT + 5, WIDTH + 5)
    for label in padded[1].values():
        assert label.shape[-2:] == padded[0].shape[-2:]
        outside = invalid(label)
        outside[1:-4, 3:-2] = True
        assert outside.all()
    window = {"top": 1, "left": 3, "height": HEIGHT, "width": WIDTH}
    assert_same((functional.crop(padded[0], **window), cropped(padded[1], **window)), scene)


def cropped(labels, **window):
    return {task: functional.crop(label, **window) for task, label in labels.items()}


def test_a_center_crop_is_a_crop_or_padding(scene):
    for size in [(10, 12), (HEIGHT + 5, 12), (HEIGHT + 3, WIDTH + 1)]:
        image, labels = v2.CenterCrop(size)(torch.ones_like(scene[0]), scene[1])
        for task, label in labels.items():
            assert label.shape[-2:] == size
            assert invalid(label)[image[0] == 0].all()
            inside = plain(label).reshape(-1, *size)[:, image[0] == 1]
            top, left = (max(0, round((full - part) / 2)) for full, part in zip((HEIGHT, WIDTH), size, strict=True))
            window = scene[1][task][..., top : top + size[0], left : left + size[1]]
            assert torch.equal(inside, plain(window).reshape(len(inside), -1)), task


@pytest.mark.parametrize("seed", range(3))
def test_a_chain_of_torchvision_keeps_image_and_labels_aligned(seed):
    """The ids are the levels of the image, and depth and normals say where a pixel stood."""
    x = torch.arange(WIDTH).expand(HEIGHT, WIDTH)
    tilt = (x + 0.5) / WIDTH * 2 - 1
    normal = torch.stack([tilt, torch.zeros_like(tilt), -(1 - tilt**2).sqrt()])
    labels = {"semseg": x.long(), "depth": tilt[None].float() + 2, "normal": normal}
    labels = {task: Label(values, task) for task, values in labels.items()}
    chain = v2.Compose(
        [
            v2.RandomZoomOut(p=1.0, side_range=(1.2, 1.5)),
            v2.RandomCrop((HEIGHT, WIDTH)),
            v2.ColorJitter(),
            v2.RandomHorizontalFlip(),
            v2.Pad(2, padding_mode="edge"),
            v2.RandomErasing(p=0.0),
        ]
    )
    torch.manual_seed(seed)
    image, moved = chain(tv_tensors.Image((x + 1).expand(3, -1, -1).to(torch.uint8)), labels)
    ids = moved["semseg"]
    valid = ids != 255
    assert valid.any() and image.shape[-2:] == ids.shape
    sign = 1 if seen_from_the_left(ids) else -1
    expected = (ids[valid] + 0.5) / WIDTH * 2 - 1
    torch.testing.assert_close(moved["depth"][0][valid] - 2, expected)
    torch.testing.assert_close(moved["normal"][0][valid], sign * expected)
    assert moved["depth"][0][~valid].isnan().all() and moved["normal"][:, ~valid].isnan().all()


def seen_from_the_left(ids):
    row = ids[ids.shape[0] // 2]
    row = row[row != 255]
    return bool(row[0] < row[-1]) if len(row) > 1 else True


def test_random_resized_crops_and_jitter_run_on_every_task(scene):
    torch.manual_seed(0)
    chain = v2.Compose([v2.ScaleJitter((32, 32)), v2.RandomResizedCrop(16), v2.RandomPhotometricDistort()])
    image, labels = chain(*scene)
    assert image.shape == (3, 16, 16)
    for task, label in labels.items():
        assert label.shape[-2:] == (16, 16)
        torch.testing.assert_close(to_label(task, label), label, equal_nan=True)


def test_changes_of_color_leave_labels_alone(scene):
    chain = v2.Compose(
        [v2.GaussianBlur(3), v2.RandomInvert(1.0), v2.RandomSolarize(9, 1.0), v2.ToDtype(torch.float32, scale=True)]
    )
    image, labels = chain(*scene)
    assert image.dtype == torch.float32
    assert_same((image, labels), (image, scene[1]))


# Changes that have none


def test_steady_kinds_are_warped_with_the_image():
    ids = torch.arange(1, HEIGHT * WIDTH + 1).view(HEIGHT, WIDTH) % 200 + 1
    nearest = functional.InterpolationMode.NEAREST
    for warp in [
        v2.RandomRotation((30, 30), interpolation=nearest, fill=7, expand=True),
        v2.RandomAffine(20, translate=(0.1, 0.1), shear=10, interpolation=nearest),
        v2.RandomPerspective(p=1.0, interpolation=nearest),
        v2.ElasticTransform(interpolation=nearest),
    ]:
        torch.manual_seed(0)
        image, labels = warp(ids.float()[None], {"semseg": Label(ids, "semseg")})
        valid = labels["semseg"] != 255
        assert valid.float().mean() > 0.2
        assert torch.equal(labels["semseg"][valid], image[0].long()[valid])


@pytest.mark.parametrize("task", ["depth", "normal"])
def test_other_kinds_are_not_warped_but_refused(task, scene):
    for warp in [
        v2.RandomRotation(10),
        v2.RandomAffine(0, scale=(0.5, 2)),
        v2.RandomPerspective(p=1.0),
        v2.ElasticTransform(),
    ]:
        with pytest.raises(ValueError, match=f"no rule says how; got a {task} label"):
            warp(scene[0], {task: scene[1][task]})


def test_turned_upside_down(scene):
    flip = v2.RandomVerticalFlip(1.0)
    labels = {task: scene[1][task] for task in ("semseg", "depth", "boundary")}
    flipped = flip(scene[0], labels)
    assert torch.equal(flipped[1]["depth"], labels["depth"].flip(-2))
    assert_same(flip(*flipped), (scene[0], labels))
    with pytest.raises(ValueError, match="vertical_flip.*no rule says how; got a normal label"):
        flip(*scene)


@pytest.mark.parametrize("build", [v2.AutoAugment, v2.RandAugment, v2.TrivialAugmentWide, v2.AugMix])
def test_torchvision_refuses_labels_where_it_changes_images_only(build, scene):
    with pytest.raises(TypeError):
        build()(*scene)
    with pytest.raises(TypeError):
        v2.FiveCrop(8)(*scene)


def test_every_functional_that_moves_masks_has_a_kernel_for_labels():
    """One that torchvision adds would move labels as masks, whose task is lost."""
    harmless = {functional.get_size, functional.to_dtype}
    masks = {name for name, kernels in _utils._KERNEL_REGISTRY.items() if tv_tensors.Mask in kernels}
    labels = {name for name, kernels in _utils._KERNEL_REGISTRY.items() if Label in kernels}
    assert set(WARPS) <= labels
    assert masks - labels == harmless


def test_steady_tasks_are_those_without_a_rule():
    kinds = {task: spec.kind for task, spec in TASKS.items()}
    assert [t for t, kind in kinds.items() if kind.flip_values is kind.zoom_values is keep_values] == STEADY


# The class


def test_a_label_keeps_its_task():
    label = random_label("depth")
    for same in (
        label.clone(),
        label.to(torch.float64),
        label.detach(),
        copy.deepcopy(label),
        pickle.loads(pickle.dumps(label)),
        functional.to_dtype(label, torch.float32),
        tv_tensors.wrap(label + 1, like=label),
        Label(label, "depth"),
    ):
        assert type(same) is Label and same.task == "depth"
    with tv_tensors.set_return_type("TVTensor"):
        assert (label + 1).task == "depth"
    assert type(label + 1) is Tensor
    assert type(v2.ToPureTensor()(label)) is Tensor


def test_plain_labels_are_refused():
    for transform in (RandomZoom(), RandomCrop((8, 8))):
        with pytest.raises(ValueError, match=r"got 2 plain tensors. Use `Label\(values, task\)`"):
            transform(torch.zeros(3, 9, 9), {"depth": torch.zeros(1, 9, 9)})


def test_a_training_may_use_torchvision_alone():
    rows = [encode_row(render_scene(1, HEIGHT, WIDTH))]
    chain = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.RandomCrop(16)])
    processor = SEMImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    item = TransformedDataset(rows, TASKS, processor, chain)[0]
    assert item["pixel_values"].shape == (3, 16, 16)
    for task, label in item["labels"].items():
        assert type(label) is Tensor and label.shape[-2:] == (16, 16), task


def test_images_of_pillow_are_transformed_with_labels():
    label = Label(torch.arange(4).expand(3, 4), "semseg")
    image, flipped = v2.RandomHorizontalFlip(1.0)(Image.new("RGB", (4, 3)), label)
    assert isinstance(image, Image.Image)
    assert flipped[0].tolist() == [3, 2, 1, 0]
