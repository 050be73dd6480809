from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.io
from PIL import EpsImagePlugin, Image

from transformers_sem.evaluation import boundary_files
from transformers_sem.evaluation.boundary import boundary_counts
from transformers_sem.evaluation.boundary_files import (
    count_boundaries,
    count_pair,
    pair_files,
    read_map,
    read_prediction,
)


HEIGHT, WIDTH = 20, 30
MAX_DISTANCE = 0.05


def make_levels(seed=0):
    """A prediction: a bright line across noise."""
    levels = np.random.default_rng(seed).integers(0, 60, (HEIGHT, WIDTH), dtype=np.uint8)
    levels[:, WIDTH // 2 + seed % 3] = 220
    return levels


def make_ids(seed=0):
    """A label map of three regions."""
    ids = np.full((HEIGHT, WIDTH), 3, dtype=np.uint8)
    ids[:, WIDTH // 2 :] = 7
    ids[: 5 + seed % 5, :8] = 200
    return ids


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def save_mat(path, **variables):
    scipy.io.savemat(path, variables)
    return path


@pytest.fixture
def folders(tmp_path):
    """Predictions and labels of five images."""
    for seed in range(5):
        save(tmp_path / "predictions" / f"000{seed}.png", make_levels(seed))
        save(tmp_path / "labels" / f"000{seed}.png", make_ids(seed))
    return tmp_path / "predictions", tmp_path / "labels"


# ----------------------------------------------------------------------------------------------------------------------
# read_map


def palette_image(ids):
    image = Image.fromarray(ids)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    return image


@pytest.mark.parametrize(
    ("image", "mode", "expected"),
    [
        (Image.fromarray(make_levels()), "L", make_levels()),
        (Image.fromarray(make_levels() > 30), "1", make_levels() > 30),
        (palette_image(make_ids()), "P", make_ids()),
        (Image.fromarray(make_ids().astype(np.uint16) * 300), "I;16", make_ids().astype(np.uint16) * 300),
    ],
    ids=["gray", "one bit", "palette", "sixteen bits"],
)
def test_images_of_one_channel_are_read_as_they_are(tmp_path, image, mode, expected):
    image.save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as saved:
        assert saved.mode == mode
    values = read_map(tmp_path / "map.png")
    assert values.dtype == expected.dtype
    np.testing.assert_array_equal(values, expected)


def test_a_mat_file_is_read_by_its_label_map(tmp_path):
    label_map = make_ids().astype(np.uint16) + 256
    path = save_mat(tmp_path / "2008_000002.mat", LabelMap=label_map, other=np.zeros((2, 2)))
    values = read_map(path)
    assert values.dtype == np.uint16
    np.testing.assert_array_equal(values, label_map)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save(path, np.stack([make_levels()] * 3, axis=-1)),
        lambda path: save(path, np.stack([make_levels()] * 2, axis=-1)),
        lambda path: path.write_text("not a image"),
        lambda path: cut(save(path, make_levels())),
        lambda path: path.touch(),
        lambda path: path.mkdir(),
        lambda path: None,
    ],
    ids=["colors", "transparency", "text", "cut", "empty", "folder", "absent"],
)
def test_what_is_no_map_is_named(tmp_path, write):
    path = tmp_path / "some map.png"
    write(path)
    with pytest.raises(ValueError, match="some map.png") as error:
        read_map(path)
    assert len(str(error.value).splitlines()) == 1


def test_no_other_program_is_started_for_a_map(tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("starts Ghostscript"))
    path = tmp_path / "map.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    for read in (read_map, read_prediction):
        with pytest.raises(ValueError, match="Cannot read .*map.png: cannot identify image file"):
            read(path)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(3000)),
        lambda path: path.touch(),
        lambda path: cut(save_mat(path, LabelMap=np.arange(600).reshape(20, 30))),
        lambda path: save_mat(path, labels=make_ids()),
        lambda path: save_mat(path, LabelMap=np.zeros((2, 3, 4), np.uint8)),
    ],
    ids=["random", "empty", "cut", "without a label map", "of three axes"],
)
def test_a_bad_mat_file_is_named(tmp_path, write):
    write(tmp_path / "2008_000002.mat")
    with pytest.raises(ValueError, match="2008_000002.mat"):
        read_map(tmp_path / "2008_000002.mat")


