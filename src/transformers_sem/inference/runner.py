"""A prediction run over many items, split over ranks. An item that fails is reported and does not stop the others."""

import errno
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from ..image_files import read_image_file
from ..utils.extras import MissingExtraError
from ..utils.files import atomic_write
from ..utils.processes import progress
from ..visualization.inside import inside_panel
from ..visualization.panels import Prediction, VideoFrameRenderer
from .inputs import InputItem
from .outputs import OutputFolder
from .predictor import Predictor
from .video import VIDEO_ENDING, VideoFrame, VideoReader, create_video, open_video


LoadedImage = tuple[int, str | None, Tensor]  # number and fingerprint of the item, uint8 `(3, height, width)`

MAX_BATCH_PIXELS = 2**26  # of images that are in memory at once
# Errors of writing that are due to the name of an item; all others would meet the next item too
NAME_ERRORS = (errno.ENAMETOOLONG, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EILSEQ, errno.EINVAL)


@dataclass(frozen=True)
class RunSummary:
    """The outcome of a run over all ranks.

    Args:
        num_predicted (`int`): Number of items predicted in this run.
        num_done_before (`int`): Number of items whose outputs were complete already.
        failures (`list[str]`): For each item that failed the reason, in the order of the items.
    """

    num_predicted: int
    num_done_before: int
    failures: list[str]

    def __str__(self) -> str:
        counts = (
            f"Predicted {self.num_predicted}, done before {self.num_done_before}, not usable {len(self.failures)}."
        )
        return "\n".join([counts, *(f"  {failure}" for failure in self.failures)])


