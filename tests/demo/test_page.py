"""The page without a browser. Needs the extra `demo`."""

import configparser
import os
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from transformers_sem import TASKS

from .files import write_bad_files, write_huge_png


gradio = pytest.importorskip("gradio", reason="the extra `demo` is not installed")


def request(page, session):
    return SimpleNamespace(session_hash=session, state=SimpleNamespace(folder=page.root / "visitor"))


def result_folders(page):
    return list((page.root / "visitor").iterdir())


def test_the_page_has_a_slider_and_a_legend_for_each_task(page):
    kinds = [type(block).__name__ for block in page.blocks.blocks.values()]
    assert kinds.count("ImageSlider") == len(TASKS)
    assert list(page.sliders) == list(page.legends) == list(TASKS)
    text = next(block.value for block in page.blocks.blocks.values() if isinstance(block, gradio.Markdown))
    assert "**tiny**" in text and "2 MB" in text


def test_an_image_fills_the_page_and_closing_deletes_its_files(page, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    updates = page.show(str(tmp_path / "photo.png"), request(page, "../../a"))
    assert updates[page.results]["visible"] and updates[page.archive]["visible"]
    assert (updates[page.table]["height"], updates[page.table]["width"]) == (20, 30)
    assert "30 x 20 pixels" in updates[page.status]
    for slider in page.sliders.values():
        image, task_map = (np.asarray(Image.open(path)) for path in updates[slider])
        assert (image == pixels).all()
        assert task_map.shape == pixels.shape
    (folder,) = result_folders(page)
    assert str(folder) in updates[page.archive]["value"]
    assert folder.stat().st_mode & 0o077 == 0
    page.show(str(tmp_path / "photo.png"), request(page, "../../a"))
    assert len(result_folders(page)) == 1, "the folder of the previous image is deleted"
    page.delete_results(request(page, "../../a"))
    assert result_folders(page) == []


@pytest.mark.parametrize("size", [(1, 1), pytest.param((12_000, 9_000), marks=pytest.mark.slow)])
def test_the_smallest_and_the_largest_image_fill_the_page(page, tmp_path, size):
    Image.new("RGB", size, (200, 100, 50)).save(tmp_path / "photo.png")
    updates = page.show(str(tmp_path / "photo.png"), request(page, "c"))
    assert updates[page.results]["visible"]
    assert f"{size[0]:,} x {size[1]:,} pixels" in updates[page.status]
    assert ("reduced to 1024 x 768" in updates[page.status]) == (size[0] > 1024)
    page.delete_results(request(page, "c"))


def test_folders_of_pages_left_open_are_deleted_after_a_while(page):
    visitor = page.root / "visitor"
    old, kept = page.folders.renew(visitor, "old"), page.folders.renew(visitor, "kept")
    os.utime(old, (0, 0))
    page.folders.renew(visitor, "new")
    assert not old.exists() and kept.exists()
    page.folders.remove(page.root / "another", "kept")
    assert kept.exists(), "a session belongs to one visitor"
    for session in ("kept", "new"):
        page.folders.remove(visitor, session)


def test_bad_files_give_a_message_and_no_results(page, tmp_path):
    for path, word in write_bad_files(tmp_path / "bad").items():
        updates = page.show(str(path), request(page, "b"))
        assert "status error" in updates[page.status] and word in updates[page.status], path.name
        assert updates[page.results]["visible"] is False
    assert result_folders(page) == []


def test_an_image_of_too_many_pixels_is_not_decoded(page, tmp_path):
    write_huge_png(tmp_path / "photo.png", 12_001, 9_000)
    updates = page.show(str(tmp_path / "photo.png"), request(page, "b"))
    assert "at most 108 million pixels; got 12,001 x 9,000" in updates[page.status]


def test_rendered_rooms_are_not_training_data(monkeypatch):
    from transformers_sem.demo import page

    seeds = []
    monkeypatch.setattr(
        page, "render_scene", lambda seed, *size: seeds.append(seed) or {"image": np.zeros((2, 2, 3), np.uint8)}
    )
    for _ in range(20):
        page.draw_scene()
    assert all(seed % 2 == 1 for seed in seeds) and len(set(seeds)) > 1


def test_gradio_writes_no_files_into_the_package(page, repository):
    assert list((repository / "src").rglob("*.pyi")) == []


def test_the_space_has_the_requirements_of_the_package(repository):
    setup = configparser.ConfigParser()
    setup.read(repository / "setup.cfg")
    extras = setup["options.extras_require"]
    demo = extras["demo"].replace("transformers-sem[heic]", extras["heic"])
    needed = setup["options"]["install_requires"].split() + demo.split()
    assert (repository / "src/transformers_sem/demo/space" / "requirements.txt").read_text().split() == needed
    _, front_matter, _ = (repository / "src/transformers_sem/demo/space" / "README.md").read_text().split("---\n", 2)
    settings = yaml.safe_load(front_matter)
    assert (settings["sdk"], settings["app_file"]) == ("gradio", "app.py")
    assert f"gradio>={settings['sdk_version'].rpartition('.')[0]}" in needed
