import os
from pathlib import Path

import pytest

from transformers_sem.inference.inputs import find_sources


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(folder, *inputs, output="out"):
    sources = find_sources([str(folder / text) for text in inputs], folder / output)
    return {source.path.relative_to(folder).as_posix(): source.name for source in sources}


def test_a_folder_is_searched_with_the_folders_in_it(tmp_path):
    make(tmp_path, "a.jpg", "x.jpg/b.PNG", "sub/deep/c.webp", "notes.txt", ".hidden/d.jpg", "._a.jpg", "out/e.png")
    assert found(tmp_path, "") == {"a.jpg": "a", "x.jpg/b.PNG": "x.jpg/b", "sub/deep/c.webp": "sub/deep/c"}


def test_photos_of_one_stem_keep_their_endings(tmp_path):
    make(tmp_path, "a.jpg", "a.png", "sub/a.jpg", "b.jpg", "a.png.bmp")
    names = found(tmp_path, "")
    assert names["a.jpg"] == "a.jpg" and names["a.png"] == "a.png"
    assert names["sub/a.jpg"] == "sub/a" and names["b.jpg"] == "b"
    assert len(set(names.values())) == 5


def test_names_start_at_the_folder_that_holds_all_inputs(tmp_path):
    make(tmp_path, "one/a.jpg", "two/a.jpg", "b.jpg")
    assert found(tmp_path, "one", "two") == {"one/a.jpg": "one/a", "two/a.jpg": "two/a"}
    assert found(tmp_path, "b.jpg", "two") == {"b.jpg": "b", "two/a.jpg": "two/a"}


def test_patterns_take_what_a_folder_would_give(tmp_path):
    make(tmp_path, "one/a.jpg", "one/b.txt", "two/deep/c.jpg", "[x].jpg")
    assert set(found(tmp_path, "**/*")) == {"one/a.jpg", "two/deep/c.jpg", "[x].jpg"}
    assert set(found(tmp_path, "*/a.*")) == {"one/a.jpg"}
    assert set(found(tmp_path, "[x].jpg")) == {"[x].jpg"}  # a file of such a name is that file
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*\*.bmp"):
        found(tmp_path, "*.bmp")


def test_kinds(tmp_path, monkeypatch):
    make(tmp_path, "a.MP4", "b.gif", "7")
    monkeypatch.chdir(tmp_path)
    kinds = {source.name: source.kind for source in find_sources(["a.MP4", "b.gif", "0", "7"], Path("out"))}
    assert kinds == {"a": "video", "b": "photo", "7": "photo", "camera0": "camera"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_stands_for_itself(tmp_path):
    make(tmp_path, "a.jpg", "closed/b.jpg")
    (tmp_path / "closed").chmod(0)
    assert set(found(tmp_path, "")) == {"a.jpg", "closed"}
    (tmp_path / "closed").chmod(0o700)


def test_nothing_to_do_is_an_error(tmp_path):
    make(tmp_path, "notes.txt")
    with pytest.raises(FileNotFoundError, match="no picture and no video"):
        found(tmp_path, "")


def test_a_file_named_twice_is_predicted_once(tmp_path):
    make(tmp_path, "one/a.jpg")
    assert len(found(tmp_path, "one", "one/a.jpg", "one/../one")) == 1
