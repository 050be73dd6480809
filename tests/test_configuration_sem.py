"""The defaults are the paper's numbers, and a configuration survives saving, whatever its tasks and encoder."""

import json
import socket

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, Dinov2Config, SwinConfig

from transformers_sem import TASKS, SEMConfig, SEMForMultiTaskDensePrediction, SEMTimmBackboneConfig

from .tiny import TINY_BACKBONE, tiny_config


PASCAL = {"semseg": 21, "parsing": 7, "saliency": 2, "normal": 3, "boundary": 1}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task_num_labels", {"semseg": 40, "depth": 1, "normal": 3, "boundary": 1}),
        ("task_loss_weights", {"semseg": 1, "depth": 1, "normal": 10, "boundary": 50}),
        ("hidden_size", 512),
        ("offset_strides", [8, 4, 2, 1]),
        ("num_attention_heads", 8),
        ("mlp_ratio", 4),
        ("decoder_hidden_sizes", [512, 256, 128, 64]),
        ("decoder_num_attention_heads", [8, 4, 2, 1]),
        ("sr_ratios", [1, 2, 4, 8]),
        ("use_decoder", True),
        ("use_intra_task", True),
        ("num_intra_task_stages", 4),
        ("inter_task_stages", 4),
        ("num_bases", 64),
        ("num_em_iterations", 5),
        ("em_temperature", 1),
        ("bases_momentum", 0.9),
        ("use_auxiliary_heads", True),
        ("auxiliary_loss_weight", 1),
        ("reassemble_factors", None),
        ("task_loss_kwargs", {}),
        ("task_loss_weighting", "fixed"),
        ("task_id2label", {}),
    ],
)
def test_defaults_are_the_papers(field, value):
    assert getattr(SEMConfig(), field) == value


def test_default_encoder_is_the_papers():
    encoder = SEMConfig().backbone_config
    assert encoder.model_name == "vit_large_patch16_384.augreg_in21k_ft_in1k"
    assert list(encoder.out_indices) == [6, 12, 18, 24]
    assert encoder.drop_path_rate == 0.15
    assert encoder.num_channels == 3


def test_pascal_loss_weights_are_the_papers():
    weights = SEMConfig(task_num_labels=PASCAL).task_loss_weights
    assert weights == {"semseg": 1, "parsing": 2, "saliency": 5, "normal": 10, "boundary": 50}


def reload(config, folder):
    config.save_pretrained(folder)
    return SEMConfig.from_pretrained(folder)


