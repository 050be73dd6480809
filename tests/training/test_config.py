from dataclasses import replace

import pytest
import timm
import yaml
from huggingface_hub.errors import StrictDataclassError

from transformers_sem import TASKS, SEMConfig
from transformers_sem.data.benchmarks import BENCHMARKS
from transformers_sem.training import config as configuration
from transformers_sem.training.config import (
    TrainingConfig,
    claim_classes,
    claim_output_dir,
    hold_output_dir,
    holds_weights,
    label_fields,
)
from transformers_sem.utils.errors import describe_error


@pytest.fixture
def write(tmp_path):
    def write_yaml(**values):
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write_yaml


def test_defaults_are_the_papers_recipe():
    config = TrainingConfig()
    recipe = (config.max_steps, config.batch_size, config.learning_rate, config.weight_decay, config.max_grad_norm)
    assert recipe == (40_000, 4, 1e-5, 1e-6, 10.0)
    assert (config.dataset, config.input_size, config.decay_power, config.zoom) == (
        "nyud_v2",
        [448, 576],
        0.9,
        [0.5, 2.0],
    )
    assert config.pretrained_backbone is True


def test_file_and_overrides(write):
    path = write(max_steps=7, model={"hidden_size": 64, "backbone_config": {"model_name": "a", "out_indices": [1]}})
    overrides = [
        "batch_size=6",
        "learning_rate=2e-4",
        "model.num_bases=32",
        "model.backbone_config.model_name=b",
        "dataset_kwargs.num_train=8",
        "tasks=[depth, normal]",
        "pretrained_backbone=weights=final.safetensors",
        "num_evaluation_images=null",
        "gradient_checkpointing=true",
    ]
    config = TrainingConfig.load(path, overrides)
    assert (config.max_steps, config.batch_size, config.learning_rate) == (7, 6, 2e-4)
    assert config.model == {
        "hidden_size": 64,
        "backbone_config": {"model_name": "b", "out_indices": [1]},
        "num_bases": 32,
    }
    assert config.dataset_kwargs == {"num_train": 8}
    assert config.tasks == ["depth", "normal"]
    assert config.pretrained_backbone == "weights=final.safetensors"
    assert config.num_evaluation_images is None
    assert config.gradient_checkpointing is True
    assert config.weight_decay == TrainingConfig().weight_decay


@pytest.mark.parametrize("override", ["mixed_precision=no", "mixed_precision='no'"])
def test_no_precision_is_no_boolean(write, override):
    """YAML reads `no` as false."""
    assert TrainingConfig.load(write(), [override]).mixed_precision == "no"


def test_an_empty_file_is_the_defaults(tmp_path):
    path = tmp_path / "empty.yaml"
    path.touch()
    assert TrainingConfig.load(path) == TrainingConfig()


def test_two_configurations_share_nothing():
    TrainingConfig().model["hidden_size"] = 3
    assert TrainingConfig().model == {}


