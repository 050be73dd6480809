"""The folder of results: what is written for each source, and how a later call knows that it is there.

- `panels/NAME.png`: the photo and all maps in colour, for people
- `maps/TASK/NAME.png`: the values of each map, for other programs, as `TaskKind.encoding` says
- `raw/NAME.npz`: the maps in physical units
- `inside/NAME.png`: on request, what goes on inside the model
- `videos/NAME.mp4`: of a video or a camera, the frames beside their maps
- `json/NAME.json`: what is in it; written last, so that a photo that has it has everything
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..evaluation.map_files import save_maps
from ..tasks import get_task
from ..utils.files import atomic_write
from ..visualization.panels import Prediction, prediction_panel, save_picture, shrink_prediction
from .inputs import Source


@dataclass(frozen=True)
class Results:
    """A folder of results.

    Args:
        folder (`Path`): The folder.
        settings (`dict`): How predictions are made, for people to read.
        digest (`str`): Changes with whatever predictions depend on besides the source.
        task_id2label (`dict[str, dict[int, str]]`): Names of classes.
    """

    folder: Path
    settings: dict[str, Any]
    digest: str
    task_id2label: dict[str, dict[int, str]]

    def fingerprint(self, source: Source) -> str | None:
        """Changes with the content of a source or with the way of predicting; none of a camera or an unreadable file."""
        if source.kind == "camera":
            return None
        digest = hashlib.sha256(self.digest.encode())
        try:
            with source.path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        except OSError:
            return None
        return digest.hexdigest()

    def is_done(self, source: Source, fingerprint: str | None) -> bool:
        """Whether all results of a source are there, of the same content and the same way of predicting."""
        try:
            facts = json.loads(self.path("json", source, ".json").read_text())
            return (
                facts["fingerprint"] == fingerprint is not None
                and facts["source"] == str(source.path)
                and all((self.folder / name).is_file() for name in facts["files"])
            )
        except (OSError, ValueError, KeyError, TypeError):  # none, or none of ours
            return False

    def path(self, kind: str, source: Source, ending: str) -> Path:
        """Where a file belongs; its folder is made."""
        path = self.folder / kind / f"{source.name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_photo(
        self, source: Source, fingerprint: str | None, prediction: Prediction, inside: Image.Image | None
    ) -> None:
        """Writes all there is of a photo."""
        raw, panel = self.path("raw", source, ".npz"), self.path("panels", source, ".png")
        with atomic_write(raw) as unfinished:
            np.savez_compressed(unfinished, **{task: values.numpy() for task, values in prediction.maps.items()})
        pictures = save_maps(self.folder / "maps", source.name, prediction.maps)
        save_picture(panel, prediction_panel([shrink_prediction(prediction)]))
        files = [panel, raw, *pictures.values()]
        if inside is not None:
            files.append(self.path("inside", source, ".png"))
            save_picture(files[-1], inside)
        tasks = {
            task: {
                "file": self._relative(pictures[task]),
                "encoding": get_task(task).kind.encoding,
                **get_task(task).kind.describe(values.numpy(), self.task_id2label.get(task, {})),
            }
            for task, values in prediction.maps.items()
        }
        height, width = prediction.image.shape[:2]
        self.write_facts(source, fingerprint, files, height=height, width=width, tasks=tasks)

    def write_facts(self, source: Source, fingerprint: str | None, files: list[Path], **facts) -> None:
        """Writes the JSON that says a source is done."""
        facts = {
            "source": str(source.path),
            **facts,
            "settings": self.settings,
            "files": [self._relative(path) for path in files],
            "fingerprint": fingerprint,
        }
        with atomic_write(self.path("json", source, ".json")) as unfinished:
            unfinished.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()
