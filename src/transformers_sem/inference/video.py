"""Videos and cameras through PyAV: frames in, one video out that shows each frame beside its maps."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .inputs import Source


# How FFmpeg calls cameras, and one of them by its number
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
DEFAULT_RATE = Fraction(30)  # where neither container nor camera tell
ENDING = ".mp4"


@dataclass
class Frame:
    """A picture of a video, upright.

    Args:
        pixels (`np.ndarray`): uint8 `(height, width, 3)`.
        time (`int`): When it is shown, in units of the video's time base.
    """

    pixels: np.ndarray
    time: int


@dataclass
class Video:
    """An open video or camera.

    Args:
        container: PyAV's.
        source (`Source`): What was opened.
    """

    container: Any
    source: Source

    def __post_init__(self):
        if not self.container.streams.video:
            raise ValueError(f"Cannot read {self.source.path}: it has no pictures.")
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.rate = self.stream.average_rate or self.stream.guessed_rate or DEFAULT_RATE
        self.time_base = self.stream.time_base or 1 / self.rate

    @property
    def num_frames(self) -> int | None:
        """How many frames there are, as far as the container tells."""
        return self.stream.frames or None

    def frames(self) -> Iterator[Frame]:
        """The frames in order; times start at 0 and rise.

        Raises:
            ValueError: If there is none, or the video is broken.
        """
        first, last = None, -1
        with readable(self.source):
            for frame in self.container.decode(self.stream):
                step = max(1, round(1 / self.rate / self.time_base))
                time = last + step if frame.pts is None else frame.pts
                first = time if first is None else first
                last = max(time - first, last + 1)
                yield Frame(upright(frame), last)
        if first is None:
            raise ValueError(f"Cannot read {self.source.path}: it has no pictures.")


def upright(frame: Any) -> np.ndarray:
    """Pixels of a frame of PyAV, uint8 `(height, width, 3)`, turned as the phone that took it says."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4))


def import_av() -> Any:
    """PyAV, which only videos need.

    Raises:
        ValueError: If it is not installed.
    """
    if find_spec("av") is None:
        raise ValueError('Videos and cameras need the package av. Run pip install "transformers-sem[video]".')
    import av

    return av


@contextmanager
def readable(source: Source) -> Iterator[None]:
    """What FFmpeg has against a video, as a `ValueError` that names it."""
    import av

    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(f"Cannot read {source.path}: {error.strerror}.") from error


@contextmanager
def open_video(source: Source) -> Iterator[Video]:
    """Opens a video file, or a camera.

    Raises:
        ValueError: If it is not there or no video, or PyAV is not installed.
    """
    av, path, kind = import_av(), str(source.path), None
    if source.kind == "camera":
        if sys.platform not in CAMERAS:
            raise ValueError(
                f"Cameras are known on {list(CAMERAS)}; got {sys.platform}. Record a video and give that."
            )
        kind, pattern = CAMERAS[sys.platform]
        path = pattern.format(source.path)
    with readable(source):
        container = av.open(path, format=kind)
    with container:
        yield Video(container, source)


@contextmanager
def video_writer(path: Path, like: Video) -> Iterator["VideoWriter"]:
    """Opens a video to write, at the rate of another one.

    Raises:
        OSError: If it cannot be written.
    """
    with import_av().open(str(path), "w") as container:
        writer = VideoWriter(container, like)
        yield writer
        writer.finish()


@dataclass
class VideoWriter:
    """Writes frames as H.264, which every player knows, each shown when its model was.

    Args:
        container: PyAV's.
        like (`Video`): Gives rate and time base.
    """

    container: Any
    like: Video
    stream: Any = None
    num_frames: int = 0

    def add(self, pixels: np.ndarray, time: int) -> None:
        """Writes a frame, uint8 `(height, width, 3)` of even height and width, the same for all."""
        import av

        if self.stream is None:
            self.stream = self.container.add_stream("libx264", rate=self.like.rate, options={"crf": "18"})
            self.stream.height, self.stream.width = pixels.shape[:2]
            self.stream.pix_fmt = "yuv420p"
            self.stream.codec_context.time_base = self.like.time_base
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = time, self.like.time_base
        self.container.mux(self.stream.encode(frame))
        self.num_frames += 1

    def finish(self) -> None:
        """Writes what the encoder still holds."""
        if self.stream is not None:
            self.container.mux(self.stream.encode())