def plain(value):
    """JSON has no tuples."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"task_num_labels": PASCAL},
        {"task_num_labels": {"depth": 1}, "use_decoder": False},
        {"task_loss_weights": {"depth": 0.5}, "task_loss_kwargs": {"boundary": {"positive_weight": 0.8}}},
        {"task_loss_kwargs": {"boundary": {"positive_weight": None}}, "task_loss_weighting": "uncertainty"},
        {"reassemble_factors": [4, 2, 1, 0.5], "hidden_size": 64, "num_em_iterations": 0},
        {"backbone_config": TINY_BACKBONE},
    ],
    ids=["defaults", "pascal", "single task", "weights", "none", "sizes", "timm"],
)
def test_saved_and_reloaded(values, tmp_path):
    config = SEMConfig(**values)
    reloaded = reload(config, tmp_path)
    expected, found = (plain(one.to_dict()) for one in (config, reloaded))
    assert {key for key in expected | found if expected.get(key) != found.get(key)} <= {"transformers_version"}
    assert type(reloaded.backbone_config) is SEMTimmBackboneConfig


@pytest.mark.parametrize(
    "tasks", [["normal", "depth"], ["depth", "normal"], ["boundary", "semseg", "normal", "depth"], list(TASKS)[::-1]]
)
def test_the_order_of_the_tasks_is_kept(tasks, tmp_path):
    config = SEMConfig(task_num_labels={task: TASKS[task].num_labels for task in tasks})
    for again in (
        config,
        reload(config, tmp_path),
        SEMConfig(**config.to_dict()),
        SEMConfig.from_dict(config.to_dict()),
    ):
        assert again.tasks == list(again.task_num_labels) == list(again.task_loss_weights) == tasks


def test_class_names_keep_their_integer_ids(tmp_path):
    names = {index: f"class {index}" for index in range(12)}
    reloaded = reload(SEMConfig(task_num_labels={"semseg": 12}, task_id2label={"semseg": names}), tmp_path)
    assert reloaded.task_id2label == {"semseg": names}
    assert list(reloaded.task_id2label["semseg"]) == list(range(12))


def test_auto_config_loads_it(tmp_path):
    tiny_config(hidden_size=32).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is SEMConfig
    assert config.hidden_size == 32


# Encoders


def test_a_timm_encoder_is_a_dictionary_without_a_model_type(tmp_path):
    values = {
        "model_name": "test_vit",
        "out_indices": [1, 2, 3, 4],
        "drop_path_rate": 0.3,
        "model_kwargs": {"depth": 4},
    }
    reloaded = reload(SEMConfig(backbone_config=values), tmp_path).backbone_config
    assert type(reloaded) is SEMTimmBackboneConfig
    assert {field: plain(getattr(reloaded, field)) for field in values} == values


def test_stages_may_be_named():
    assert list(SEMTimmBackboneConfig(out_features=["stage2", "stage4"]).out_indices) == [2, 4]
    assert SEMTimmBackboneConfig(out_indices=[2, 4]).out_features == ["stage2", "stage4"]


@pytest.mark.parametrize(
    ("backbone_config", "config_class"),
    [
        (
            {"model_type": "dinov2", "num_hidden_layers": 4, "hidden_size": 24, "out_indices": [1, 2, 3, 4]},
            Dinov2Config,
        ),
        (
            {"model_type": "swin", "embed_dim": 12, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
            SwinConfig,
        ),
        (Dinov2Config(num_hidden_layers=8, out_indices=[2, 4, 6, 8]), Dinov2Config),
    ],
    ids=["dinov2", "swin", "object"],
)
def test_any_transformers_encoder(backbone_config, config_class, tmp_path):
    config = SEMConfig(backbone_config=backbone_config)
    reloaded = reload(config, tmp_path)
    for encoder in (config.backbone_config, reloaded.backbone_config):
        assert type(encoder) is config_class
        assert len(encoder.out_features) == 4
    given = backbone_config if isinstance(backbone_config, dict) else backbone_config.to_dict()
    stored = plain(reloaded.backbone_config.to_dict())
    assert {key: stored[key] for key in given if key in stored} == {
        key: plain(given[key]) for key in given if key in stored
    }


def test_single_fields_of_the_encoder_of_a_checkpoint_are_replaced(tmp_path):
    SEMConfig(backbone_config={**TINY_BACKBONE, "model_kwargs": {"ls_init_value": 0.5}}).save_pretrained(tmp_path)
    encoder = SEMConfig.from_pretrained(tmp_path, backbone_config={"drop_path_rate": 0.2}).backbone_config
    assert encoder.model_name == TINY_BACKBONE["model_name"] and encoder.model_kwargs == {"ls_init_value": 0.5}
    assert encoder.drop_path_rate == 0.2
    encoder = SEMConfig.from_pretrained(
        tmp_path, backbone_config={"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    ).backbone_config
    assert [*encoder.out_indices] == [1, 2, 3, 4] and encoder.model_name == TINY_BACKBONE["model_name"]
    swin = {"model_type": "swin", "embed_dim": 12, "out_indices": [1, 2, 3, 4]}
    assert type(SEMConfig.from_pretrained(tmp_path, backbone_config=swin).backbone_config) is SwinConfig
    other = {"model_name": "resnet18", "out_indices": [1, 2, 3, 4]}
    assert SEMConfig.from_pretrained(tmp_path, backbone_config=other).backbone_config.model_kwargs == {}


def test_the_given_dictionaries_are_left_alone():
    backbone_config, names = dict(TINY_BACKBONE), {"depth": 1, "semseg": 2}
    config = SEMConfig(
        backbone_config=backbone_config, task_num_labels=names, task_id2label={"semseg": {0: "a", 1: "b"}}
    )
    assert backbone_config == TINY_BACKBONE
    assert names == {"depth": 1, "semseg": 2}
    assert config.tasks == ["depth", "semseg"]


# Errors


CONTRADICTIONS = [
    ({"task_num_labels": {"flow": 2}}, ["'flow'", "'depth'", "register_task"]),
    ({"task_num_labels": {}}, ["`task_num_labels` is empty"]),
    ({"task_num_labels": {"depth": 0}}, ["task_num_labels['depth']", "is 0"]),
    ({"task_num_labels": {"depth": 2}}, ["metres", "1 channel", "task_num_labels['depth']", "is 2"]),
    ({"task_num_labels": {"normal": 1}}, ["unit vectors", "3 channel", "is 1"]),
    ({"task_num_labels": {"boundary": 2}}, ["1 channel", "task_num_labels['boundary']", "is 2"]),
    ({"task_num_labels": {"saliency": 1}}, ["2 channel", "task_num_labels['saliency']", "is 1"]),
    ({"task_num_labels": {"semseg": 1}}, ["2 to 255 channels", "is 1"]),  # a softmax over one class is always 1
    ({"task_num_labels": {"semseg": 256}}, ["2 to 255 channels", "task_num_labels['semseg']", "is 256"]),
    ({"task_id2label": ["a"]}, ["task_id2label", "dict"]),
    ({"task_num_labels": {"semseg": 1}, "task_id2label": {"semseg": ["a"]}}, ["task_id2label['semseg']", "['a']"]),
    ({"task_loss_kwargs": {"boundary": {"weight": 2}}}, ["task_loss_kwargs['boundary']", "'weight'"]),
    ({"task_loss_weights": {"depth": float("nan")}}, ["task_loss_weights['depth']", "nan"]),
    ({"tasks": 5}, ["`tasks`", "5"]),
    ({"dtype": "float99"}, ["`dtype`", "'float32'", "'float99'"]),
    ({"dtype": "load"}, ["`dtype`", "'load'"]),
    ({"torch_dtype": "int8"}, ["`torch_dtype`", "'int8'"]),
    ({"id2label": 5}, ["id2label", "5"]),
    ({"quantization_config": "text"}, ["`quantization_config`", "'text'"]),
    ({"backbone_config": 5}, ["backbone_config", "5"]),
    ({"backbone_config": {"model_type": ["swin"]}}, ["backbone_config.model_type", "['swin']"]),
    ({"backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:a/b"}}, ["'timm_backbone'", "files"]),
    ({"backbone_config": {"model_type": "timm_wrapper", "model_args": {"checkpoint_path": "a"}}}, ["'timm_wrapper'"]),
    ({"backbone_config": {"model_type": "../../a"}}, ["`backbone_config.model_type`", "'../../a'"]),
    ({"backbone_config": {"model_type": "dinov2", "dtype": "os.system"}}, ["`dtype`", "'os.system'"]),
    ({"backbone_config": {"model_type": "dinov2", "id2label": 5}}, ["`id2label`", "5"]),
    ({"backbone_config": {"out_features": 5}}, ["`out_features`", "'stage1'", "5"]),
    ({"backbone_config": {"out_indices": "text"}}, ["`out_indices`", "'text'"]),
    ({"backbone_config": {"drop_path_rate": 5}}, ["`drop_path_rate`", "5"]),
    # Sizes beyond any network in use
    ({"hidden_size": 2**40}, ["`hidden_size`", "65536", str(2**40)]),
    ({"num_em_iterations": 10**9}, ["`num_em_iterations`", "0 to 1000"]),
    ({"em_temperature": float("nan")}, ["`em_temperature`", "nan"]),
    ({"offset_strides": [8, 4, 2, 10**9]}, ["`offset_strides`", "64"]),
    ({"reassemble_factors": [10**9, 2, 1, 0.5]}, ["`reassemble_factors`", "64"]),
    ({"backbone_config": {"num_channels": 10**9}}, ["`num_channels`", "1 to 1024"]),
    ({"backbone_config": {"out_indices": [1, 2, 3, 10**9]}}, ["`out_indices`", "1 to 1024"]),
    ({"backbone_config": {"model_kwargs": {"depth": 10**9}}}, ["`model_kwargs.depth`", "1024"]),
    ({"backbone_config": {"model_kwargs": {"embed_dims": [8, 10**9]}}}, ["`model_kwargs.embed_dims`", "8192"]),
    (
        {"backbone_config": {"model_type": "dinov2", "num_hidden_layers": 10**9}},
        ["`backbone_config.num_hidden_layers`"],
    ),
    ({"backbone_config": {"model_type": "swin", "window_size": 10**9}}, ["`backbone_config.window_size`"]),
    # Arguments of timm that load files, reach the network or run code
    ({"backbone_config": {"model_kwargs": {"checkpoint_path": "a.pth"}}}, ["`model_kwargs`", "['checkpoint_path']"]),
    (
        {"backbone_config": {"model_kwargs": {"pretrained": True, "pretrained_cfg_overlay": {"url": "http://a"}}}},
        ["`model_kwargs`", "['pretrained', 'pretrained_cfg_overlay']"],
    ),
    (
        {"backbone_config": {"model_kwargs": {"cache_dir": "/", "features_only": False, "scriptable": True}}},
        ["['cache_dir', 'features_only', 'scriptable']"],
    ),
    ({"task_loss_weights": {"parsing": 1.0}}, ["`task_loss_weights`", "'parsing'", "'semseg', 'depth'"]),
    ({"task_id2label": {"parsing": {0: "a"}}}, ["`task_id2label`", "'parsing'"]),
    ({"task_loss_kwargs": {"parsing": {}}}, ["`task_loss_kwargs`", "'parsing'"]),
    (
        {"task_num_labels": {"semseg": 3}, "task_id2label": {"semseg": {0: "a", 1: "b"}}},
        ["task_id2label['semseg']", "0 to 2", "2 names"],
    ),
    ({"task_num_labels": {"semseg": 2}, "task_id2label": {"semseg": {1: "a", 2: "b"}}}, ["0 to 1", "[1, 2]"]),
    ({"task_num_labels": {"semseg": 2}, "task_id2label": {"semseg": {}}}, ["task_id2label['semseg']", "0 to 1"]),
    ({"task_num_labels": {"depth": 1}, "tasks": ["depth", "normal"]}, ["`tasks`", "'normal'"]),
    ({"first_task": {}}, ["`first_task`", "got {}"]),
    ({"label2id": [0]}, ["`label2id` is a dictionary; got [0]"]),
    ({"label2id": {"a": {}}}, ["Ids of `id2label`, `label2id` and `task_id2label` are whole numbers", "({}, 'a')"]),
    ({"id2label": {"a": "b"}}, ["Ids of `id2label`, `label2id` and `task_id2label` are whole numbers", "('a', 'b')"]),
    ({"id2label": {0: "x"}, "label2id": {"x": None}}, ["are whole numbers", "(None, 'x')"]),
    ({"task_id2label": {"semseg": {"a": "b"}}}, ["are whole numbers", "('a', 'b')"]),
    ({"offset_strides": [8, 4, 2]}, ["`offset_strides`", "4", "[8, 4, 2]"]),
    ({"decoder_num_attention_heads": [8]}, ["`decoder_num_attention_heads`", "4", "[8]"]),
    ({"sr_ratios": [1, 2, 4, 8, 16]}, ["`sr_ratios`", "4", "[1, 2, 4, 8, 16]"]),
    ({"reassemble_factors": [4, 2]}, ["`reassemble_factors`", "4", "[4, 2]"]),
    ({"num_intra_task_stages": 0}, ["`num_intra_task_stages`", "1 to 4", "got 0"]),
    ({"num_intra_task_stages": 5}, ["`num_intra_task_stages`", "1 to 4", "got 5"]),
    ({"inter_task_stages": -1}, ["`inter_task_stages`", "0 to 4", "got -1"]),
    ({"inter_task_stages": 5}, ["`inter_task_stages`", "0 to 4", "got 5"]),
    ({"hidden_size": 500}, ["divide by their attention heads", "500", "8"]),
    ({"decoder_num_attention_heads": [8, 4, 2, 3]}, ["divide by their attention heads", "(8, 8, 4, 2, 3)"]),
    ({"num_attention_heads": 0}, ["heads", "0"]),
    ({"bases_momentum": 1.5}, ["`bases_momentum`", "0 to 1", "1.5"]),
    ({"bases_momentum": -0.1}, ["`bases_momentum`", "0 to 1", "-0.1"]),
    ({"num_bases": 0}, ["`num_bases`", "0"]),
    ({"num_em_iterations": -1}, ["`num_em_iterations`", "-1"]),
    ({"em_temperature": 0}, ["`em_temperature`", "0"]),
    ({"hidden_size": "512"}, ["hidden_size", "512"]),
    (
        {"backbone_config": {"model_name": "test_vit", "out_indices": [0, 1]}},
        ["`out_indices`", "from 1", "[0, 1]"],
    ),
    ({"backbone_config": {"model_type": "no_such_model"}}, ["no_such_model"]),
    ({"backbone_config": {"model_type": "vit"}}, ["`backbone_config`", "'vit'", "timm"]),
    ({"backbone_config": {"model_type": "swin", "out_indices": [2, 3, 4]}}, ["4 stages", "gives 3", "[2, 3, 4]"]),
    ({"backbone_config": {"model_type": "swin", "out_indices": [1, 2, 3, 9]}}, ["out_indices", "[1, 2, 3, 9]"]),
]


@pytest.mark.parametrize(("values", "expected"), CONTRADICTIONS, ids=[str(values) for values, _ in CONTRADICTIONS])
def test_contradictions_are_named(values, expected):
    with pytest.raises((ValueError, StrictDataclassError)) as error:
        SEMConfig(**values)
    for part in expected:
        assert part in str(error.value)


def test_other_tasks_for_a_saved_model(tmp_path):
    tiny_config(task_num_labels={"semseg": 2, "depth": 1}, task_id2label={"semseg": {0: "a", 1: "b"}}).save_pretrained(
        tmp_path
    )
    config = SEMConfig.from_pretrained(tmp_path, task_num_labels={"saliency": 2, "depth": 1, "semseg": 3}, num_bases=7)
    assert config.tasks == ["saliency", "depth", "semseg"]
    assert config.task_loss_weights == {"saliency": 5.0, "depth": 1.0, "semseg": 1.0}
    assert (config.task_id2label, config.num_bases) == ({}, 7)
    with pytest.raises(ValueError, match="Unknown task 'semsg'"):
        SEMConfig.from_pretrained(tmp_path, task_num_labels={"semsg": 2})


@pytest.mark.parametrize(
    "name",
    ["attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"],
)
def test_only_the_caller_chooses_an_implementation_that_may_load_code(tmp_path, name):
    config, kernel = tiny_config(), "kernels-community/flash-attn2"
    path = tmp_path / "config.json"
    for value in (kernel, {"": kernel}, {"backbone_config": kernel}):
        path.write_text(json.dumps({**config.to_dict(), name: value}))
        for read in (SEMConfig.from_pretrained, SEMConfig.from_json_file, AutoConfig.from_pretrained):
            with pytest.raises(ValueError, match=rf"`{name}` of a file.*{kernel}"):
                read(path)
        with pytest.raises(ValueError, match=rf"`{name}` of a file.*{kernel}"):
            SEMTimmBackboneConfig.from_dict({name: value})
    config.save_pretrained(tmp_path)
    chosen = SEMConfig.from_pretrained(tmp_path, attn_implementation="flash_attention_2")
    assert chosen._attn_implementation == "flash_attention_2"
    path.write_text(json.dumps({**config.to_dict(), "_attn_implementation": "eager"}))
    assert SEMConfig.from_pretrained(path)._attn_implementation == "eager"


@pytest.mark.parametrize(
    "values",
    [
        {"attribute_map": {"zzz": "_attn_implementation_internal"}, "zzz": "kernels-community/flash-attn2"},
        {"attribute_map": {"_attn_implementation_internal": "zzz"}, "zzz": "kernels-community/flash-attn2"},
        {"__dict__": {"_attn_implementation_internal": "kernels-community/flash-attn2"}},
        {"sub_configs": {}},
        {"_auto_class": "AutoConfig"},
        {"to_dict": 5},
    ],
    ids=["map to", "map from", "dict", "parts", "private", "method"],
)
def test_a_file_sets_fields_and_nothing_else_of_a_configuration(values):
    dinov2 = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    for encoder in (TINY_BACKBONE, {**dinov2, "out_indices": [1, 2, 3, 4]}):
        saved = tiny_config(backbone_config=encoder).to_dict()
        for changed in ({**values, **saved}, {**saved, "backbone_config": {**values, **saved["backbone_config"]}}):
            with pytest.raises(
                ValueError, match=rf"A configuration sets fields; \['{next(iter(values))}'\] are no fields"
            ):
                SEMConfig.from_dict(changed)


@pytest.mark.parametrize(
    "encoder",
    [
        {"model_type": "maskformer", "backbone": "owner/name", "use_pretrained_backbone": True},
        {"model_type": "dpt", "backbone": "owner/name", "use_pretrained_backbone": True},
        {"model_type": "vitpose", "backbone": "owner/name", "use_pretrained_backbone": True},
        {"model_type": "detr", "backbone": "resnet50", "backbone_kwargs": {"checkpoint_path": "extra.pth"}},
        {"model_type": "timm_wrapper", "model_args": {"pretrained": True, "checkpoint_path": "extra.pth"}},
    ],
    ids=lambda encoder: encoder["model_type"],
)
def test_an_encoder_that_is_no_backbone_is_not_even_built(encoder, monkeypatch):
    """Configurations of whole models ask the Hub for the encoders that they name."""
    monkeypatch.setattr(CONFIG_MAPPING[encoder["model_type"]], "__init__", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(ValueError, match="`backbone_config` must be that of a timm encoder or of a backbone"):
        SEMConfig(backbone_config=encoder)


def test_names_of_files_in_the_configuration_of_a_transformers_encoder_have_no_effect(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("connects"))
    nested = {"model_type": "timm_backbone", "backbone": "hf-hub:a/b", "use_pretrained_backbone": True}
    encoder = {
        **{"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2},
        **{"out_indices": [1, 2, 3, 4], "backbone_config": nested, "backbone": "a/b", "use_pretrained_backbone": True},
        **{
            "_name_or_path": "extra.pth",
            "backbone_kwargs": {"checkpoint_path": "extra.pth"},
            "gguf_file": "extra.pth",
        },
        **dict.fromkeys(("attn_implementation", "_attn_implementation"), "kernels-community/flash-attn"),
        **{"auto_map": {"AutoBackbone": "a/b--code.Model"}},
    }
    model = SEMForMultiTaskDensePrediction(tiny_config(backbone_config=encoder))
    assert model.sem.backbone.config._attn_implementation == "sdpa"


def test_class_names_of_an_encoder_may_have_any_number():
    names = {str(index): f"class {index}" for index in range(70_000)}
    encoder = {"model_type": "swin", "out_indices": [1, 2, 3, 4], "id2label": names}
    encoder["label2id"] = {name: int(index) for index, name in names.items()}
    assert SEMConfig(backbone_config=encoder).backbone_config.num_labels == 70_000