def test_whole_numbers_are_numbers(write):
    config = TrainingConfig.load(write(learning_rate=1, max_grad_norm=5))
    assert config.learning_rate == 1
    assert config.max_grad_norm == 5.0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("snapshot_every=0", ["`snapshot_every`", "1 or more", "0"]),
        ("num_evaluation_images=0", ["`num_evaluation_images`", "1 or more", "0"]),
        ("max_steps=ten", ["'max_steps'", "int", "'ten'"]),
        ("max_steps=2.5", ["'max_steps'", "int", "2.5"]),
        ("max_steps=true", ["'max_steps'", "int", "True"]),
        ("max_steps=null", ["'max_steps'", "int", "None"]),
        ("learning_rate=false", ["'learning_rate'", "float", "False"]),
        ("learning_rate=small", ["'learning_rate'", "float", "'small'"]),
        ("gradient_checkpointing=1", ["'gradient_checkpointing'", "bool", "1"]),
        ("pretrained_backbone=3", ["'pretrained_backbone'", "bool", "str", "3"]),
        *(
            (f"model.backbone_config={value}", ["`model.backbone_config`", value, "key: value"])
            for value in ("5", "0", "'abc'", "[['a']]")
        ),
        ("model.task_num_labels={depth: 1}", ["['task_num_labels'] in `model`", "`tasks`"]),
        ("model=convnext", ["'model'", "dict", "str"]),
        ("tasks=depth", ["'tasks'", "list", "'depth'"]),
        ("input_size=[32, 64, 96]", ["`input_size`", "height and a width", "[32, 64, 96]"]),
        ("input_size=[-5, 5]", ["`input_size`", "1 to", "[-5, 5]"]),
        ("network_size=[64, 100000000]", ["`network_size`", "1 to", "[64, 100000000]"]),
        ("input_size=[32, 64.5]", ["'input_size'", "64.5"]),
        ("tasks=[]", ["`tasks`", "one or more", "[]"]),
        ("tasks=[depth, depth]", ["`tasks`", "each once", "['depth', 'depth']"]),
        ("zoom=[0.001, 1000]", ["`zoom`", "up to 10", "[0.001, 1000]"]),
        ("seed=4294967296", ["`seed`", "below 2**32", "4294967296"]),
        ("image_mean=[.nan, 0, 0]", ["`image_mean`", "finite", "nan"]),
        ("tasks=[depth, 3]", ["'tasks'", "str", "3"]),
        ("zoom=[2.0, 1.0]", ["`zoom`", "lower end first", "[2.0, 1.0]"]),
        ("zoom=[1.0, 1.5]", ["`zoom`", "symmetric", "[1.0, 1.5]", "zoom=[0.667,1.5]"]),
        ("learning_rate=-1.0", ["`learning_rate`", "0 or more", "-1.0"]),
        ("learning_rate=.nan", ["`learning_rate`", "finite", "nan"]),
        ("learning_rate=.inf", ["`learning_rate`", "finite", "inf"]),
        ("weight_decay=.inf", ["`weight_decay`", "finite", "inf"]),
        ("seed=-1", ["`seed`", "0 or more", "-1"]),
        ("num_workers=-1", ["`num_workers`", "0 or more", "-1"]),
        ("image_mean=[0.5]", ["`image_mean`", "red, green and blue", "[0.5]"]),
        ("image_std=[0.5, 0.5, 0]", ["`image_std`", "above 0", "[0.5, 0.5, 0]"]),
        ("layer_decay=0", ["`layer_decay`", "above 0", "freeze_backbone"]),
        ("input_size=96", ["'input_size'", "list", "int"]),
        ("max_grad_norm=0", ["`max_grad_norm`", "above 0", "0"]),
        ("keep_checkpoints=0", ["`keep_checkpoints`", "1 or more", "0"]),
        ("weight_average_decay=1.0", ["`weight_average_decay`", "between 0 and 1", "1.0"]),
        ("trackers=[tensorbord]", ["`trackers`", "tensorbord", "trackio"]),
        ("trackers=wandb", ["'trackers'", "list", "str"]),
        ("lerning_rate=1.0", ["lerning_rate", "learning_rate"]),
        ("max_steps", ["key=value", "'max_steps'"]),
        ("--max_steps=3", ["--max_steps", "max_steps"]),
        ("tasks=[depth", ["tasks=[depth"]),
        ("max_steps.x=3", ["max_steps"]),
        ("datasets=[{dataset: scenes, wieght: 2}]", ["settings of a dataset", "wieght", "weight"]),
        ("datasets=[{weight: 2}]", ["names its `dataset`"]),
        ("datasets=[scenes]", ["'datasets'", "dict"]),
        ("model.hidden_size.x=3", ["model.hidden_size"]),
    ],
)
def test_wrong_settings_are_named(write, override, words):
    with pytest.raises((ValueError, StrictDataclassError)) as error:
        TrainingConfig.load(write(max_steps=5, model={"hidden_size": 8}), [override])
    message = describe_error(error.value)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message and "rror for" not in message


def test_unknown_keys_of_a_file_are_named(write):
    with pytest.raises(ValueError, match=r"\['epochs', 'lr'\].*'learning_rate'"):
        TrainingConfig.load(write(lr=1.0, epochs=3))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        TrainingConfig.load(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("max_steps", "every", "steps"),
    [(40_000, None, [*range(4000, 40_001, 4000)]), (6, None, [*range(1, 7)]), (25, 10, [10, 20, 25]), (5, 9, [5])],
)
def test_snapshots_are_about_ten_or_as_often_as_asked(max_steps, every, steps):
    config = TrainingConfig(max_steps=max_steps, snapshot_every=every)
    assert [step for step in range(1, max_steps + 1) if config.is_snapshot(step)] == steps


