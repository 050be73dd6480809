"""Fixtures of the whole test suite."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch


REPOSITORY = Path(__file__).parents[1]
GOLDEN_DIR = Path(os.environ.get("SEM_GOLDEN_DIR", REPOSITORY.parent / "shared" / "golden"))


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """`golden("losses")` reads `losses.npz`, or skips the test where the golden files are not on this machine."""

    def read(name: str) -> dict[str, np.ndarray]:
        path = GOLDEN_DIR / f"{name}.npz"
        if not path.exists():
            pytest.skip(f"{path} is absent; set SEM_GOLDEN_DIR to the folder of the golden files")
        with np.load(path) as arrays:
            return dict(arrays)

    return read


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
