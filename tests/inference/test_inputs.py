import hashlib
import json
import os
from pathlib import Path

import pytest

from transformers_sem.inference.inputs import find_inputs


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(folder, *inputs, output="out"):
    items = find_inputs([str(folder / text) for text in inputs], folder / output)
    return {item.path.relative_to(folder).as_posix(): item.name for item in items}


def test_folders_are_searched_recursively(tmp_path):
    make(tmp_path, "a.jpg", "x.jpg/b.PNG", "sub/deep/c.webp", "notes.txt", ".hidden/d.jpg", "._a.jpg", "out/e.png")
    assert found(tmp_path, "") == {"a.jpg": "a", "x.jpg/b.PNG": "x.jpg/b", "sub/deep/c.webp": "sub/deep/c"}


def test_images_with_the_same_stem_keep_their_endings(tmp_path):
    make(tmp_path, "a.jpg", "a.png", "sub/a.jpg", "b.jpg", "a.png.bmp")
    names = found(tmp_path, "")
    assert names["a.jpg"] == "a.jpg" and names["a.png"] == "a.png"
    assert names["sub/a.jpg"] == "sub/a" and names["b.jpg"] == "b"
    assert len(set(names.values())) == 5


def test_names_that_differ_in_case_alone_keep_their_ending(tmp_path):
    make(tmp_path, "IMG_1.jpg", "img_1.png", "IMG_2.jpg")
    assert found(tmp_path, "") == {"IMG_1.jpg": "IMG_1.jpg", "img_1.png": "img_1.png", "IMG_2.jpg": "IMG_2"}


def test_names_are_relative_to_the_common_folder(tmp_path):
    make(tmp_path, "one/a.jpg", "two/a.jpg", "b.jpg")
    assert found(tmp_path, "one", "two") == {"one/a.jpg": "one/a", "two/a.jpg": "two/a"}
    assert found(tmp_path, "b.jpg", "two") == {"b.jpg": "b", "two/a.jpg": "two/a"}


def test_patterns_match_the_same_files_as_folders(tmp_path):
    make(tmp_path, "one/a.jpg", "one/b.txt", "two/deep/c.jpg", "[x].jpg")
    assert set(found(tmp_path, "**/*")) == {"one/a.jpg", "two/deep/c.jpg", "[x].jpg"}
    assert set(found(tmp_path, "*/a.*")) == {"one/a.jpg"}
    assert set(found(tmp_path, "[x].jpg")) == {"[x].jpg"}  # an existing file takes precedence over a pattern
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*\*.bmp"):
        found(tmp_path, "*.bmp")


def test_kinds(tmp_path, monkeypatch):
    make(tmp_path, "a.MP4", "b.gif", "7")
    monkeypatch.chdir(tmp_path)
    kinds = {item.name: item.kind for item in find_inputs(["a.MP4", "b.gif", "0", "7"], Path("out"))}
    assert kinds == {"a": "video", "b": "image", "7": "image", "camera0": "camera"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_returned_itself(tmp_path):
    make(tmp_path, "a.jpg", "closed/b.jpg")
    (tmp_path / "closed").chmod(0)
    assert set(found(tmp_path, "")) == {"a.jpg", "closed"}
    (tmp_path / "closed").chmod(0o700)


def test_a_folder_without_images_raises(tmp_path):
    make(tmp_path, "notes.txt")
    with pytest.raises(FileNotFoundError, match="no image and no video"):
        found(tmp_path, "")


def test_a_file_named_twice_is_returned_once(tmp_path):
    make(tmp_path, "one/a.jpg")
    assert len(found(tmp_path, "one", "one/a.jpg", "one/../one")) == 1


def test_an_image_beside_a_folder_of_the_name_of_its_result_keeps_its_ending(tmp_path):
    make(tmp_path, "x.jpg", "x.png/y.jpg", "z.jpg")
    assert found(tmp_path, "") == {"x.jpg": "x.jpg", "x.png/y.jpg": "x.png/y", "z.jpg": "z"}


def test_results_of_earlier_runs_are_not_inputs(tmp_path):
    make(tmp_path, "a.jpg", "panels/a.png", "maps/depth/a.png", "own/panels/b.jpg", "json/other.json")
    (tmp_path / "json" / "a.json").write_text(json.dumps({"files": ["panels/a.png", "maps/depth/a.png"]}))
    assert set(found(tmp_path, "", output="")) == {"a.jpg", "own/panels/b.jpg"}
    assert set(found(tmp_path, "**/*", output="")) == {"a.jpg", "own/panels/b.jpg"}
    assert set(found(tmp_path, "a.jpg", output="")) == {"a.jpg"}
    with pytest.raises(ValueError, match="is a result in the output folder"):
        found(tmp_path, "panels/a.png", output="")


def test_folders_of_a_user_may_have_the_names_of_those_of_results(tmp_path):
    own = {"raw/b.jpg", "videos/c.mp4", "maps/d.png", "maps/city/e.png", "json/f.png"}
    make(tmp_path, "a.jpg", *own)
    assert set(found(tmp_path, "", output="")) == {"a.jpg", *own}
    (tmp_path / "json" / "g.json").write_text(json.dumps({"files": ["panels/g.png", "maps/depth/g.png"]}))
    # the last ones are of a run that was stopped before it listed them
    make(tmp_path, "panels/g.png", "maps/depth/g.png", "panels/a.png", "maps/depth/a.png", "videos/raw/b.mp4")
    make(tmp_path, f"panels/unfinished_{hashlib.sha256(b'z').hexdigest()[:12]}_z.png")
    assert set(found(tmp_path, "", output="")) == {"a.jpg", *own}
