import datasets
import numpy as np
import pytest

from transformers_sem.data.row_format import FEATURES, encode_row
from transformers_sem.data.scenes import CLASS_NAMES, Scenes, render_scene, scene_intrinsics, split_seeds


SEEDS = range(30)


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(seed) for seed in SEEDS]


def back_project(scene, intrinsics):
    """Points (3, height, width) seen by the pixels, in the camera frame."""
    height, width = scene["depth"].shape
    column, row = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    pixels = np.stack([column, row, np.ones_like(row)]).reshape(3, -1)
    return (np.linalg.inv(intrinsics) @ pixels).reshape(3, height, width) * scene["depth"]


def make_builder(cache_dir, **values):
    return Scenes(
        cache_dir=str(cache_dir), **{"height": 24, "width": 32, "num_train": 5, "num_validation": 3, **values}
    )


def test_formats(scenes):
    formats = {name: (array.dtype.name, array.shape) for name, array in scenes[0].items()}
    assert formats == {
        "image": ("uint8", (96, 128, 3)),
        "semseg": ("uint8", (96, 128)),
        "depth": ("float32", (96, 128)),
        "normal": ("float32", (3, 96, 128)),
        "boundary": ("float32", (96, 128)),
        "parsing": ("uint8", (96, 128)),
        "saliency": ("uint8", (96, 128)),
    }
    assert list(formats) == list(FEATURES)


def test_same_seed_gives_same_scene_and_others_differ(scenes):
    again = render_scene(7)
    assert all(np.array_equal(again[name], scenes[7][name]) for name in again)
    assert not np.array_equal(scenes[7]["image"], scenes[8]["image"])


@pytest.mark.slow
def test_any_seed_works():
    # A tiny picture: what may fail is the furnishing, in rooms of extreme size.
    for seed in (*range(1000, 1120), 2 * 10**12):
        assert np.isfinite(render_scene(seed, 6, 8)["depth"]).all()


def test_odd_sizes():
    for size in [(1, 1), (17, 31), (64, 32)]:
        scene = render_scene(3, *size)
        assert scene["image"].shape == (*size, 3)
        assert np.isfinite(scene["depth"]).all()


def test_every_size_shows_the_same_scene(scenes):
    for seed in [0, 3, 5]:
        # At three times the size, the center of every third pixel is the center of a pixel of the base size.
        large = render_scene(seed, 288, 384)
        for name in ("semseg", "parsing", "depth"):
            assert np.isclose(large[name][1::3, 1::3], scenes[seed][name], atol=1e-4).mean() > 0.999
        assert np.isclose(large["normal"][:, 1::3, 1::3], scenes[seed]["normal"], atol=1e-4).mean() > 0.999
        assert abs(large["saliency"].mean() - scenes[seed]["saliency"].mean()) < 0.01


def test_ranges(scenes):
    for scene in scenes:
        assert scene["depth"].min() > 0.3 and scene["depth"].max() < 12.0
        assert scene["semseg"].max() < len(CLASS_NAMES["semseg"])
        assert scene["parsing"].max() < len(CLASS_NAMES["parsing"])
        assert set(np.unique(scene["boundary"])) == {0.0, 1.0}
        assert 60 < scene["image"].mean() < 220
        assert scene["image"].std() > 15


def test_all_classes_occur_and_none_dominates(scenes):
    shares = np.mean([np.bincount(scene["semseg"].ravel(), minlength=15) for scene in scenes], axis=0) / (96 * 128)
    assert (shares > 0.003).all() and shares.max() < 0.5
    parts = np.mean([np.bincount(scene["parsing"].ravel(), minlength=7) for scene in scenes], axis=0) / (96 * 128)
    assert (parts > 0.002).all()


def test_parts_make_up_the_figure(scenes):
    person = CLASS_NAMES["semseg"].index("person")
    assert all(np.array_equal(scene["parsing"] > 0, scene["semseg"] == person) for scene in scenes)
    assert 0.4 < np.mean([scene["parsing"].any() for scene in scenes]) < 0.8


def test_saliency_is_the_figure_or_one_free_standing_thing(scenes):
    free_standing = {CLASS_NAMES["semseg"].index(name) for name in ("table", "chair", "lamp", "plant", "ball")}
    for scene in scenes:
        assert scene["saliency"].any() and scene["saliency"].max() == 1
        if (scene["parsing"] > 0).mean() > 0.02:
            assert np.array_equal(scene["saliency"] == 1, scene["parsing"] > 0)
        else:
            classes = set(scene["semseg"][scene["saliency"] == 1])
            assert len(classes) == 1 and classes <= free_standing
    assert 0.05 < np.mean([scene["saliency"].mean() for scene in scenes]) < 0.25


def test_normals_are_unit_and_face_the_camera(scenes):
    for seed in SEEDS:
        normal = scenes[seed]["normal"]
        points = back_project(scenes[seed], scene_intrinsics(seed))
        assert np.abs(np.linalg.norm(normal, axis=0) - 1.0).max() < 1e-5
        assert ((normal * points).sum(axis=0) < 1e-5).all()


def test_floor_looks_up(scenes):
    floor = CLASS_NAMES["semseg"].index("floor")
    assert all((scene["normal"][1][scene["semseg"] == floor] < -0.8).all() for scene in scenes)