@dataclass
class PredictionRunner:
    """Predicts items and writes their outputs.

    Args:
        predictor (`Predictor`): The predictor.
        outputs (`OutputFolder`): The output folder.
        accelerator (`Accelerator`): The accelerator that the ranks share.
        inside (`bool`): Whether to draw the internal states of the model.
        max_frames (`int`, *optional*): Maximum number of frames of a video or camera.
    """

    predictor: Predictor
    outputs: OutputFolder
    accelerator: Accelerator
    inside: bool = False
    max_frames: int | None = None
    failures: list[tuple[int, str]] = field(default_factory=list)

    def run(self, items: list[InputItem]) -> RunSummary:
        """Predicts the items whose outputs are not complete, and waits for all ranks."""
        pending = self._find_pending(items)
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        share = pending[rank::num_ranks]
        with tqdm(total=len(share), desc="predicting", disable=not self.accelerator.is_main_process) as bar:
            for is_image, numbered in itertools.groupby(share, key=lambda pair: items[pair[0]].kind == "image"):
                if is_image:
                    self._predict_images(items, numbered, bar)
                else:
                    for number, fingerprint in numbered:
                        self._predict_video(number, items[number], fingerprint)
                        bar.update()
        failures = sorted(gather_object(self.failures))
        return RunSummary(len(pending) - len(failures), len(items) - len(pending), [reason for _, reason in failures])

    def _find_pending(self, items: list[InputItem]) -> list[tuple[int, str | None]]:
        """Returns numbers and fingerprints of the items to predict; each rank checks its share."""
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        numbers, pending = range(rank, len(items), num_ranks), []
        for number in progress(numbers, len(numbers), "looking for earlier results", self.accelerator):
            fingerprint = self.outputs.fingerprint(items[number])
            if not self.outputs.is_complete(items[number], fingerprint):
                pending.append((number, fingerprint))
        return sorted(gather_object(pending), key=lambda pair: pair[0])

    def _predict_images(self, items: list[InputItem], numbered: Iterator[tuple[int, str | None]], bar: tqdm) -> None:
        for batch in make_batches(self._read_images(items, numbered, bar), self.predictor.batch_size):
            for (number, fingerprint, image), maps in self._predict_batch(items, batch):
                panel = None
                if self.inside:
                    panel = inside_panel(self.predictor.model, self.predictor.image_processor, image)
                with self._failures_noted(number, items[number]):
                    self.outputs.write_image(items[number], fingerprint, Prediction(image, maps), panel)
            bar.update(len(batch))

    def _predict_batch(
        self, items: list[InputItem], batch: list[LoadedImage]
    ) -> list[tuple[LoadedImage, dict[str, Tensor]]]:
        """Returns images with their maps. If the model rejects a batch, its images are predicted one by one."""
        try:
            return list(zip(batch, self.predictor([image for _, _, image in batch]), strict=True))
        except ValueError as error:
            if len(batch) > 1:
                return [pair for loaded in batch for pair in self._predict_batch(items, [loaded])]
            self._note_failure(batch[0][0], ValueError(f"Cannot predict {items[batch[0][0]].path}: {error}"))
            return []

    def _read_images(
        self, items: list[InputItem], numbered: Iterator[tuple[int, str | None]], bar: tqdm
    ) -> Iterator[LoadedImage]:
        """Yields the images that can be read."""
        for number, fingerprint in numbered:
            try:
                pixels = np.array(read_image_file(items[number].path))
            except ValueError as error:
                self._note_failure(number, error)
                bar.update()
                continue
            yield number, fingerprint, torch.from_numpy(pixels).permute(2, 0, 1)

    def _predict_video(self, number: int, item: InputItem, fingerprint: str | None) -> None:
        with self._failures_noted(number, item):
            path, renderer = self.outputs.path("videos", item, VIDEO_ENDING), VideoFrameRenderer()
            with open_video(item) as video, atomic_write(path) as unfinished:
                frames_per_second = round(video.rate) or 1
                with create_video(unfinished, video) as writer, self._until_stopped(item):
                    for frame, maps in self._predict_frames(video):
                        writer.add(renderer.render(Prediction(frame.image, maps), frames_per_second), frame.time)
                if writer.num_frames == 0:
                    raise ValueError(f"Cannot read {item.path}: it was stopped before its first frame.")
            description = {"num_frames": writer.num_frames, "frames_per_second": float(video.rate)}
            self.outputs.write_description(item, fingerprint, [path], **description)

    @staticmethod
    def _until_stopped(item: InputItem) -> AbstractContextManager:
        """Makes Ctrl-C end the recording of a camera instead of the program."""
        return suppress(KeyboardInterrupt) if item.kind == "camera" else nullcontext()

    def _predict_frames(self, video: VideoReader) -> Iterator[tuple[VideoFrame, dict[str, Tensor]]]:
        """Yields frames with their maps."""
        frames = itertools.islice(video.frames(), self.max_frames)
        total = min(filter(None, (video.num_frames, self.max_frames)), default=None)
        title, disable = f"frames of {video.item.name}", not self.accelerator.is_main_process
        with tqdm(total=total, desc=title, leave=False, disable=disable) as bar:
            while batch := list(itertools.islice(frames, self.predictor.batch_size)):
                yield from zip(batch, self.predictor([frame.image for frame in batch]), strict=True)
                bar.update(len(batch))

    @contextmanager
    def _failures_noted(self, number: int, item: InputItem) -> Iterator[None]:
        """Notes errors that are the item's own.

        Raises:
            OSError: If the results of no item could be written, for example because the disk is full.
        """
        try:
            yield
        except OSError as error:
            message = f"Cannot write the results of {item.path} to {self.outputs.folder}: {error}."
            if error.errno not in NAME_ERRORS:
                raise OSError(
                    f"{message} Free some space, or choose another --output; the same command goes on where this one stopped."
                ) from error
            self._note_failure(number, ValueError(f"{message} Rename it."))
        except (ValueError, MissingExtraError) as error:
            self._note_failure(number, error)

    def _note_failure(self, number: int, error: Exception) -> None:
        self.failures.append((number, " ".join(str(error).split())))


def make_batches(images: Iterator[LoadedImage], batch_size: int) -> Iterator[list[LoadedImage]]:
    """Groups images into batches of at most `batch_size` images and `MAX_BATCH_PIXELS` pixels; larger images stand alone."""
    batch, num_pixels = [], 0
    for loaded in images:
        image_pixels = loaded[-1].shape[-2] * loaded[-1].shape[-1]
        if batch and (len(batch) == batch_size or num_pixels + image_pixels > MAX_BATCH_PIXELS):
            yield batch
            batch, num_pixels = [], 0
        batch.append(loaded)
        num_pixels += image_pixels
    if batch:
        yield batch
