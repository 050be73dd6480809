import os
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from transformers_sem import TASKS
from transformers_sem.data.benchmarks import (
    BENCHMARKS,
    SCORED_BOUNDARY_IDS,
    Benchmark,
    check_shared_ids,
    get_benchmark,
)
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


REFERENCE_COLUMN = {"reference_columns": {"boundary": "label_map"}}
SCORED_IDS = {"scored_ids": {"boundary": frozenset({"2008_000003"})}}


def make_row(**values):
    """A row as a dataset of images gives it."""
    label_map = np.arange(20, dtype=np.uint16).reshape(4, 5) * 20
    row = {"id": "2008_000003", "label_map": Image.fromarray(label_map), **values}
    return Dataset.from_list([row])[0], label_map


def test_references_are_the_labels_by_default():
    benchmark = make_benchmark()
    references = benchmark.references({}, LABELS)
    assert references == LABELS and references is not LABELS


def test_reference_column_replaces_the_labels():
    row, label_map = make_row()
    references = make_benchmark(**REFERENCE_COLUMN).references(row, LABELS)
    assert list(references) == ["semseg", "boundary"]
    assert references["semseg"] is LABELS["semseg"]
    assert references["boundary"].dtype == np.uint16
    np.testing.assert_array_equal(references["boundary"], label_map)


def test_labels_are_references_where_a_row_lacks_the_reference():
    row = {"id": "2008_000003", "label_map": None}
    assert make_benchmark(**REFERENCE_COLUMN).references(row, LABELS) == LABELS


def test_labels_are_references_without_the_reference_column():
    row, _ = make_row()
    del row["label_map"]
    assert make_benchmark(**REFERENCE_COLUMN).references(row, LABELS) == LABELS


def test_task_is_scored_on_scored_ids_only():
    benchmark = make_benchmark(**SCORED_IDS)
    assert list(benchmark.references({"id": "2008_000003"}, LABELS)) == ["semseg", "boundary"]
    assert list(benchmark.references({"id": "2008_000004"}, LABELS)) == ["semseg"]


def test_scored_ids_apply_to_reference_columns():
    benchmark = make_benchmark(**REFERENCE_COLUMN, **SCORED_IDS)
    assert list(benchmark.references(make_row(id="2008_000004")[0], LABELS)) == ["semseg"]
    assert isinstance(benchmark.references(make_row()[0], LABELS)["boundary"], np.ndarray)


def test_task_without_labels_has_no_references():
    labels = {"semseg": LABELS["semseg"]}
    assert list(make_benchmark(**REFERENCE_COLUMN).references(make_row()[0], labels)) == ["semseg"]


def test_references_of_a_row_decode_only_what_they_need():
    rows = Dataset.from_list([{"image": "a", "id": "2008_000004"}, {"image": "b", "id": "2008_000003"}])
    rows = rows.with_transform(lambda batch: pytest.fail("read") if "image" in batch else batch)
    benchmark = make_benchmark(**REFERENCE_COLUMN, **SCORED_IDS)
    assert [list(benchmark.row_references(rows, index, LABELS)) for index in (0, 1)] == [
        ["semseg"],
        ["semseg", "boundary"],
    ]
    assert make_benchmark().row_references(rows.remove_columns("id"), 0, LABELS) == LABELS


def test_settings_of_benchmarks_name_their_own_tasks():
    for name in BENCHMARKS:
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


def test_head_widths_of_the_benchmarks():
    nyud_v2 = {"semseg": 40, "depth": 1, "normal": 3, "boundary": 1}
    assert get_benchmark("nyud_v2").task_num_labels == nyud_v2
    pascal_context = {"semseg": 21, "parsing": 7, "saliency": 2, "normal": 3, "boundary": 1}
    assert get_benchmark("pascal_context").task_num_labels == pascal_context
    assert get_benchmark("scenes").task_num_labels == {**nyud_v2, "semseg": 15, "parsing": 7, "saliency": 2}


def test_protocols_of_boundaries():
    assert get_benchmark("nyud_v2").task_metric_kwargs == {"boundary": {"max_distance": 0.011}}
    pascal_context = get_benchmark("pascal_context")
    assert pascal_context.task_metric_kwargs == {"boundary": {"max_distance": 0.0075}}
    assert pascal_context.reference_columns == {"boundary": "label_map"}
    assert pascal_context.scored_ids == {"boundary": SCORED_BOUNDARY_IDS}


def test_unknown_benchmark_and_task():
    with pytest.raises(ValueError, match="'nyud'.*nyud_v2"):
        get_benchmark("nyud")
    with pytest.raises(ValueError, match="Scenes has no labels for the task 'depth'.*semseg"):
        make_benchmark().num_labels("depth")


def test_pascal_context_scores_boundaries_on_2498_images():
    assert len(SCORED_BOUNDARY_IDS) == 2498
    assert [name for name in SCORED_BOUNDARY_IDS if not re.fullmatch(r"20(08|09|10)_\d{6}", name)] == []


@pytest.mark.skipif(
    not OFFICIAL_LIST.is_file(), reason=f"no {OFFICIAL_LIST}; set SEM_PASCAL_CONTEXT_DIR to the real frames"
)
def test_images_with_scored_boundaries_are_official_validation_images():
    assert set(OFFICIAL_LIST.read_text().split()) > SCORED_BOUNDARY_IDS


def test_images_of_both_splits_are_named(caplog):
    def split(*ids):
        return datasets.Dataset.from_dict({"id": ids})

    check_shared_ids(datasets.DatasetDict(train=split("a", "b"), validation=split("c")))
    assert caplog.text == ""
    check_shared_ids(datasets.DatasetDict(train=split("a", "b", "c"), validation=split("c", "d", "e", "b")))
    assert "2 of 4 validation images are also training images (b, c)" in caplog.text
    for validation in (split("c", "d", "b"), split("c", "a", "b")):
        with pytest.raises(
            ValueError, match="of 3 validation images are also training images .* off one of the lists"
        ):
            check_shared_ids(datasets.DatasetDict(train=split("a", "b", "c"), validation=validation))


def test_unknown_fields_of_a_dataset_are_named_whatever_their_type():
    with pytest.raises(ValueError, match=r"Unknown fields of Scenes \[5, 'a'\]"):
        get_benchmark("scenes", None, {"a": 1, 5: 2})
