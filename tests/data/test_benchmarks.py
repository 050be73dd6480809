import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from transformers_sem import TASKS
from transformers_sem.data.benchmarks import BENCHMARKS, SCORED_BOUNDARY_IDS, Benchmark, get_benchmark
from transformers_sem.data.scenes import Scenes


SHARED = Path(__file__).resolve().parents[3] / "shared"
REAL_FRAMES = Path(os.environ.get("SEM_PASCAL_CONTEXT_DIR", SHARED / "data" / "pascal_context"))
OFFICIAL_LIST = REAL_FRAMES / "ImageSets" / "Context" / "val_official.txt"
COLUMNS = ["id", "image", "semseg", "boundary", "label_map"]
LABELS = {"semseg": torch.zeros(4, 5, dtype=torch.long), "boundary": torch.zeros(4, 5)}


def make_benchmark(**values):
    return Benchmark(
        builder=Scenes,
        tasks=("semseg", "boundary"),
        class_names={"semseg": ["a", "b", "c"]},
        needs_data_dir=False,
        **values,
    )


JUDGED_ELSEWHERE = {"reference_columns": {"boundary": "label_map"}}
JUDGED_SOMETIMES = {"scored_ids": {"boundary": frozenset({"2008_000003"})}}


def make_row(**values):
    """A row as a data set of pictures gives it."""
    label_map = np.arange(20, dtype=np.uint16).reshape(4, 5) * 20
    row = {"id": "2008_000003", "label_map": Image.fromarray(label_map), **values}
    return Dataset.from_list([row])[0], label_map


def test_by_default_a_task_is_judged_on_what_it_learns():
    benchmark = make_benchmark()
    assert benchmark.protocol_columns([column for column in COLUMNS if column != "id"]) == []
    references = benchmark.references({}, LABELS)
    assert references == LABELS and references is not LABELS


def test_another_column_takes_the_place_of_the_labels():
    row, label_map = make_row()
    references = make_benchmark(**JUDGED_ELSEWHERE).references(row, LABELS)
    assert list(references) == ["semseg", "boundary"]
    assert references["semseg"] is LABELS["semseg"]
    assert references["boundary"].dtype == np.uint16
    np.testing.assert_array_equal(references["boundary"], label_map)


def test_without_that_column_the_labels_remain():
    row, _ = make_row()
    del row["label_map"]
    assert make_benchmark(**JUDGED_ELSEWHERE).references(row, LABELS) == LABELS


def test_a_task_is_judged_on_its_images_only():
    benchmark = make_benchmark(**JUDGED_SOMETIMES)
    assert list(benchmark.references({"id": "2008_000003"}, LABELS)) == ["semseg", "boundary"]
    assert list(benchmark.references({"id": "2008_000004"}, LABELS)) == ["semseg"]


def test_an_image_that_is_not_judged_is_not_judged_on_another_column_either():
    benchmark = make_benchmark(**JUDGED_ELSEWHERE, **JUDGED_SOMETIMES)
    assert list(benchmark.references(make_row(id="2008_000004")[0], LABELS)) == ["semseg"]
    assert isinstance(benchmark.references(make_row()[0], LABELS)["boundary"], np.ndarray)


def test_a_task_that_the_model_does_not_have_is_not_judged():
    labels = {"semseg": LABELS["semseg"]}
    assert list(make_benchmark(**JUDGED_ELSEWHERE).references(make_row()[0], labels)) == ["semseg"]


def test_protocol_columns_are_those_that_the_references_need():
    benchmark = make_benchmark(**JUDGED_ELSEWHERE, **JUDGED_SOMETIMES)
    assert benchmark.protocol_columns(COLUMNS) == ["id", "label_map"]
    assert benchmark.protocol_columns(["image", "semseg", "boundary"]) == []


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_speaks_of_its_own_tasks(name):
    benchmark = get_benchmark(name)
    tasks = set(benchmark.task_num_labels)
    assert tasks <= set(TASKS)
    for mapping in (
        benchmark.class_names,
        benchmark.task_metric_kwargs,
        benchmark.reference_columns,
        benchmark.scored_ids,
    ):
        assert set(mapping) <= tasks
    for task, names in benchmark.class_names.items():
        assert len(names) == benchmark.num_labels(task)


def test_boundaries_are_judged_by_the_protocol_of_the_field():
    assert get_benchmark("nyud_v2").task_metric_kwargs == {"boundary": {"max_distance": 0.011}}
    pascal_context = get_benchmark("pascal_context")
    assert pascal_context.task_metric_kwargs == {"boundary": {"max_distance": 0.0075}}
    assert pascal_context.reference_columns == {"boundary": "label_map"}
    assert pascal_context.scored_ids == {"boundary": SCORED_BOUNDARY_IDS}


def test_what_is_not_there_is_named():
    with pytest.raises(ValueError, match="'nyud'.*nyud_v2"):
        get_benchmark("nyud")
    with pytest.raises(ValueError, match="Scenes has no labels for the task 'depth'.*semseg"):
        make_benchmark().num_labels("depth")


def test_boundaries_of_pascal_context_are_judged_on_2498_images():
    assert len(SCORED_BOUNDARY_IDS) == 2498
    assert [name for name in SCORED_BOUNDARY_IDS if not re.fullmatch(r"20(08|09|10)_\d{6}", name)] == []


@pytest.mark.skipif(
    not OFFICIAL_LIST.is_file(), reason=f"no {OFFICIAL_LIST}; set SEM_PASCAL_CONTEXT_DIR to the real frames"
)
def test_images_with_judged_boundaries_are_official_validation_images():
    assert set(OFFICIAL_LIST.read_text().split()) > SCORED_BOUNDARY_IDS