@pytest.mark.parametrize(("num_processes", "num_parts", "expected"), [(1, 1, 12), (2, 1, 6), (2, 3, 2), (1, 12, 1)])
def test_images_per_forward(num_processes, num_parts, expected):
    config = TrainingConfig(batch_size=12, gradient_accumulation_steps=num_parts)
    assert config.images_per_forward(num_processes) == expected


@pytest.mark.parametrize(("num_processes", "num_parts"), [(5, 1), (1, 8), (8, 3), (24, 1)])
def test_a_batch_that_does_not_divide_is_refused(num_processes, num_parts):
    config = TrainingConfig(batch_size=12, gradient_accumulation_steps=num_parts)
    with pytest.raises(ValueError, match=rf"12 images, {num_processes} ranks, {num_parts} micro-batches"):
        config.images_per_forward(num_processes)


# ----------------------------------------------------------------------------------------------------------------------
# The folder of a run


def test_claiming_a_folder_notes_the_settings(tmp_path):
    config = TrainingConfig(output_dir=str(tmp_path / "runs" / "new"), model={"num_bases": 8}, learning_rate=3e-7)
    claim_output_dir(config)
    claim_output_dir(config)
    assert TrainingConfig.load(tmp_path / "runs" / "new" / "training.yaml") == config
    assert [path.name for path in (tmp_path / "runs" / "new").iterdir()] == ["training.yaml"]


def test_a_folder_that_another_process_trains_in_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(configuration, "LOCK_SECONDS", 0.1)
    config = TrainingConfig(output_dir=str(tmp_path / "run"))
    with (
        hold_output_dir(config),
        pytest.raises(ValueError, match="One process trains in a folder"),
        hold_output_dir(config),
    ):
        pass
    with hold_output_dir(config):
        pass


def test_a_training_that_ended_with_an_error_holds_no_folder(tmp_path, monkeypatch):
    """A notebook keeps the traceback of Ctrl-C, and with it all variables of the training."""
    monkeypatch.setattr(configuration, "LOCK_SECONDS", 0.1)
    config = TrainingConfig(output_dir=str(tmp_path / "run"))

    def interrupted():
        with hold_output_dir(config):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:
        interrupted()
    with hold_output_dir(config):
        assert TrainingConfig.load(tmp_path / "run" / "training.yaml") == config
    assert kept.traceback


def test_another_runs_folder_is_refused(tmp_path):
    config = TrainingConfig(output_dir=str(tmp_path), seed=1)
    claim_output_dir(config)
    other = replace(config, seed=2, learning_rate=0.5)
    with pytest.raises(ValueError, match=r"learning_rate 1e-05 -> 0\.5; seed 1 -> 2.*another output_dir"):
        claim_output_dir(other)
    assert TrainingConfig.load(tmp_path / "training.yaml") == config


def test_a_moved_run_goes_on(tmp_path, monkeypatch):
    """From another working directory, with a relative path."""
    (tmp_path / "data").mkdir()
    claim_output_dir(TrainingConfig(output_dir=str(tmp_path / "run"), data_dir=str(tmp_path / "data")))
    (tmp_path / "run").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    claim_output_dir(TrainingConfig(output_dir="moved", data_dir="data"))
    with pytest.raises(ValueError, match="data_dir"):
        claim_output_dir(TrainingConfig(output_dir="moved", data_dir="moved"))


