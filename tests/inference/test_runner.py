"""The prediction run around the predictor. The `predict` command is tested in tests/cli/test_predict.py."""

import errno
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from transformers_sem.inference import runner, tiling
from transformers_sem.inference.inputs import InputItem, find_inputs
from transformers_sem.inference.outputs import OutputFolder
from transformers_sem.inference.runner import PredictionRunner, make_batches


def predict_depth(images):
    """A predictor that rejects small images."""
    if min(min(image.shape[-2:]) for image in images) < 4:
        raise ValueError("An image must be at least one patch large.")
    return [{"depth": torch.ones(image.shape[-2:])} for image in images]


def build_runner(folder, batch_size=1):
    predict_depth.batch_size = batch_size
    return PredictionRunner(predict_depth, OutputFolder(folder, {}, "digest", {}), Accelerator(cpu=True))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_image_that_the_model_rejects_does_not_affect_the_others(tmp_path, batch_size):
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name, size in {"a": (9, 8), "b": (1, 1), "c": (7, 6)}.items():
        Image.new("RGB", size).save(images / f"{name}.png")
    summary = build_runner(output, batch_size).run(find_inputs([str(images)], output))
    assert (summary.num_predicted, summary.num_done_before) == (2, 0)
    assert summary.failures == [f"Cannot predict {images / 'b.png'}: An image must be at least one patch large."]
    assert sorted(path.stem for path in output.glob("json/*")) == ["a", "c"]


def test_batches_of_large_images_are_small(monkeypatch):
    monkeypatch.setattr(runner, "MAX_BATCH_PIXELS", 250)
    images = [(index, None, torch.zeros(3, edge, 10)) for index, edge in enumerate([10, 10, 10, 90, 1, 1, 1])]
    assert [[image[0] for image in batch] for batch in make_batches(iter(images), 3)] == [[0, 1], [2], [3], [4, 5, 6]]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"fingerprint": null}'])
def test_other_json_files_do_not_mark_an_item_as_complete(tmp_path, text):
    item = InputItem(tmp_path / "photo.png", "photo", "image")
    item.path.write_bytes(np.arange(9).tobytes())
    outputs = OutputFolder(tmp_path, {}, "digest", {})
    outputs.path("json", item, ".json").write_text(text)
    assert not outputs.is_complete(item, outputs.fingerprint(item))


def test_cameras_are_never_complete(tmp_path):
    item = InputItem(tmp_path / "0", "camera0", "camera")
    outputs = OutputFolder(tmp_path, {}, "digest", {})
    outputs.write_description(item, outputs.fingerprint(item), [])
    assert not outputs.is_complete(item, outputs.fingerprint(item))
    assert not outputs.is_complete(SimpleNamespace(kind="image", path=tmp_path / "absent", name="absent"), None)


def predict_files(tmp_path, *names):
    """Predicts images of these names, given as bytes, and returns the summary and the names in the descriptions."""
    images, output = tmp_path / "images", tmp_path / "out"
    for name in names:
        path = images / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8)).save(path, "PNG")
    items = find_inputs([str(images)], output)
    summary = build_runner(output).run(items)
    assert build_runner(output).run(items).num_done_before == summary.num_predicted
    sources = [json.loads(path.read_text(encoding="utf-8"))["source"] for path in sorted(output.glob("json/*"))]
    return summary, sorted(os.fsencode(os.path.basename(source)) for source in sources)


def test_odd_names_are_names(tmp_path):
    """Not UTF-8; as long as names may be; the one that an unfinished file of its neighbor could have."""
    names = [b"caf\xe9.png", b"n" * 245 + b".png", b"unfinished_z.png", b"z.png"]
    summary, sources = predict_files(tmp_path, *names)
    assert (summary.num_predicted, summary.failures) == (4, [])
    assert sources == sorted(names)


def test_a_name_that_is_too_long_for_a_result_does_not_affect_the_others(tmp_path):
    long_name = b"n" * 251 + b".png"  # its description would have one byte more
    summary, sources = predict_files(tmp_path, b"a.png", long_name, b"z.png")
    assert sources == [b"a.png", b"z.png"] and summary.num_predicted == 2
    (failure,) = summary.failures
    assert "File name too long" in failure and failure.endswith("Rename it.")


def test_pipes_devices_and_broken_links_do_not_affect_the_others(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    os.mkfifo(images / "a.jpg")
    (images / "b.png").symlink_to("/dev/zero")
    os.mkfifo(images / "c.mp4")
    for name in ("e.jpg", "f.mp4"):
        (images / name).symlink_to("n" * 300)
    Image.new("RGB", (9, 8)).save(images / "d.png")
    summary = build_runner(tmp_path / "out").run(find_inputs([str(images)], tmp_path / "out"))
    assert summary.num_predicted == 1
    assert [failure.split(": ")[0] for failure in summary.failures] == [
        f"Cannot read {images / name}" for name in ("a.jpg", "b.png", "c.mp4", "e.jpg", "f.mp4")
    ]
    assert all("regular file" in failure for failure in summary.failures[:3])
    assert all("File name too long" in failure for failure in summary.failures[3:])


def test_a_full_disk_ends_the_run_with_a_sentence(tmp_path, monkeypatch):
    def fail(*arguments, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="a.png .* No space left on device. Free some space"):
        predict_files(tmp_path, b"a.png")


def test_the_room_of_a_large_map_is_taken_before_it_is_written(tmp_path, monkeypatch):
    """A hole in the file would end the process when the disk is full by then."""
    monkeypatch.setattr(tiling, "MAX_MEMORY_VALUES", 10)
    sizes = []
    memmap = np.memmap

    def note_size(file, *arguments, **kwargs):
        sizes.append(os.fstat(file.fileno()).st_blocks * 512)
        return memmap(file, *arguments, **kwargs)

    monkeypatch.setattr(np, "memmap", note_size)
    for has_fallocate in (True, False):
        if not has_fallocate:
            monkeypatch.delattr(os, "posix_fallocate", raising=False)
        values = tiling.allocate_map((3, 1000, 1000), torch.float32, tmp_path)
        values[:] = 1
        assert values.shape == (3, 1000, 1000) and sizes.pop() >= 12_000_000

    def fail(*arguments, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tiling, "reserve", fail)
    with pytest.raises(OSError, match="temporary file of 12 MB"):
        tiling.allocate_map((3, 1000, 1000), torch.float32, tmp_path)


def test_a_video_whose_frame_size_changes_is_predicted_to_its_end(tmp_path):
    av = pytest.importorskip("av")
    path, output = tmp_path / "film.mpg", tmp_path / "out"
    for size in ((64, 48), (32, 40)):
        with av.open(str(tmp_path / "part.ts"), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
            for _ in range(3):
                pixels = np.full((*size[::-1], 3), size[0], np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        with path.open("ab") as file:
            file.write((tmp_path / "part.ts").read_bytes())
    summary = build_runner(output).run([InputItem(path, "film", "video")])
    assert summary.failures == []
    with av.open(str(output / "videos" / "film.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 6 and {frame.shape for frame in frames} == {(48, 128, 3)}
