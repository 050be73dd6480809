"""Fixtures of the commands."""

import os
from concurrent.futures import ThreadPoolExecutor

import datasets
import huggingface_hub
import pytest
from filelock import FileLock

from transformers_sem.evaluation import boundary_files, evaluator
from transformers_sem.training import curves
from transformers_sem.utils.extras import require

from .commands import SETTINGS, run


@pytest.fixture(scope="package", autouse=True)
def offline(tmp_path_factory):
    """No network, and an empty cache of datasets, in this process and in those it starts; here threads in place of pools."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("datasets")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        for module in (boundary_files, evaluator):  # a pool takes many seconds to start
            patch.setattr(module, "process_pool", ThreadPoolExecutor)
        # drawing takes longer than these trainings; tests/training/test_curves.py draws
        patch.setattr(curves, "plot_curves", lambda history: require("matplotlib.figure", extra="train").Figure())
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


@pytest.fixture(scope="package")
def trained(offline, tmp_path_factory):
    """The folder of a finished run, which the workers of pytest-xdist share."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / "trained"
    with FileLock(root / "trained.lock"):
        if not (folder / "evaluation.json").exists():
            result = run("train", "--config", "quickstart", *SETTINGS, f"output_dir={folder}")
            assert result.code == 0, result.errors
            assert str(folder) in result.output
    return folder
