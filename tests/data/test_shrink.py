"""Shrunk images and maps stay aligned, and keep values that exist."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from transformers_sem.cli.main import main
from transformers_sem.data.benchmarks import get_benchmark
from transformers_sem.data.files import BrokenFrameError
from transformers_sem.data.shrink import shrink_boundaries, shrink_maps

from .nyud_v2_forms import write_tiny_folder


def steps(height, width, factor):
    """A map whose blocks of `factor` x `factor` pixels are constant."""
    blocks = np.arange(-(-height // factor) * -(-width // factor)).reshape(-(-height // factor), -1)
    return np.kron(blocks, np.ones((factor, factor), int))[:height, :width]


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_blocks_become_pixels(factor):
    height, width = 4 * factor + 1, 6 * factor  # the last row fills no block
    values = steps(height, width, factor)
    maps = {
        "image": np.repeat(values[..., np.newaxis], 3, axis=2).astype(np.uint8),
        "semseg": values.astype(np.uint8),
        "depth": values.astype(np.float32),
        "normal": np.repeat(values[..., np.newaxis], 3, axis=2).astype(np.uint8),
    }
    expected = values[: 4 * factor : factor, ::factor]
    for column, found in shrink_maps(maps, factor).items():
        assert found.dtype == maps[column].dtype
        assert np.array_equal(found if found.ndim == 2 else found[..., 0], expected), column


def test_colors_are_averaged_and_depths_are_not():
    maps = {"image": np.zeros((2, 2, 3), np.uint8), "depth": np.array([[1, 2], [3, 4]], np.float32)}
    maps["image"][0, 0] = 200
    shrunk = shrink_maps(maps, 2)
    assert shrunk["image"].tolist() == [[[50, 50, 50]]]
    assert shrunk["depth"].item() in (1, 2, 3, 4)


def test_a_line_stays_a_line():
    values = np.zeros((40, 40), np.uint8)
    values[:, 19:21] = 255  # two pixels in two blocks
    shrunk = shrink_boundaries(values, 4)
    assert set(np.unique(shrunk)) == {0, 255}
    assert ((shrunk > 0).sum(axis=1) == 1)[1:-1].all()  # thinning may shorten it


def test_an_image_file_is_decoded():
    buffer = BytesIO()
    Image.new("RGB", (8, 6), (10, 20, 30)).save(buffer, "PNG")
    shrunk = shrink_maps({"image": buffer.getvalue(), "semseg": np.zeros((6, 8), np.uint8)}, 2)
    assert shrunk["image"].shape == (3, 4, 3) and shrunk["image"][0, 0].tolist() == [10, 20, 30]


def test_no_shrinking_changes_nothing():
    maps = {"image": b"any bytes"}
    assert shrink_maps(maps, 1) is maps


def test_an_image_smaller_than_a_block_is_refused():
    with pytest.raises(BrokenFrameError, match="3 pixels or more"):
        shrink_maps({"image": np.zeros((2, 9, 3), np.uint8)}, 3)


def test_the_command_writes_shrunk_rows_beside_whole_ones(tmp_path):
    root = write_tiny_folder(tmp_path / "NYUDv2", {"train": ["0001", "0002"], "val": ["0010"]})
    sizes = {}
    for factor in (1, 2):
        folder = tmp_path / f"rows{factor}"
        main(["prepare", "nyud_v2", str(root), "--output", str(folder), "--processes", "1", "--shrink", str(factor)])
        row = get_benchmark("nyud_v2").load(str(folder))["validation"][0]
        sizes[factor] = {column: row[column].size for column in ("image", "semseg", "depth", "normal", "boundary")}
        assert ("2 times smaller" in (folder / "README.md").read_text()) == (factor == 2)
    assert len(set(sizes[2].values())) == 1
    assert sizes[2]["image"] == tuple(edge // 2 for edge in sizes[1]["image"])
    with pytest.raises(SystemExit, match="made of other files"):  # the folder holds rows of another size
        main(["prepare", "nyud_v2", str(root), "--output", str(folder), "--processes", "1", "--shrink", "4"])
