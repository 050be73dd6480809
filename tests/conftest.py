"""Fixtures of the whole test suite."""

import gc
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


# transformers compiles an expression for each weight that it loads, and Python keeps 512
re._MAXCACHE = 8192

REPOSITORY = Path(__file__).parents[1]
GOLDEN_DIR = Path(__file__).parent / "golden"
UNTRIMMED_GOLDEN_DIR = Path(os.environ.get("SEM_GOLDEN_DIR", REPOSITORY.parent / "shared" / "golden"))


def pytest_collection_finish() -> None:
    """Excludes the millions of objects of imported libraries from garbage collection, which is slow with them."""
    gc.collect()
    gc.freeze()


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
    import torch  # not above: the process that only hands out the tests to workers needs no torch

    torch.manual_seed(0)
