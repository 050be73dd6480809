"""Predicting many sources, each rank its share; what cannot be read is named, and everything else is done."""

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from ..image_files import read_photo
from ..utils.files import atomic_write
from ..utils.processes import progress
from ..visualization.inside import inside_panel
from ..visualization.panels import Prediction, VideoPanel
from .inputs import Source
from .outputs import Results
from .predictor import Predictor
from .video import ENDING, Frame, Video, open_video, video_writer


Photo = tuple[int, str | None, Tensor]  # number and fingerprint of its source, uint8 `(3, height, width)`

PIXELS_OF_A_BATCH = 2**26  # photos that wait for each other in memory


@dataclass(frozen=True)
class Summary:
    """What became of all sources, over all ranks.

    Args:
        num_predicted (`int`): Sources predicted now.
        num_done_before (`int`): Sources whose results were there.
        failures (`list[str]`): What is wrong with each of the others, in the order of the sources.
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
class PredictionRun:
    """Predicts sources and writes their results.

    Args:
        predictor (`Predictor`): The model and how it looks at photos.
        results (`Results`): Where to write.
        accelerator (`Accelerator`): Of the ranks.
        inside (`bool`): Whether to draw what goes on inside the model.
        max_frames (`int`, *optional*): Frames of a video or camera, of which there may be no end.
    """

    predictor: Predictor
    results: Results
    accelerator: Accelerator
    inside: bool = False
    max_frames: int | None = None
    failures: list[tuple[int, str]] = field(default_factory=list)

    def run(self, sources: list[Source]) -> Summary:
        """Predicts those that are not done yet, and waits for all ranks."""
        pending = self._find_pending(sources)
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        share = pending[rank::num_ranks]
        bar = tqdm(total=len(share), desc="predicting", disable=not self.accelerator.is_main_process)
        with bar:
            for is_photo, numbered in itertools.groupby(share, key=lambda item: sources[item[0]].kind == "photo"):
                if is_photo:
                    self._predict_photos(sources, numbered, bar)
                else:
                    for number, fingerprint in numbered:
                        self._predict_video(number, sources[number], fingerprint)
                        bar.update()
        failures = sorted(gather_object(self.failures))
        num_done = len(sources) - len(pending)
        return Summary(len(pending) - len(failures), num_done, [reason for _, reason in failures])

    def _find_pending(self, sources: list[Source]) -> list[tuple[int, str | None]]:
        """Number and fingerprint of what is to be predicted; every rank looks at a share."""
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        numbers, pending = range(rank, len(sources), num_ranks), []
        for number in progress(numbers, len(numbers), "looking for earlier results", self.accelerator):
            fingerprint = self.results.fingerprint(sources[number])
            if not self.results.is_done(sources[number], fingerprint):
                pending.append((number, fingerprint))
        return sorted(gather_object(pending), key=lambda item: item[0])

    def _predict_photos(self, sources: list[Source], numbered: Iterator[tuple[int, str | None]], bar: tqdm) -> None:
        for batch in batches(self._read_photos(sources, numbered, bar), self.predictor.batch_size):
            for (number, fingerprint, photo), maps in self._predict_batch(sources, batch):
                panel = self._inside_panel(photo) if self.inside else None
                prediction = Prediction(photo.permute(1, 2, 0).numpy(), maps)
                self.results.write_photo(sources[number], fingerprint, prediction, panel)
            bar.update(len(batch))

    def _predict_batch(self, sources: list[Source], batch: list[Photo]) -> list[tuple[Photo, dict[str, Tensor]]]:
        """Photos with their maps; one that the model refuses, such as a single pixel, does not spoil those beside it."""
        try:
            return list(zip(batch, self.predictor([photo for _, _, photo in batch]), strict=True))
        except ValueError as error:
            if len(batch) > 1:
                return [pair for item in batch for pair in self._predict_batch(sources, [item])]
            self._note_failure(batch[0][0], ValueError(f"Cannot predict {sources[batch[0][0]].path}: {error}"))
            return []

    def _read_photos(
        self, sources: list[Source], numbered: Iterator[tuple[int, str | None]], bar: tqdm
    ) -> Iterator[Photo]:
        """Photos that can be read."""
        for number, fingerprint in numbered:
            try:
                pixels = np.array(read_photo(sources[number].path))
            except ValueError as error:
                self._note_failure(number, error)
                bar.update()
                continue
            yield number, fingerprint, torch.from_numpy(pixels).permute(2, 0, 1)

    def _inside_panel(self, photo: Tensor):
        return inside_panel(self.predictor.model, self.predictor.image_processor, photo)

    def _predict_video(self, number: int, source: Source, fingerprint: str | None) -> None:
        path, panel = self.results.path("videos", source, ENDING), VideoPanel()
        try:
            with open_video(source) as video, atomic_write(path) as unfinished:
                with video_writer(unfinished, video) as writer, self._until_stopped(source):
                    for frame, maps in self._predict_frames(video):
                        writer.add(panel.draw(Prediction(frame.pixels, maps), round(video.rate) or 1), frame.time)
                if writer.num_frames == 0:
                    raise ValueError(f"Cannot read {source.path}: it was stopped before its first frame.")
        except ValueError as error:
            self._note_failure(number, error)
            return
        facts = {"num_frames": writer.num_frames, "frames_per_second": float(video.rate)}
        self.results.write_facts(source, fingerprint, [path], **facts)

    @staticmethod
    def _until_stopped(source: Source) -> AbstractContextManager:
        """A camera goes on until Ctrl-C, which is then not the end of the program."""
        return suppress(KeyboardInterrupt) if source.kind == "camera" else nullcontext()

    def _predict_frames(self, video: Video) -> Iterator[tuple[Frame, dict[str, Tensor]]]:
        """Frames with their maps."""
        frames = itertools.islice(video.frames(), self.max_frames)
        total = min(filter(None, (video.num_frames, self.max_frames)), default=None)
        title, disable = f"frames of {video.source.name}", not self.accelerator.is_main_process
        with tqdm(total=total, desc=title, leave=False, disable=disable) as bar:
            while batch := list(itertools.islice(frames, self.predictor.batch_size)):
                photos = [torch.from_numpy(frame.pixels).permute(2, 0, 1) for frame in batch]
                yield from zip(batch, self.predictor(photos), strict=True)
                bar.update(len(batch))

    def _note_failure(self, number: int, error: ValueError) -> None:
        self.failures.append((number, " ".join(str(error).split())))


def batches(photos: Iterator[Photo], batch_size: int) -> Iterator[list[Photo]]:
    """Groups photos, fewer where they are large."""
    batch, num_pixels = [], 0
    for item in photos:
        photo_pixels = item[-1].shape[-2] * item[-1].shape[-1]
        if batch and (len(batch) == batch_size or num_pixels + photo_pixels > PIXELS_OF_A_BATCH):
            yield batch
            batch, num_pixels = [], 0
        batch.append(item)
        num_pixels += photo_pixels
    if batch:
        yield batch
