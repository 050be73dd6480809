import base64
import re
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_sem import TASKS
from transformers_sem.demo.point_cloud import to_points
from transformers_sem.demo.results import MAX_TABLE_SIDE, legend, pixel_table, point_cloud, write_results
from transformers_sem.task_kinds import class_palette
from transformers_sem.visualization.colors import colorize_map

from ..samples import random_logits


NAMES = {"semseg": {0: "wall", 1: "<b>floor</b>", 2: "door"}}


def random_maps(size, tasks=TASKS):
    return {task: TASKS[task].kind.predict(random_logits(task, 1, size))[0] for task in tasks}


def read_table(table, row, column):
    """Decodes `{title: values}` at a position of the grid, as pixel_values.js does."""
    levels = np.frombuffer(base64.b64decode(table["data"]), "<u2").reshape(-1, table["height"], table["width"])
    plane, values = 0, {}
    for task in table["tasks"]:
        numbers = [
            low + step * levels[plane + index, row, column] for index, (low, step) in enumerate(task["channels"])
        ]
        plane += len(task["channels"])
        values[task["title"]] = task["names"][str(int(numbers[0]))] if task["names"] else numbers
    assert plane == len(levels)
    return values


def test_the_table_of_a_small_image_has_the_values_of_every_pixel():
    maps = random_maps((6, 9))
    table = pixel_table(maps, NAMES)
    assert (table["height"], table["width"]) == (6, 9)
    for row in range(6):
        for column in range(9):
            values = read_table(table, row, column)
            for task, expected in maps.items():
                value = expected[..., row, column]
                if value.is_floating_point():
                    error = np.abs(np.array(values[TASKS[task].title]) - value.numpy().reshape(-1)).max()
                    assert error <= 1e-4, task
                else:
                    name = NAMES.get(task, {}).get(value.item(), f"class {value.item()}")
                    assert values[TASKS[task].title] == name


@pytest.mark.parametrize("size", [(500, 1024), (1, 1), (321, 3)])
def test_the_table_of_a_large_image_samples_the_centers_of_a_grid(size):
    rows, columns = (torch.arange(edge).float() for edge in size)
    table = pixel_table({"depth": rows[:, None].expand(size), "boundary": columns.expand(size)}, {})
    height, width = table["height"], table["width"]
    assert (height, width) == tuple(min(edge, MAX_TABLE_SIDE) for edge in size)
    for row, column in [(0, 0), (height - 1, width - 1), (height // 2, width // 3)]:
        ((y,), (x,)) = read_table(table, row, column).values()
        assert abs(y + 0.5 - (row + 0.5) * size[0] / height) <= 0.51
        assert abs(x + 0.5 - (column + 0.5) * size[1] / width) <= 0.51


def test_class_legends_list_names_colors_and_areas():
    ids = torch.tensor([[1, 1, 1, 0], [1, 1, 2, 7]])
    text = legend("semseg", ids, colorize_map("semseg", ids), NAMES["semseg"])
    shares = re.findall(r"rgb\(([\d,]+)\)'></i>(.*?) (\d+%)", text)
    assert [(name, share) for _, name, share in shares] == [
        ("&lt;b&gt;floor&lt;/b&gt;", "62%"),
        ("wall", "12%"),
        ("door", "12%"),
        ("class 7", "12%"),
    ]
    assert [color for color, _, _ in shares] == [",".join(map(str, class_palette()[id])) for id in (1, 0, 2, 7)]


def test_the_scale_of_depth_has_the_colors_of_the_map():
    depth = torch.linspace(1, 5, 200 * 100).reshape(200, 100)
    colors = colorize_map("depth", depth)
    text = legend("depth", depth, colors, {})
    assert re.findall(r"<span>(.*?)</span>", text) == ["1.08 m", "4.92 m"]
    stops = np.array(re.findall(r"rgb\((\d+),(\d+),(\d+)\)", text), dtype=int)
    assert (stops[0] == colors[4, 0]).all()
    assert (stops[-1] == colors[196, 0]).all()


def test_the_point_cloud_is_sampled_on_the_grid():
    maps = random_maps((6, 8))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8))
    colors = {task: colorize_map(task, values) for task, values in maps.items()}
    cloud = point_cloud(image, maps, colors)
    points = np.frombuffer(base64.b64decode(cloud["points"]), "<f4").reshape(6, 8, 3)
    np.testing.assert_array_equal(points, to_points(maps["depth"].numpy()))
    # the spacing is the distance of neighboring points at a depth of one metre
    flat = to_points(np.ones((6, 8), np.float32))
    assert flat[2, 4, 0] - flat[2, 3, 0] == pytest.approx(cloud["spacing"], rel=1e-5)
    assert list(cloud["colors"]) == ["image", "semantic segmentation", "human parts"]
    assert base64.b64decode(cloud["colors"]["image"]) == image.tobytes()
    assert point_cloud(image, {"boundary": maps["boundary"]}, colors) is None


def test_the_archive_has_every_map_raw_in_color_and_encoded(tmp_path):
    maps = random_maps((6, 8))
    results = write_results(tmp_path, Image.new("RGB", (8, 6)), maps, {})
    with zipfile.ZipFile(results.archive) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        archive.extractall(tmp_path / "unpacked")
    assert {"image.png", "maps.npz", "depth_points.ply"} <= names
    assert {f"colors/{task}.png" for task in maps} | {f"values/{task}/image.png" for task in maps} <= names
    with np.load(tmp_path / "unpacked" / "maps.npz") as arrays:
        assert {task: arrays[task].tolist() for task in arrays} == {task: maps[task].tolist() for task in maps}
    millimetres = np.asarray(Image.open(tmp_path / "unpacked" / "values" / "depth" / "image.png"))
    np.testing.assert_allclose(millimetres / 1000, maps["depth"].numpy(), atol=6e-4)


def test_an_image_of_one_pixel_has_all_results(tmp_path):
    results = write_results(tmp_path, Image.new("RGB", (1, 1)), random_maps((1, 1)), {})
    assert list(read_table(results.table, 0, 0)) == [spec.title for spec in TASKS.values()]
    assert set(results.legends) == set(results.maps) == set(TASKS)