# ----------------------------------------------------------------------------------------------------------------------
# count_pair and pair_files


def test_a_pair_counts_as_its_arrays(tmp_path):
    pair = save(tmp_path / "a.png", make_levels()), save_mat(tmp_path / "a.mat", LabelMap=make_ids())
    expected = boundary_counts(make_levels(), make_ids(), MAX_DISTANCE)
    assert expected[:, 0].any()
    np.testing.assert_array_equal(count_pair(pair, MAX_DISTANCE), expected)


@pytest.mark.parametrize(
    ("prediction", "max_distance"),
    [(make_levels()[1:], MAX_DISTANCE), (make_levels(), -1.0)],
    ids=["size", "distance"],
)
def test_a_pair_that_does_not_go_together_is_named(tmp_path, prediction, max_distance):
    pair = save(tmp_path / "mine.png", prediction), save(tmp_path / "theirs.png", make_ids())
    with pytest.raises(ValueError, match=r"mine\.png.*theirs\.png"):
        count_pair(pair, max_distance)


def test_predictions_are_gray_levels_or_black_and_white(tmp_path):
    np.testing.assert_array_equal(read_prediction(save(tmp_path / "gray.png", make_levels())), make_levels())
    levels = read_prediction(save(tmp_path / "bits.png", make_levels() > 30))
    assert levels.dtype == np.uint8
    np.testing.assert_array_equal(levels, np.where(make_levels() > 30, 255, 0))


@pytest.mark.parametrize(
    ("image", "mode"),
    [
        (Image.fromarray(make_levels().astype(np.uint16)), "I;16"),
        (palette_image(make_levels()), "P"),
        (Image.fromarray(np.stack([make_levels()] * 3, axis=-1)), "RGB"),
    ],
    ids=["sixteen bits", "palette", "colors"],
)
def test_other_predictions_are_named(tmp_path, image, mode):
    image.save(tmp_path / "mine.png")
    with pytest.raises(ValueError, match=rf"mine\.png.*mode {mode}"):
        read_prediction(tmp_path / "mine.png")


def test_files_go_together_by_name_whatever_their_endings(tmp_path):
    predictions, labels = tmp_path / "predictions", tmp_path / "labels"
    for name in ("b", "a", "c.v2"):
        save(predictions / f"{name}.png", make_levels())
        labels.mkdir(exist_ok=True)
        save_mat(labels / f"{name}.mat", LabelMap=make_ids())
    (labels / "folder").mkdir()
    (labels / ".DS_Store").touch()
    pairs = pair_files(predictions, labels)
    assert list(pairs) == ["a", "b", "c.v2"]
    assert pairs["b"] == (predictions / "b.png", labels / "b.mat")


def test_only_the_wanted_images_need_to_be_there(folders):
    predictions, labels = folders
    (predictions / "0001.png").unlink()
    (labels / "0002.png").unlink()
    assert list(pair_files(predictions, labels, ["0003", "0000", "0003"])) == ["0000", "0003"]


@pytest.mark.parametrize("lacking", [0, 1], ids=["predictions", "labels"])
def test_what_is_missing_is_named(folders, lacking):
    (folders[lacking] / "0003.png").unlink()
    for names in (None, ["0002", "0003"]):
        with pytest.raises(FileNotFoundError, match="'0003'") as error:
            pair_files(*folders, names)
        assert f"{folders[lacking]} lacks 1 of" in str(error.value)


