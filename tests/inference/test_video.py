import os
import struct
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from transformers_sem.inference import video
from transformers_sem.inference.inputs import InputItem
from transformers_sem.inference.video import create_video, open_video
from transformers_sem.utils.extras import MissingExtraError


av = pytest.importorskip("av")

RATE = Fraction(24000, 1001)
TIMES = [0, 1, 2, 5, 6, 9]  # in frames; some are shown longer than others
UPRIGHT = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
ROTATED = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)


def write_video(path, size=(64, 48)):
    """Six frames; the left half gets brighter from frame to frame, the right half is black."""
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
    return InputItem(Path(path), "film", "video")


def read(item):
    with open_video(item) as reader:
        return reader.rate, [
            (frame.time * reader.time_base, frame.image.permute(1, 2, 0).numpy()) for frame in reader.frames()
        ]


def test_a_written_video_has_the_frames_and_times_of_its_source(tmp_path):
    item = write_video(tmp_path / "film.mp4")
    path = tmp_path / "copy.mp4"
    with open_video(item) as reader, create_video(path, reader) as writer:
        for frame in reader.frames():
            pixels = frame.image.permute(1, 2, 0).numpy()
            writer.add(np.concatenate([pixels, pixels], axis=1), frame.time)
    assert writer.num_frames == reader.num_frames == len(TIMES)
    rate, frames = read(InputItem(path, "copy", "video"))
    assert rate == pytest.approx(float(read(item)[0]), rel=0.1)  # it counts the duration of the last frame
    np.testing.assert_allclose([float(time * RATE) for time, _ in frames], TIMES, atol=0.01)
    for index, (_, pixels) in enumerate(frames):
        assert pixels.shape == (48, 128, 3)
        assert abs(int(pixels[20, 80, 0]) - 40 - 30 * index) < 6 and pixels[20, 40, 0] < 8


def test_a_rotated_video_is_read_upright(tmp_path):
    item = write_video(tmp_path / "film.mp4")
    content = item.path.read_bytes()
    assert content.count(UPRIGHT) == 2  # of the file and of its track
    where = content.index(UPRIGHT, content.index(b"tkhd"))
    item.path.write_bytes(content[:where] + ROTATED + content[where + len(UPRIGHT) :])
    _, frames = read(item)
    assert frames[0][1].shape == (64, 48, 3)
    assert frames[-1][1][10, 20, 0] > 150 and frames[-1][1][50, 20, 0] < 20  # the left half is now above


@pytest.mark.parametrize("damage", ["absent", "empty", "text", "half", "sound only"])
def test_unreadable_videos_raise(tmp_path, damage):
    item = write_video(tmp_path / "film.mp4")
    content = item.path.read_bytes()
    item.path.unlink()
    if damage == "sound only":
        with av.open(str(item.path), "w") as container:
            stream = container.add_stream("aac", rate=8000)
            container.mux(stream.encode())
    elif damage != "absent":
        item.path.write_bytes({"empty": b"", "text": b"text" * 99, "half": content[: len(content) // 2]}[damage])
    with pytest.raises(ValueError, match="Cannot read .*film.mp4"):
        read(item)


def test_a_file_named_like_an_address_is_read_from_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "http:127.0.0.1:9:film.mp4"
    write_video("film.mp4").path.rename(name)
    item = InputItem(Path(name), "film", "video")
    assert len(read(item)[1]) == len(TIMES)
    with open_video(item) as reader, create_video(Path("tcp:copy.mp4"), reader) as writer:
        writer.add(np.zeros((48, 64, 3), np.uint8), 0)
    assert Path("tcp:copy.mp4").stat().st_size > 0


def test_a_playlist_is_no_video(tmp_path):
    write_video(tmp_path / "private.ts")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nprivate.ts\n#EXT-X-ENDLIST\n"
    for content in (playlist, "ffconcat version 1.0\nfile private.ts\n"):
        (tmp_path / "list.mp4").write_text(content)
        with pytest.raises(ValueError, match="Cannot read .*list.mp4"):
            read(InputItem(tmp_path / "list.mp4", "list", "video"))


def test_a_pipe_is_no_video(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ValueError, match="pipe.mp4: it is not a regular file"):
        read(InputItem(tmp_path / "pipe.mp4", "pipe", "video"))


def test_a_camera_is_read_like_a_video(monkeypatch):
    monkeypatch.setattr(video, "CAMERAS", {sys.platform: ("lavfi", "testsrc=size={}x48:rate=10")})
    with open_video(InputItem(Path("64"), "camera64", "camera")) as reader:
        frames = reader.frames()
        assert reader.rate == 10 and reader.num_frames is None
        times = [next(frames).time * reader.time_base for _ in range(3)]
    assert times == [0, Fraction(1, 10), Fraction(2, 10)]


def test_cameras_on_an_unknown_system_raise(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ValueError, match="got win32"), open_video(InputItem(Path("0"), "camera0", "camera")):
        pass


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with (
        pytest.raises(MissingExtraError, match=r"pip install 'transformers-sem\[video\]'"),
        open_video(InputItem(Path("film.mp4"), "film", "video")),
    ):
        pass
