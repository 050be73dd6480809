"""Reading videos and cameras and writing videos, with PyAV."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.extras import require
from .inputs import InputItem


# FFmpeg's input format for cameras, and its name for the camera of a number
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
DEFAULT_RATE = Fraction(30)  # if neither the container nor the camera states one
VIDEO_ENDING = ".mp4"
EXTRA = "video"  # brings PyAV
# FFmpeg takes `http:x.mp4` for an address, and follows playlists and lists of files to other files and hosts.
FILE_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,flv,asf,ogg",
}


@dataclass
class VideoFrame:
    """A frame of a video, in upright orientation.

    Args:
        image (`Tensor`): uint8 `(3, height, width)`.
        time (`int`): Presentation time in units of the video's time base.
    """

    image: Tensor
    time: int


@dataclass
class VideoReader:
    """An open video or camera.

    Args:
        container: The PyAV container.
        item (`InputItem`): The item that was opened.
    """

    container: Any
    item: InputItem

    def __post_init__(self):
        if not self.container.streams.video:
            raise ValueError(f"Cannot read {self.item.path}: it has no frames.")
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.rate = as_fraction(self.stream.average_rate or self.stream.guessed_rate or DEFAULT_RATE)
        self.time_base = as_fraction(self.stream.time_base or 1 / self.rate)
        self.num_frames: int | None = self.stream.frames or None  # if the container states it

    def frames(self) -> Iterator[VideoFrame]:
        """Yields the frames in order. Times start at 0 and increase strictly.

        Raises:
            ValueError: If there are no frames, or the video is damaged.
        """
        first, last = None, -1
        with ffmpeg_errors(self.item):
            for frame in self.container.decode(self.stream):
                step = max(1, round(1 / self.rate / self.time_base))
                time = last + step if frame.pts is None else frame.pts
                first = time if first is None else first
                last = max(time - first, last + 1)
                yield VideoFrame(upright_image(frame), last)
        if first is None:
            raise ValueError(f"Cannot read {self.item.path}: it has no frames.")


def as_fraction(value: Any) -> Fraction:
    """Returns a rational number of PyAV as a fraction: from version 19 on it is of a class without arithmetic."""
    return Fraction(value.numerator, value.denominator)


def upright_image(frame: Any) -> Tensor:
    """Converts a PyAV frame to uint8 `(3, height, width)`, rotated as its metadata says."""
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


@contextmanager
def ffmpeg_errors(item: InputItem) -> Iterator[None]:
    """Turns FFmpeg's errors into a `ValueError` that names the file."""
    av = require("av", EXTRA)
    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(f"Cannot read {item.path}: {error.strerror}.") from error


@contextmanager
def open_video(item: InputItem) -> Iterator[VideoReader]:
    """Opens a video file or a camera.

    Raises:
        ValueError: If it does not exist or is not a video.
        MissingExtraError: If PyAV is not installed.
    """
    av, path, input_format, options = require("av", EXTRA), f"file:{item.path}", None, FILE_OPTIONS
    if item.kind == "camera":
        if sys.platform not in CAMERAS:
            raise ValueError(
                f"Cameras are supported on {list(CAMERAS)}; got {sys.platform}. Record a video file and use that."
            )
        input_format, pattern = CAMERAS[sys.platform]
        path, options = pattern.format(item.path), {}
    elif os.path.exists(item.path) and not os.path.isfile(item.path):
        raise ValueError(f"Cannot read {item.path}: it is not a regular file.")
    with ffmpeg_errors(item):
        container = av.open(path, format=input_format, options=options)
    with container:
        yield VideoReader(container, item)


@contextmanager
def create_video(path: Path, like: VideoReader) -> Iterator["VideoWriter"]:
    """Opens a video for writing, with the frame rate and time base of another video.

    Raises:
        OSError: If it cannot be written.
    """
    with require("av", EXTRA).open(f"file:{path}", "w") as container:
        writer = VideoWriter(container, like)
        yield writer
        writer.finish()


@dataclass
class VideoWriter:
    """Writes frames as H.264 at given times.

    Args:
        container: The PyAV container.
        like (`VideoReader`): The video whose frame rate and time base are used.
    """

    container: Any
    like: VideoReader
    stream: Any = None
    num_frames: int = 0

    def add(self, pixels: np.ndarray, time: int) -> None:
        """Writes a frame, uint8 `(height, width, 3)` of even height and width; later frames are resized to the first."""
        av = require("av", EXTRA)
        if self.stream is None:
            self.stream = self.container.add_stream("libx264", rate=self.like.rate, options={"crf": "18"})
            self.stream.height, self.stream.width = pixels.shape[:2]
            self.stream.pix_fmt = "yuv420p"
            self.stream.codec_context.time_base = self.like.time_base
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        if pixels.shape[:2] != (self.stream.height, self.stream.width):  # the size of a video may change
            frame = frame.reformat(self.stream.width, self.stream.height)
        frame.pts, frame.time_base = time, self.like.time_base
        self.container.mux(self.stream.encode(frame))
        self.num_frames += 1

    def finish(self) -> None:
        """Writes the frames that the encoder still buffers."""
        if self.stream is not None:
            self.container.mux(self.stream.encode())
