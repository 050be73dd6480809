import struct
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from transformers_sem.inference import video
from transformers_sem.inference.inputs import Source
from transformers_sem.inference.video import open_video, video_writer


av = pytest.importorskip("av")

RATE = Fraction(24000, 1001)
TIMES = [0, 1, 2, 5, 6, 9]  # in frames: some are shown for longer
UPRIGHT = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
HELD_ON_ITS_SIDE = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)


def write_video(path, size=(64, 48)):
    """Six frames, the left half ever lighter and the right half black."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index, time in enumerate(TIMES):
            pixels = np.zeros((size[1], size[0], 3), np.uint8)
            pixels[:, : size[0] // 2] = 40 + 30 * index
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, 1 / RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Source(Path(path), "film", "video")


def read(source):
    with open_video(source) as opened:
        return opened.rate, [(frame.time * opened.time_base, frame.pixels) for frame in opened.frames()]


def test_a_written_video_has_the_frames_and_the_times_of_its_model(tmp_path):
    source = write_video(tmp_path / "film.mp4")
    path = tmp_path / "copy.mp4"
    with open_video(source) as opened, video_writer(path, opened) as writer:
        for frame in opened.frames():
            writer.add(np.concatenate([frame.pixels, frame.pixels], axis=1), frame.time)
    assert writer.num_frames == opened.num_frames == len(TIMES)
    rate, frames = read(Source(path, "copy", "video"))
    assert rate == pytest.approx(float(read(source)[0]), rel=0.1)  # it counts how long the last frame is shown
    np.testing.assert_allclose([float(time * RATE) for time, _ in frames], TIMES, atol=0.01)
    for index, (_, pixels) in enumerate(frames):
        assert pixels.shape == (48, 128, 3)
        assert abs(int(pixels[20, 80, 0]) - 40 - 30 * index) < 6 and pixels[20, 40, 0] < 8


def test_a_video_of_a_phone_is_upright(tmp_path):
    source = write_video(tmp_path / "film.mp4")
    content = source.path.read_bytes()
    assert content.count(UPRIGHT) == 2  # of the film and of its track
    where = content.index(UPRIGHT, content.index(b"tkhd"))
    source.path.write_bytes(content[:where] + HELD_ON_ITS_SIDE + content[where + len(UPRIGHT) :])
    _, frames = read(source)
    assert frames[0][1].shape == (64, 48, 3)
    assert frames[-1][1][10, 20, 0] > 150 and frames[-1][1][50, 20, 0] < 20  # what was left is above


@pytest.mark.parametrize("damage", ["absent", "empty", "text", "half", "sound only"])
def test_what_is_no_video_is_named(tmp_path, damage):
    source = write_video(tmp_path / "film.mp4")
    content = source.path.read_bytes()
    source.path.unlink()
    if damage == "sound only":
        with av.open(str(source.path), "w") as container:
            stream = container.add_stream("aac", rate=8000)
            container.mux(stream.encode())
    elif damage != "absent":
        source.path.write_bytes({"empty": b"", "text": b"text" * 99, "half": content[: len(content) // 2]}[damage])
    with pytest.raises(ValueError, match="Cannot read .*film.mp4"):
        read(source)


def test_a_camera_is_a_video_without_end(monkeypatch):
    monkeypatch.setattr(video, "CAMERAS", {sys.platform: ("lavfi", "testsrc=size={}x48:rate=10")})
    with open_video(Source(Path("64"), "camera64", "camera")) as opened:
        frames = opened.frames()
        assert opened.rate == 10 and opened.num_frames is None
        times = [next(frames).time * opened.time_base for _ in range(3)]
    assert times == [0, Fraction(1, 10), Fraction(2, 10)]


def test_a_camera_on_an_unknown_system(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ValueError, match="got win32"), open_video(Source(Path("0"), "camera0", "camera")):
        pass


def test_without_the_package_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with (
        pytest.raises(ValueError, match=r'pip install "transformers-sem\[video\]"'),
        open_video(Source(Path("film.mp4"), "film", "video")),
    ):
        pass
