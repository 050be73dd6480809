"""Fixtures of the commands."""

from concurrent.futures import ThreadPoolExecutor

import datasets
import huggingface_hub
import pytest

from transformers_sem.evaluation import boundary_files, evaluator

from .commands import SETTINGS, run


@pytest.fixture(scope="package", autouse=True)
def offline(tmp_path_factory):
    """No network, and an empty cache of datasets, in this process and in those it starts; here threads in place of pools."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("datasets")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        for module in (boundary_files, evaluator):  # a pool takes many seconds to start
            patch.setattr(module, "process_pool", ThreadPoolExecutor)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


@pytest.fixture(scope="package")
def trained(offline, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    result = run("train", "--config", "quickstart", *SETTINGS, f"output_dir={folder}")
    assert result.code == 0, result.errors
    assert str(folder) in result.output
    return folder
