"""The scenes as a `datasets` builder."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import datasets

from ..row_format import FEATURES, encode_row
from .rendering import render_scene


@dataclass
class ScenesConfig(datasets.BuilderConfig):
    """Size of the images and of the splits. Another `seed` gives another dataset without common scenes."""

    height: int = 96
    width: int = 128
    num_train: int = 1000
    num_validation: int = 100
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        for name in ("height", "width", "num_train", "num_validation"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"`{name}` of the scenes is a whole number from 1; got {value!r}.")
        if type(self.seed) is not int:
            raise ValueError(f"`seed` of the scenes is a whole number; got {self.seed!r}.")

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Names the cache by all values, so that a default that is given explicitly finds the same cache."""
        values = {"height": self.height, "width": self.width, "seed": self.seed}
        values |= {"num_train": self.num_train, "num_validation": self.num_validation}
        return super().create_config_id(values, custom_features)


def split_seeds(seed: int, split: Literal["train", "validation"], num_rows: int) -> list[int]:
    """Returns the seeds of a split: even for training, odd for validation, so no scene is in both."""
    first = seed * 10**9
    return [2 * (first + index) + (split == "validation") for index in range(num_rows)]


class Scenes(datasets.GeneratorBasedBuilder):
    """Procedural rooms with labels for all six tasks; see `render_scene`."""

    # Raise the version when rendered images or labels change: it is part of the path of the cache.
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = ScenesConfig
    DEFAULT_WRITER_BATCH_SIZE = 64

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(description=self.__doc__, features=datasets.Features(FEATURES))

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        # `datasets` distributes the list over its processes.
        sizes = {"train": self.config.num_train, "validation": self.config.num_validation}
        return [
            datasets.SplitGenerator(name, gen_kwargs={"seeds": split_seeds(self.config.seed, name, num_rows)})
            for name, num_rows in sizes.items()
        ]

    def _generate_examples(self, seeds: list[int]) -> Iterator[tuple[int, dict]]:
        for seed in seeds:
            yield seed, encode_row(render_scene(seed, self.config.height, self.config.width))
