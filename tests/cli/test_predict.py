"""The command `predict`: files good and bad, killed, on two ranks, a video."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transformers_sem.tasks import TASKS as TASK_TABLE
from transformers_sem.utils.files import locked

from .commands import TASKS, error_line, run, run_ranks, start


def save_photo(path, size=(70, 45), **kwargs):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **kwargs)
    return path


def read_maps(path, height, width):
    """Raw maps of a photo, checked for what the tasks promise."""
    with np.load(path) as file:
        maps = dict(file)
    assert list(maps) == TASKS
    assert {maps[task].shape[-2:] for task in TASKS} == {(height, width)}
    assert maps["semseg"].dtype == np.int64
    assert (maps["depth"] >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(maps["normal"], axis=0), 1, atol=1e-4)
    for task in ("boundary", "saliency"):
        assert maps[task].min() >= 0 and maps[task].max() <= 1
    return maps


def predict_arguments(model, photos, output, *more):
    return ["--model", model, "--input", photos, "--output", output, *more]


def files_of(folder):
    """`{relative path: (content, time)}` without the lock; contents of what holds no time of its own."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_predicting_one_photo(trained, tmp_path):
    """It was taken with the camera on its side, as its EXIF orientation says."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo, output = save_photo(tmp_path / "photo.jpg", size=(70, 45), exif=exif), tmp_path / "out"
    result = run("predict", *predict_arguments(trained, photo, output, "--inside"))
    assert result.code == 0, result.errors
    assert "Predicted 1, done before 0, not usable 0." in result.output
    maps = read_maps(output / "raw" / "photo.npz", height=70, width=45)
    for kind in ("panels", "inside"):
        with Image.open(output / kind / "photo.png") as panel:
            assert panel.width > 45 * len(TASKS)
    facts = json.loads((output / "json" / "photo.json").read_text())
    assert (facts["height"], facts["width"], list(facts["tasks"])) == (70, 45, TASKS)
    assert facts["tasks"]["depth"]["maximum"] == maps["depth"].max()
    assert sum(entry["pixels"] for entry in facts["tasks"]["semseg"]["classes"]) == 70 * 45
    for task, told in facts["tasks"].items():
        with Image.open(output / told["file"]) as picture:
            encoded = np.asarray(picture)
        np.testing.assert_array_equal(encoded, np.asarray(TASK_TABLE[task].kind.encode(maps[task])))
    assert set(facts["files"]) == set(files_of(output)) - {"json/photo.json"}


@pytest.fixture
def good_and_bad(tmp_path):
    """A folder of photos, five good and four bad."""
    photos = tmp_path / "photos"
    (photos / "x.jpg").mkdir(parents=True)
    save_photo(photos / "wide.png", size=(90, 31))
    save_photo(photos / "wide.jpg", size=(90, 31))
    save_photo(photos / "x.jpg" / "wide.png", size=(33, 41))
    save_photo(photos / "one.bmp", size=(1, 1))
    Image.fromarray(np.arange(300, dtype=np.uint16).reshape(15, 20) * 200).save(photos / "gray.png")
    (photos / "text.jpg").write_bytes(b"no picture")
    (photos / "zero.jpg").touch()
    (photos / "cut.png").write_bytes((photos / "wide.png").read_bytes()[:500])
    (photos / "film.mp4").write_bytes(b"no film")
    (photos / "notes.txt").write_text("no picture either")
    return photos


BAD = ["cut.png", "film.mp4", "text.jpg", "zero.jpg"]
GOOD = {"wide.png": (31, 90), "wide.jpg": (31, 90), "x.jpg/wide": (41, 33), "one": (1, 1), "gray": (15, 20)}


def assert_good_and_bad(result, photos, output, summary):
    assert result.code == 1
    assert "Traceback" not in result.errors
    assert summary in result.errors
    named = [line.split(": ")[0] for line in result.errors.splitlines() if line.startswith("  Cannot read ")]
    assert named == [f"  Cannot read {photos / name}" for name in BAD]
    for name, (height, width) in GOOD.items():
        read_maps(output / "raw" / f"{name}.npz", height, width)
        assert (output / "json" / f"{name}.json").is_file() and (output / "panels" / f"{name}.png").is_file()
    assert len([*output.rglob("*.json")]) == len(GOOD)
    assert not [*output.rglob("unfinished*")]


def test_the_output_is_no_file(trained, tmp_path):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (32, 32)).save(photo)
    result = run("predict", "--model", trained, "--input", photo, "--output", photo)
    assert result.code == 1 and "--output is a folder for the results; got the file" in result.errors


def test_predicting_a_folder_with_bad_files(trained, good_and_bad):
    """The output is in the folder itself: a second call does not take it for photos, and has nothing to do."""
    output = good_and_bad / "out"
    arguments = predict_arguments(trained, good_and_bad, output)
    result = run("predict", *arguments, "--batch-size", 2)
    assert_good_and_bad(result, good_and_bad, output, "Predicted 5, done before 0, not usable 4.")
    before = files_of(output)
    assert_good_and_bad(run("predict", *arguments), good_and_bad, output, "Predicted 0, done before 5, not usable 4.")
    assert files_of(output) == before
    # another photo under an old name, and a result that was deleted
    save_photo(good_and_bad / "one.bmp", size=(2, 1))
    (output / "panels" / "gray.png").unlink()
    result = run("predict", *arguments)
    assert "Predicted 2, done before 3, not usable 4." in result.errors
    read_maps(output / "raw" / "one.npz", height=1, width=2)
    assert (output / "panels" / "gray.png").is_file()


@pytest.mark.slow
def test_other_settings_predict_again(trained, tmp_path):
    photo, output = save_photo(tmp_path / "photo.png", size=(90, 70)), tmp_path / "out"
    depths = []
    for more in ([], ["--tile", 64], ["--tta", "flip", "1.25"], ["--dtype", "bfloat16"]):
        result = run("predict", *predict_arguments(trained, photo, output, *more))
        assert "Predicted 1, done before 0" in result.output, result.errors
        depths.append(read_maps(output / "raw" / "photo.npz", 70, 90)["depth"])
    assert all(not np.array_equal(depths[0], other) for other in depths[1:])
    assert "got 'flop'" in error_line(run("predict", *predict_arguments(trained, photo, output, "--tta", "flop")))


@pytest.mark.slow
def test_killed_in_the_middle_a_second_call_does_only_the_rest(trained, tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for index in range(8):
        save_photo(photos / f"{index}.png", size=(300 + index, 200))
    arguments = predict_arguments(trained, photos, output)
    process = start("predict", arguments, tmp_path / "printed")
    while len([*output.glob("json/?.json")]) < 2:
        assert process.is_alive()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    done = [path.stem for path in output.glob("json/?.json")]
    assert 2 <= len(done) < 8
    before = {name: entry for name, entry in files_of(output).items() if Path(name).stem in done}
    result = run("predict", *arguments)
    assert result.code == 0, result.errors
    assert f"Predicted {8 - len(done)}, done before {len(done)}, not usable 0." in result.output
    after = files_of(output)
    assert {name: after[name] for name in before} == before
    for index in range(8):
        read_maps(output / "raw" / f"{index}.npz", 200, 300 + index)
    assert len(after) == 8 * (3 + len(TASKS)) and not [name for name in after if "unfinished" in name]


@pytest.mark.slow
def test_two_ranks_predict_as_one(trained, good_and_bad, tmp_path):
    outputs = [tmp_path / "alone", tmp_path / "together"]
    alone = run("predict", *predict_arguments(trained, good_and_bad, outputs[0]))
    ranks = run_ranks("predict", predict_arguments(trained, good_and_bad, outputs[1]), tmp_path / "ranks")
    assert [result.code for result in ranks] == [1, 1]
    for result, output in zip((alone, ranks[0]), outputs, strict=True):
        assert_good_and_bad(result, good_and_bad, output, "Predicted 5, done before 0, not usable 4.")
    assert "Predicted" not in ranks[1].errors + ranks[1].output
    first, second = ({name: content for name, (content, _) in files_of(output).items()} for output in outputs)
    assert first == second


@pytest.mark.slow
def test_predicting_a_video(trained, tmp_path):
    av = pytest.importorskip("av")
    path, output = tmp_path / "film.mp4", tmp_path / "out"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(5):
            pixels = np.full((48, 64, 3), 40 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    arguments = predict_arguments(trained, path, output, "--batch-size", 2, "--max-frames", 3)
    result = run("predict", *arguments)
    assert result.code == 0, result.errors
    with av.open(str(output / "videos" / "film.mp4")) as container:
        assert (container.streams.video[0].average_rate, container.streams.video[0].height) == (10, 48)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 3
    for index, frame in enumerate(frames):
        assert frame.shape == (48, 160, 3)
        assert abs(frame[:, :60].mean() - 40 * index) < 8  # at the left the frame, at the right a grid of 3 x 2 maps
    assert json.loads((output / "json" / "film.json").read_text())["num_frames"] == 3
    assert "Predicted 0, done before 1" in run("predict", *arguments).output
    assert sorted(files_of(output)) == ["json/film.json", "videos/film.mp4"]


def test_a_second_run_into_the_same_folder_is_refused(trained, tmp_path):
    photo, output = save_photo(tmp_path / "photo.png"), tmp_path / "out"
    with locked(output / ".lock", "One test at a time"):
        assert "One run writes to a folder at a time" in error_line(
            run("predict", *predict_arguments(trained, photo, output))
        )
    assert files_of(output) == {}
    assert run("predict", *predict_arguments(trained, photo, output)).code == 0


@pytest.mark.parametrize("missing", ["input", "model"])
def test_predicting_without_a_photo_or_a_model(trained, tmp_path, missing):
    photo = save_photo(tmp_path / "photo.png")
    paths = {"model": trained, "input": photo} | {missing: tmp_path / "absent"}
    result = run("predict", "--model", paths["model"], "--input", paths["input"], "--output", tmp_path / "out")
    assert "absent" in error_line(result)
    assert not (tmp_path / "out").exists()


def test_predicting_an_empty_folder(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no image" in error_line(run("predict", *predict_arguments(trained, tmp_path / "empty", tmp_path / "out")))