def test_normals_agree_with_depth():
    for seed in range(8):
        scene = render_scene(seed, 192, 256)
        points = back_project(scene, scene_intrinsics(seed, 192, 256))
        right = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
        down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
        expected = np.cross(down, right, axis=0)  # z x y = -x: towards the camera
        expected /= np.linalg.norm(expected, axis=0)
        cosine = (expected * scene["normal"][:, 1:-1, 1:-1]).sum(axis=0)
        assert np.median(cosine) > 0.9999
        assert (cosine > np.cos(np.deg2rad(10))).mean() > 0.85  # the rest straddles an edge


def test_points_of_a_plane_lie_in_a_plane(scenes):
    for name in ["floor", "ceiling"]:
        label = CLASS_NAMES["semseg"].index(name)
        seed = max(SEEDS, key=lambda seed: (scenes[seed]["semseg"] == label).sum())
        mask = scenes[seed]["semseg"] == label
        points = back_project(scenes[seed], scene_intrinsics(seed))[:, mask]
        offset = points - points.mean(axis=1, keepdims=True)
        plane_normal = np.linalg.svd(offset @ offset.T)[0][:, -1]
        assert np.abs(plane_normal @ offset).max() < 1e-4
        assert np.abs(plane_normal @ scenes[seed]["normal"][:, mask]).min() > 0.99999


def test_boundaries_run_along_classes(scenes):
    for scene in scenes:
        semseg, boundary = scene["semseg"], scene["boundary"]
        for changes, region in (
            (semseg[:, :-1] != semseg[:, 1:], boundary[:, :-1]),
            (semseg[:-1] != semseg[1:], boundary[:-1]),
            (semseg[:-1, :-1] != semseg[1:, 1:], boundary[:-1, :-1]),
        ):
            assert (region[changes] == 1.0).all()
        assert 0.03 < boundary.mean() < 0.25


def test_a_split_does_not_depend_on_its_size_and_never_meets_another():
    assert split_seeds(0, "train", 10) == split_seeds(0, "train", 1000)[:10]
    train = set(split_seeds(0, "train", 5000)) | set(split_seeds(1, "train", 5000))
    validation = set(split_seeds(0, "validation", 5000)) | set(split_seeds(1, "validation", 5000))
    assert len(train) == len(validation) == 10000
    assert not train & validation


def test_images_keep_the_values(scenes):
    normal = scenes[0]["normal"].copy()
    depth = scenes[0]["depth"].copy()
    depth[0, 0], normal[:, 0, 0] = np.nan, np.nan
    row = datasets.Features(FEATURES).encode_example(encode_row({**scenes[0], "depth": depth, "normal": normal}))
    row = {name: np.asarray(picture) for name, picture in datasets.Features(FEATURES).decode_example(row).items()}
    for name in ("image", "semseg", "parsing", "saliency"):
        assert np.array_equal(row[name], scenes[0][name])
    assert row["depth"].dtype == np.float32
    np.testing.assert_array_equal(row["depth"], depth)
    assert row["boundary"].dtype == np.uint8
    assert np.array_equal(row["boundary"], scenes[0]["boundary"] * 255)
    assert (row["normal"][0, 0] == 128).all()
    decoded = row["normal"].transpose(2, 0, 1) / 255.0 * 2.0 - 1.0
    cosine = (decoded / np.linalg.norm(decoded, axis=0) * scenes[0]["normal"]).sum(axis=0)
    assert np.rad2deg(np.arccos(np.minimum(cosine.ravel()[1:], 1.0))).max() < 0.5


def test_builder(tmp_path):
    builder = make_builder(tmp_path)
    builder.download_and_prepare()
    assert builder.as_dataset().num_rows == {"train": 5, "validation": 3}
    row = builder.as_dataset("validation")[1]
    scene = render_scene(split_seeds(0, "validation", 2)[1], 24, 32)
    assert np.array_equal(np.asarray(row["image"]), scene["image"])
    assert np.array_equal(np.asarray(row["depth"]), scene["depth"])
    assert builder.info.features == datasets.Features(FEATURES)


def test_builder_reuses_its_cache(tmp_path, monkeypatch):
    make_builder(tmp_path).download_and_prepare()
    monkeypatch.setattr("transformers_sem.data.scenes.dataset.render_scene", None)
    again = make_builder(tmp_path, seed=0)
    again.download_and_prepare()
    assert again.as_dataset("train").num_rows == 5


def test_another_configuration_has_another_cache(tmp_path):
    changes = [{}, {"height": 48}, {"width": 48}, {"num_train": 6}, {"num_validation": 4}, {"seed": 1}]
    assert len({make_builder(tmp_path, **change).cache_dir for change in changes}) == len(changes)
    assert Scenes(cache_dir=str(tmp_path)).cache_dir == Scenes(cache_dir=str(tmp_path), num_train=1000).cache_dir


@pytest.mark.slow
def test_builder_with_two_processes_gives_the_same_rows(tmp_path):
    one, two = make_builder(tmp_path / "one"), make_builder(tmp_path / "two")
    one.download_and_prepare()
    two.download_and_prepare(num_proc=2)
    for split in ("train", "validation"):
        pairs = zip(one.as_dataset(split), two.as_dataset(split), strict=True)
        assert all(np.array_equal(np.asarray(a[name]), np.asarray(b[name])) for a, b in pairs for name in FEATURES)
