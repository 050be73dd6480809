import os

import pytest

from transformers_sem import TASKS, SEMForMultiTaskDensePrediction, SEMImageProcessor

from ..tiny import tiny_config


@pytest.fixture(scope="package")
def page(tmp_path_factory):
    """The page of a tiny model with all tasks."""
    pytest.importorskip("gradio", reason="the extra `demo` is not installed")
    from transformers_sem.demo.page import Page, temporary_root

    model = tmp_path_factory.mktemp("models") / "tiny"
    num_labels = {task: spec.num_labels for task, spec in TASKS.items()}
    SEMForMultiTaskDensePrediction(tiny_config(task_num_labels=num_labels)).save_pretrained(model)
    SEMImageProcessor(size={"height": 32, "width": 64}).save_pretrained(model)
    before = dict(os.environ)
    with temporary_root() as root:
        yield Page(model, root, max_upload_mb=2)
    os.environ.clear()
    os.environ.update(before)
