"""The output folder of a prediction run.

- `panels/NAME.png`: the image and all maps in color
- `maps/TASK/NAME.png`: the values of each map, encoded as `TaskKind.encoding` says
- `raw/NAME.npz`: the maps in physical units
- `inside/NAME.png`: the internal states of the model, on request
- `videos/NAME.mp4`: the frames of a video or camera next to their maps
- `json/NAME.json`: a description of the maps; written last, so an item with this file is complete
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..evaluation.map_files import save_maps
from ..tasks import get_task
from ..utils.files import atomic_write
from ..visualization.panels import Prediction, prediction_panel, save_image, subsample_prediction
from .inputs import InputItem


@dataclass(frozen=True)
class OutputFolder:
    """An output folder.

    Args:
        folder (`Path`): The folder.
        settings (`dict`): Settings of the prediction, written to every description.
        digest (`str`): Hash of everything that predictions depend on except the input.
        task_id2label (`dict[str, dict[int, str]]`): Class names of the tasks.
    """

    folder: Path
    settings: dict[str, Any]
    digest: str
    task_id2label: dict[str, dict[int, str]]

    def fingerprint(self, item: InputItem) -> str | None:
        """Returns a hash of the item's content and of the prediction settings; `None` for cameras and unreadable files."""
        if item.kind == "camera" or not os.path.isfile(item.path):  # reading a pipe or a device may never end
            return None
        digest = hashlib.sha256(self.digest.encode())
        try:
            with item.path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        except OSError:
            return None
        return digest.hexdigest()

    def is_complete(self, item: InputItem, fingerprint: str | None) -> bool:
        """Whether all outputs of an item exist and were made from the same content with the same settings."""
        try:
            description = json.loads(self.path("json", item, ".json").read_text(encoding="utf-8"))
            return (
                description["fingerprint"] == fingerprint is not None
                and description["source"] == str(item.path)
                and all((self.folder / name).is_file() for name in description["files"])
            )
        except (OSError, ValueError, KeyError, TypeError):  # no description, or not one that this class wrote
            return False

    def path(self, subfolder: str, item: InputItem, ending: str) -> Path:
        """Returns the path of an output file and creates its folder."""
        path = self.folder / subfolder / f"{item.name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_image(
        self, item: InputItem, fingerprint: str | None, prediction: Prediction, inside: Image.Image | None
    ) -> None:
        """Writes all outputs of an image; `inside` is the panel of the model's internal states, if requested."""
        raw_path, panel_path = self.path("raw", item, ".npz"), self.path("panels", item, ".png")
        with atomic_write(raw_path) as unfinished:
            np.savez_compressed(unfinished, **{task: values.numpy() for task, values in prediction.maps.items()})
        map_paths = save_maps(self.folder / "maps", item.name, prediction.maps)
        save_image(panel_path, prediction_panel([subsample_prediction(prediction)]))
        files = [panel_path, raw_path, *map_paths.values()]
        if inside is not None:
            files.append(self.path("inside", item, ".png"))
            save_image(files[-1], inside)
        tasks = {
            task: {
                "file": self._relative(map_paths[task]),
                "encoding": get_task(task).kind.encoding,
                **get_task(task).kind.describe(values.numpy(), self.task_id2label.get(task, {})),
            }
            for task, values in prediction.maps.items()
        }
        height, width = prediction.image.shape[-2:]
        self.write_description(item, fingerprint, files, height=height, width=width, tasks=tasks)

    def write_description(
        self, item: InputItem, fingerprint: str | None, files: list[Path], **description: Any
    ) -> None:
        """Writes the JSON file that marks an item as complete."""
        description = {
            "source": str(item.path),
            **description,
            "settings": self.settings,
            "files": [self._relative(path) for path in files],
            "fingerprint": fingerprint,
        }
        with atomic_write(self.path("json", item, ".json")) as unfinished:
            text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
            # Names that are no UTF-8 become escapes of JSON.
            unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()
