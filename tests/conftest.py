"""Fixtures of the whole test suite."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch


REPOSITORY = Path(__file__).parents[1]
GOLDEN_DIR = Path(__file__).parent / "golden"
UNTRIMMED_GOLDEN_DIR = Path(os.environ.get("SEM_GOLDEN_DIR", REPOSITORY.parent / "shared" / "golden"))


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """`golden("losses")` reads `losses.npz`, untrimmed where that is available; see `golden/README.md`."""

    def read(name: str) -> dict[str, np.ndarray]:
        paths = [folder / f"{name}.npz" for folder in (UNTRIMMED_GOLDEN_DIR, GOLDEN_DIR)]
        path = next((path for path in paths if path.exists()), None)
        if path is None:
            pytest.skip(f"{name}.npz is not public; set SEM_GOLDEN_DIR to a folder that has it")
        with np.load(path) as file:
            arrays = dict(file)
        # text is the name of an equal array
        return {key: arrays[value.item()] if value.dtype.kind == "U" else value for key, value in arrays.items()}

    return read


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory) -> None:
    """Results that earlier code cached are not used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