@pytest.mark.parametrize("absent", [0, 1], ids=["predictions", "labels"])
def test_an_absent_folder_is_named(folders, absent):
    wrong = list(folders)
    wrong[absent] = folders[absent].with_name("nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pair_files(*wrong)


@pytest.mark.parametrize("names", [None, []])
def test_nothing_to_evaluate_is_an_error(tmp_path, names):
    for name in ("predictions", "labels"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=r"no image.*predictions.*labels"):
        pair_files(tmp_path / "predictions", tmp_path / "labels", names)


@pytest.mark.parametrize("folder", [0, 1], ids=["predictions", "labels"])
def test_two_files_of_one_name_are_named(folders, folder):
    save(folders[folder] / "0003.bmp", make_levels())
    with pytest.raises(ValueError, match=r"0003\.bmp.*0003\.png"):
        pair_files(*folders)


# ----------------------------------------------------------------------------------------------------------------------
# count_boundaries


def expected_counts(seeds=range(5), max_distance=MAX_DISTANCE):
    return {f"000{seed}": boundary_counts(make_levels(seed), make_ids(seed), max_distance) for seed in seeds}


def assert_counts(found, expected):
    assert list(found) == list(expected)
    for name, counts in expected.items():
        assert found[name].dtype == np.int64
        np.testing.assert_array_equal(found[name], counts)


def forge(folder):
    """Adds 1000 to all counts that are kept, so that they tell whether they are counted again."""
    for path in folder.glob("*/*.npz"):
        with np.load(path) as arrays:
            counts = arrays["counts"]
        np.savez_compressed(path, counts=counts + 1000)


@pytest.fixture
def threads(monkeypatch):
    """Threads instead of processes: they take no second to start."""
    monkeypatch.setattr(boundary_files, "process_pool", ThreadPoolExecutor)


@pytest.fixture
def forged(folders, tmp_path, threads):
    """Pairs, and a folder of counts that cannot be."""
    pairs, path = pair_files(*folders), tmp_path / "counts"
    count_boundaries(pairs, MAX_DISTANCE, path)
    forge(path)
    return pairs, path


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_counts_are_those_of_the_arrays_in_any_number_of_processes(folders, tmp_path, num_processes):
    path = tmp_path / "new" / "counts"
    assert_counts(count_boundaries(pair_files(*folders), MAX_DISTANCE, path, num_processes), expected_counts())


def test_what_is_counted_is_not_counted_again(forged):
    pairs, path = forged
    again = count_boundaries(pairs, MAX_DISTANCE, path)
    assert_counts(again, {name: counts + 1000 for name, counts in expected_counts().items()})


def test_a_part_of_the_images_uses_what_is_counted(forged):
    pairs, path = forged
    some = {name: pairs[name] for name in ("0003", "0001")}
    counts = expected_counts([3, 1])
    assert_counts(count_boundaries(some, MAX_DISTANCE, path), {name: counts[name] + 1000 for name in some})
    assert len(count_boundaries(pairs, MAX_DISTANCE, path)) == len(pairs)


@pytest.mark.parametrize("which", [0, 1], ids=["prediction", "label"])
def test_a_changed_file_is_counted_again(forged, which):
    pairs, path = forged
    save(pairs["0002"][which], (make_levels(4), make_ids(4))[which])
    arrays = (make_levels(4), make_ids(2)) if which == 0 else (make_levels(2), make_ids(4))
    expected = {name: counts + 1000 for name, counts in expected_counts().items()}
    expected["0002"] = boundary_counts(*arrays, MAX_DISTANCE)
    assert_counts(count_boundaries(pairs, MAX_DISTANCE, path), expected)


def test_another_distance_starts_anew(forged, caplog):
    pairs, path = forged
    counts = count_boundaries(pairs, 0.01, path)
    assert_counts(counts, expected_counts(max_distance=0.01))
    assert "other settings" in caplog.text
    assert any((counts[name] != value).any() for name, value in expected_counts().items())


def test_a_broken_file_is_named_and_what_was_counted_before_is_kept(folders, tmp_path, threads):
    pairs, path = pair_files(*folders), tmp_path / "counts"
    pairs["0003"][0].write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"predictions/0003\.png"):
        count_boundaries(pairs, MAX_DISTANCE, path, num_processes=2)
    forge(path)
    save(pairs["0003"][0], make_levels(3))
    expected = {name: counts + 1000 * (name < "0003") for name, counts in expected_counts().items()}
    assert_counts(count_boundaries(pairs, MAX_DISTANCE, path), expected)
