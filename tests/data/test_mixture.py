"""Two datasets of scenes, the second with other classes: it calls its `semseg` by another name and lacks other maps."""

import pickle
from dataclasses import replace

import pytest
from huggingface_hub.errors import StrictDataclassError

from transformers_sem import TASKS, SEMImageProcessor
from transformers_sem.data.benchmarks import BENCHMARKS, get_benchmark
from transformers_sem.data.mixture import DatasetConfig, concatenate_rows, merge_benchmarks, name_datasets
from transformers_sem.data.row_format import count_labels
from transformers_sem.data.transforms import TransformedDataset
from transformers_sem.tasks import VARIANTS


SIZE = {"height": 32, "width": 48, "num_validation": 1}


@pytest.fixture(autouse=True)
def variants():
    """Forgets the variants that a test registers."""
    yield
    for name in [*VARIANTS]:
        del TASKS[name], VARIANTS[name]


@pytest.fixture
def parts():
    first = DatasetConfig(dataset="scenes", dataset_kwargs={**SIZE, "num_train": 2}).load()["train"]
    renamed = DatasetConfig(
        dataset="scenes", dataset_kwargs={**SIZE, "num_train": 3}, tasks={"semseg": "semseg_rooms"}
    ).load()["train"]
    return first.select_columns(["image", "semseg", "depth"]), renamed.select_columns(
        ["image", "semseg_rooms", "depth"]
    )


def test_a_row_lacks_the_labels_of_the_other_dataset(parts):
    rows = concatenate_rows(parts, ["semseg", "depth", "semseg_rooms"])
    assert count_labels(rows, ["semseg", "depth", "semseg_rooms"]) == {"semseg": 2, "depth": 5, "semseg_rooms": 3}
    assert rows[1]["semseg_rooms"] is None and rows[2]["semseg"] is None
    assert rows[2]["image"] == parts[1][0]["image"] and rows[2]["semseg_rooms"] == parts[1][0]["semseg_rooms"]
    samples = TransformedDataset(rows, ["semseg", "semseg_rooms"], SEMImageProcessor(do_resize=False))
    labels = samples[4]["labels"]
    assert (labels["semseg"] == 255).all() and (labels["semseg_rooms"] != 255).any()


def test_a_single_dataset_stays_as_it_is(parts):
    assert concatenate_rows(parts[:1], ["semseg"]) is parts[0]
    benchmark = get_benchmark("scenes")
    assert merge_benchmarks([benchmark]) is benchmark


def test_a_worker_that_was_not_forked_knows_the_variants(parts):
    samples = pickle.dumps(TransformedDataset([], ["semseg_rooms"], None))
    del TASKS["semseg_rooms"]
    pickle.loads(samples)
    assert VARIANTS["semseg_rooms"] == "semseg" and "semseg_rooms" in TASKS


def test_tasks_of_all_datasets_are_those_of_the_model():
    merged = merge_benchmarks(
        [get_benchmark("nyud_v2"), get_benchmark("pascal_context", tasks={"semseg": "semseg_voc"})]
    )
    assert merged.task_num_labels == {
        "semseg": 40,
        "depth": 1,
        "normal": 3,
        "boundary": 1,
        "semseg_voc": 21,
        "parsing": 7,
        "saliency": 2,
    }
    assert merged.class_names["semseg_voc"] == BENCHMARKS["pascal_context"].class_names["semseg"]
    assert not merged.reference_columns and not merged.scored_ids


def test_other_classes_need_another_name():
    with pytest.raises(ValueError, match=r"'semseg' has 40 .* 21 .*PASCAL-Context.*tasks: \{semseg: semseg_2\}"):
        merge_benchmarks([get_benchmark("nyud_v2"), get_benchmark("pascal_context")])


def test_the_protocol_follows_a_new_name():
    renamed = get_benchmark("pascal_context", tasks={"boundary": "edges"})
    benchmark = BENCHMARKS["pascal_context"]
    assert (renamed.task_metric_kwargs["edges"], renamed.reference_columns) == (
        benchmark.task_metric_kwargs["boundary"],
        {"edges": "label_map"},
    )
    assert renamed.scored_ids["edges"] == benchmark.scored_ids["boundary"]


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ({"parsing": "parts"}, "no labels for the task 'parsing'"),
        ({"semseg": "depth"}, "'depth' exists and has another kind"),
        ({"semseg": "sem.seg"}, "letters, digits and underscores only, .* got 'sem.seg'"),
        *(
            ({"semseg": name}, f"got '{name}'. Choose another")
            for name in ("image", "loss", "forward", "depth_classes")
        ),
        ({"boundary": "saliency"}, "'saliency' exists and has another kind"),
        ({"semseg": "rooms", "depth": "rooms"}, "'rooms' exists and has another kind"),
    ],
)
def test_names_that_do_not_fit_are_refused(tasks, words):
    with pytest.raises(ValueError, match=words):
        get_benchmark("nyud_v2", tasks=tasks)


def test_two_tasks_of_a_dataset_have_two_names():
    with pytest.raises(ValueError, match="Each task of a dataset has its own name"):
        get_benchmark("pascal_context", tasks={"semseg": "parsing"})


def test_a_task_may_take_the_name_of_a_task_of_its_kind():
    """Human parts that a folder calls `semseg`, for example."""
    names = replace(BENCHMARKS["nyud_v2"], tasks=["semseg"]).rename_tasks({"semseg": "parsing"})
    assert names.tasks == ["parsing"] and not VARIANTS


def test_datasets_have_distinct_names():
    configs = [DatasetConfig(dataset=name) for name in ("folder", "nyud_v2", "folder")]
    assert list(name_datasets(configs)) == ["folder_1", "nyud_v2", "folder_3"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dataset": "nyud_v2", "wieght": 2}, "wieght.*weight"),
        ({"data_dir": "x"}, "names its `dataset`"),
        ({"dataset": "nyud_v2", "weight": 0}, "above 0, and finite; got 0"),
        ({"dataset": "nyud_v2", "tasks": ["semseg"]}, "tasks"),
    ],
)
def test_wrong_settings_of_a_dataset_are_named(values, words):
    with pytest.raises((ValueError, StrictDataclassError), match=words):
        DatasetConfig.from_dict(values)
