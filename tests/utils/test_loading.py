"""A model is loaded whole, in the wanted precision and within the size of its weights, or one line says what is wrong."""

import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from transformers_sem import SEMConfig, SEMForMultiTaskDensePrediction, SEMImageProcessor
from transformers_sem.utils.loading import load_config, load_image_processor, load_model

from ..tiny import save_tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved, tmp_path):
    """A copy, which a test may change."""
    return shutil.copytree(saved, tmp_path, dirs_exist_ok=True)


def load(folder, **kwargs):
    return load_model(SEMForMultiTaskDensePrediction, folder, local_files_only=True, **kwargs)


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_checkpoint_of_any_precision_is_loaded_in_the_wanted_one(folder):
    SEMForMultiTaskDensePrediction.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    change_json(folder / "config.json", return_dict=False)
    images = torch.zeros(1, 3, 64, 64)
    for dtype in (torch.float32, torch.bfloat16):
        model = load(folder, dtype=dtype)
        assert model.dtype == dtype and not model.training
        assert model(images).logits["depth"].dtype == dtype


def test_weights_that_do_not_belong_to_the_configuration_are_refused(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({"something": torch.ones(3)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"do not match its config.json: \d+ tensors are missing or unexpected"):
        load(folder)
    name = next(name for name in weights if weights[name].ndim == 4)
    save_file({**weights, name: torch.ones(3)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"must have the shape \(.*; it has \(3,\)"):
        load(folder)


def test_weights_in_several_files_are_safetensors_of_the_folder(folder):
    SEMForMultiTaskDensePrediction.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    index = folder / "model.safetensors.index.json"
    expected = json.loads(index.read_text())["weight_map"]
    assert len(set(expected.values())) > 1
    load(folder)
    shard = sorted(set(expected.values()))[0]
    (folder / "pickle.bin").touch()
    for name in ("pickle.bin", f"../{folder.name}/{shard}", str(folder / shard)):
        names = {key: name if value == shard else value for key, value in expected.items()}
        index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
        with pytest.raises(
            ValueError, match=rf"Cannot use .*index.json: weights are safetensors.*\['{re.escape(name)}'\]"
        ):
            load(folder)
    index.write_text("{}")
    with pytest.raises(ValueError, match="Cannot use .*index.json: .*weight_map"):
        load(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 2**16}, "has [0-9]+ values, but the weights hold"),
        ({"hidden_size": 2**40}, "`hidden_size` must be above 0 and at most"),
        ({"quantization_config": {"bits": 4}}, "quant"),
        ({"dtype": "float99"}, "`dtype`.*'float99'"),
        ({"model_type": "vit"}, "model type is 'vit', not 'sem'"),
        ({"task_id2label": ["a"]}, "task_id2label"),
        ({"transformers_weights": "adapter_model.bin"}, "`transformers_weights` of a file is not used"),
        ({"to_dict": 5}, "sets fields.*'to_dict'"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_named(folder, values, message):
    change_json(folder / "config.json", **values)
    with pytest.raises(ValueError, match=message) as error:
        load(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_a_configuration_is_refused(folder):
    """transformers would take the default configuration."""
    (folder / "config.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match=f"There is no config.json in {folder}, or it has no fields"):
            load_config(SEMConfig, folder, local_files_only=True)
        (folder / "config.json").unlink(missing_ok=True)
    (folder / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(ValueError, match=f"config.json of {folder}: the model type is None, not 'sem'"):
        load_config(SEMConfig, folder, local_files_only=True)


def test_a_folder_with_a_pipe_is_refused(folder):
    os.mkfifo(folder / "generation_config.json")
    with pytest.raises(ValueError, match=r"regular files.*generation_config\.json"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rescale_factor", 0),
        ("rescale_factor", "text"),
        ("image_mean", "text"),
        ("image_mean", [float("nan")] * 3),
        ("image_std", [0, 0, 0]),
        ("image_std", [[1]]),
        ("pad_size", {"height": 30_000, "width": 30_000}),
        ("pad_size", {"height": 0, "width": 5}),
        ("size", ["a"]),
        ("size", []),
        ("do_normalize", [1]),
        ("resample", 10**9),
        ("device", "text"),
        ("device", [1]),
        ("rescale_factor", None),
        ("image_mean", None),
        ("image_std", None),
        ("size", None),
        ("resample", None),
        ("image_mean", [0.5, 0.5]),
        ("size", {"shortest_edge": 64}),
    ],
)
def test_image_processor_settings_that_cannot_be_used_are_named(folder, name, value):
    change_json(folder / "preprocessor_config.json", **{name: value})
    with pytest.raises(ValueError, match=f"preprocessor_config.json of .*`{name}`") as error:
        load_image_processor(SEMImageProcessor, folder, local_files_only=True)
    assert (repr(value)[:5] if value is not None else "must") in str(error.value) or "SizeDict" in str(error.value)


@pytest.mark.parametrize("name", ["preprocess", "plan_sizes", "post_process_dense_prediction"])
def test_an_image_processor_whose_methods_are_replaced_is_refused(folder, name):
    change_json(folder / "preprocessor_config.json", **{name: 5})
    with pytest.raises(ValueError, match=f"preprocessor_config.json of .*{name}.*parts of its class"):
        load_image_processor(SEMImageProcessor, folder, local_files_only=True)


def test_what_an_image_processor_does_not_use_may_be_null(folder):
    values = {"do_normalize": False, "image_mean": None, "do_resize": False, "size": None}
    change_json(folder / "preprocessor_config.json", do_pad=True, pad_size=None, **values)
    assert load_image_processor(SEMImageProcessor, folder, local_files_only=True).do_pad