@pytest.mark.parametrize("name", ["pretrained_model", "pretrained_backbone"])
def test_weights_go_by_their_place(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    for path in ("weights", "weights/", str(tmp_path / "weights")):
        claim_output_dir(TrainingConfig(output_dir="run", **{name: path}))
    for path in ("owner/weights", None if name == "pretrained_model" else False):
        with pytest.raises(ValueError, match=name):
            claim_output_dir(TrainingConfig(output_dir="run", **{name: path}))


def test_a_model_that_no_training_has_written_is_not_replaced(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with (
        pytest.raises(ValueError, match="no training has written there.* another output_dir"),
        hold_output_dir(TrainingConfig(output_dir=str(tmp_path))),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_weights_do_not_get_the_names_of_other_classes(tmp_path):
    """Those of a description that was edited after the training."""
    configs = [
        SEMConfig(task_num_labels={"semseg": 2}, task_id2label={"semseg": dict(enumerate(names))})
        for names in (["road", "tree"], ["tree", "road"])
    ]
    for config in configs:  # without weights it may be corrected
        claim_classes(tmp_path, config)
    (tmp_path / "checkpoints" / "step_000001").mkdir(parents=True)
    claim_classes(tmp_path, configs[1])
    with pytest.raises(ValueError, match=r"those of \['semseg'\] differ from the data's. .*another output_dir"):
        claim_classes(tmp_path, configs[0])
    assert SEMConfig.from_pretrained(tmp_path).class_names("semseg") == ["tree", "road"]


def test_every_dataset_has_one_of_the_tasks(monkeypatch):
    monkeypatch.setattr("transformers_sem.tasks.TASKS", dict(TASKS))  # the renamed task is registered
    monkeypatch.setattr("transformers_sem.tasks.VARIANTS", {})
    entries = [{"dataset": "scenes"}, {"dataset": "nyud_v2", "tasks": {"semseg": "semseg_nyud"}}]
    config = TrainingConfig(datasets=entries, tasks=["semseg", "depth"])
    assert [*label_fields(config, config.get_benchmark())["task_num_labels"]] == ["semseg", "depth"]
    config = replace(config, tasks=["semseg"])
    with pytest.raises(
        ValueError, match=r"one of `tasks`, \['semseg'\]; nyud_v2 has \['semseg_nyud', .* Leave it out"
    ):
        label_fields(config, config.get_benchmark())


def test_paths_may_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = TrainingConfig.from_dict({"output_dir": "~/runs/x", "pretrained_model": "~/runs/y"})
    assert (config.output_dir, config.pretrained_model) == ("/home/me/runs/x", "/home/me/runs/y")
    assert config.pretrained_backbone is TrainingConfig().pretrained_backbone


def test_settings_of_several_datasets_replace_those_of_one(tmp_path, monkeypatch):
    entry = {"dataset": "nyud_v2", "data_dir": str(tmp_path / "data"), "weight": 2}
    config = TrainingConfig(output_dir=str(tmp_path / "run"), datasets=[entry])
    assert [(part.dataset, part.weight) for part in config.dataset_configs] == [("nyud_v2", 2)]
    assert config.describe()["datasets"] == [{"dataset": "nyud_v2", "weight": 2}]
    claim_output_dir(config)
    monkeypatch.chdir(tmp_path)
    claim_output_dir(replace(config, datasets=[{**entry, "data_dir": "data"}]))
    with pytest.raises(ValueError, match="datasets"):
        claim_output_dir(replace(config, datasets=[{**entry, "weight": 1}]))
    with pytest.raises(StrictDataclassError) as error:
        TrainingConfig(datasets=[entry], data_dir="data")
    assert "belong in each entry of `datasets`" in describe_error(error.value)


def test_settings_of_a_run_that_did_not_start_are_replaced(tmp_path):
    config = TrainingConfig(output_dir=str(tmp_path))
    claim_output_dir(config)
    claim_output_dir(replace(config, seed=2), replace=True)
    assert TrainingConfig.load(tmp_path / "training.yaml").seed == 2


@pytest.mark.parametrize(
    "name", ["checkpoints/step_000001/optimizer.bin", "model.safetensors", "seed0/sem/model.safetensors"]
)
def test_a_run_has_started_with_its_first_weights(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "training.yaml").touch()
    assert not name.endswith("safetensors") or not holds_weights(tmp_path)
    (tmp_path / name).touch()
    assert holds_weights(tmp_path)


# ----------------------------------------------------------------------------------------------------------------------
# The files in scripts/configs


TASKS_OF = {name: benchmark.task_num_labels for name, benchmark in BENCHMARKS.items()}


def test_every_file_builds_a_model_configuration(repository):
    paths = sorted((repository / "scripts" / "configs").glob("*.yaml"))
    assert len(paths) >= 9
    for path in paths:
        config = TrainingConfig.load(path)
        model_config = SEMConfig(task_num_labels=TASKS_OF.get(config.dataset), **config.model)
        assert timm.models.is_model(timm.models.get_arch_name(model_config.backbone_config.model_name)), path
        assert len(model_config.backbone_config.out_indices) == len(model_config.decoder_hidden_sizes), path
    output_dirs = [TrainingConfig.load(path).output_dir for path in paths]
    assert len(set(output_dirs)) == len(paths)


def test_quickstart_needs_no_network(repository):
    config = TrainingConfig.load(repository / "scripts" / "configs" / "quickstart.yaml")
    assert config.dataset == "scenes"
    assert config.pretrained_backbone == "if_available"
    assert config.data_dir is None
