"""Configuration of SEM and of its timm encoder."""

import inspect
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from os import PathLike
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .task_kinds import CLASS_IDS, TaskKind
from .tasks import NYUD_V2_TASKS, VARIANTS, describe_widths, get_task, register_variant


STANDARD_CLASS_FIELDS = ("num_labels", "id2label", "label2id")  # of every transformers configuration
# Arguments of timm's models that describe a network. Others would load files, reach the network or run code.
MODEL_KWARGS = """
img_size patch_size window_size embed_dim embed_dims dims depth depths num_heads mlp_ratio mlp_ratios head_dim
init_values ls_init_value qkv_bias qk_norm proj_bias class_token no_embed_class reg_tokens pos_embed pre_norm final_norm
use_abs_pos_emb use_rel_pos_bias use_shared_rel_pos_bias dynamic_img_size dynamic_img_pad strict_img_size always_partition
drop_rate attn_drop_rate proj_drop_rate pos_drop_rate patch_drop_rate drop_block_rate act_layer norm_layer norm_eps
swiglu_mlp use_grn conv_mlp stem_type kernel_sizes output_stride
"""
# What a `config.json` may name; the others look for more code, so only the caller of `from_pretrained` asks for them
IMPLEMENTATIONS_OF_FILES = (None, "eager", "sdpa")
IMPLEMENTATION_FIELDS = (
    "attn_implementation",
    "experts_implementation",
    "_attn_implementation",  # transformers reads these too
    "_experts_implementation",
)
# Attributes of every configuration that are no fields. transformers would set them as well, and an `attribute_map` of a file
# would let another field pass for one that was checked.
RESERVED_NAMES = {
    name
    for name in dir(PreTrainedConfig)
    if name.startswith("_") or type(inspect.getattr_static(PreTrainedConfig, name)) is not property
} - {"model_type", *IMPLEMENTATION_FIELDS, *(field.name for field in fields(PreTrainedConfig))}
# Largest values, well beyond any network in use: without them a `config.json` of one line would fill any memory
MAX_WIDTH = 2**16
MAX_ENCODER_NUMBER = 2**13
MAX_LAYERS = 1024
MAX_STRIDE = 64
MAX_EM_ITERATIONS = 1000
# What timm and transformers raise for arguments that an encoder does not have or cannot use
BUILD_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError)


def check_base_fields(values: dict[str, Any]) -> None:
    """Checks the fields of any configuration that transformers reads without a check.

    Args:
        values (`dict[str, Any]`): The fields that are set.

    Raises:
        ValueError: If a field has a value that transformers cannot use.
    """
    for name in ("dtype", "torch_dtype"):
        value = values.get(name)
        dtype = getattr(torch, value, None) if isinstance(value, str) else value
        is_float = isinstance(dtype, torch.dtype) and dtype.is_floating_point
        if value is not None and not is_float and not isinstance(value, dict):
            raise ValueError(f"`{name}` is the name of a floating-point dtype, such as 'float32'; got {value!r}.")
    for name in ("id2label", "label2id", "quantization_config"):
        value = values.get(name)
        if isinstance(value, (bool, int, float, str, list)):
            raise ValueError(f"`{name}` is a dictionary; got {value!r}. Correct it or leave it out.")


def check_file_fields(values: dict[str, Any]) -> None:
    """Checks what a configuration file sets.

    Raises:
        ValueError: If it asks for an implementation that may be code from the Hub, names what is no field, or names the file
            of the weights, which may be a pickle.
    """
    if not isinstance(values, dict):
        raise ValueError(f"A configuration is {{field: value}}; got {type(values).__name__}.")
    for name in IMPLEMENTATION_FIELDS:
        if values.get(name) not in IMPLEMENTATIONS_OF_FILES:
            raise ValueError(
                f"`{name}` of a file is one of {list(IMPLEMENTATIONS_OF_FILES)}; got {values[name]!r}. Pass another one to "
                "from_pretrained()."
            )
    if values.get("transformers_weights") is not None:
        raise ValueError(
            f"`transformers_weights` of a file is not used; got {values['transformers_weights']!r}. Leave it out, and name the "
            "weights model.safetensors."
        )
    check_names(values)


def check_names(values: dict[str, Any]) -> None:
    """Checks that a configuration sets fields and nothing else.

    Raises:
        ValueError: If it sets one of `RESERVED_NAMES`.
    """
    reserved = sorted(RESERVED_NAMES & set(values))
    if reserved:
        raise ValueError(
            f"A configuration sets fields; {reserved} are no fields but part of its class. Leave them out."
        )


def check_numbers(name: str, value: Any, limit: int) -> None:
    """Checks that no whole number of an encoder's description, however deep inside, is larger than in any network in use.

    Raises:
        ValueError: If one is larger than `limit` or, where it counts layers, than `MAX_LAYERS`.
    """
    if isinstance(value, dict):
        for key in set(value) - {"id2label", "label2id"}:
            check_numbers(f"{name}.{key}", value[key], limit)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_numbers(name, item, limit)
    elif isinstance(value, int):
        counts_layers = re.search("depth|layers|indices|blocks", name.rpartition(".")[-1])
        limit = MAX_LAYERS if counts_layers else limit
        if abs(value) > limit:
            raise ValueError(f"Numbers of `{name}` are at most {limit}; got {value}. Use a smaller encoder.")


@strict
class SEMTimmBackboneConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Configuration of [`SEMTimmBackbone`], with everything that is needed to build the same encoder again.

    Args:
        model_name (`str`, *optional*, defaults to `"vit_large_patch16_384.augreg_in21k_ft_in1k"`):
            Name of the encoder in timm, with the tag of its pretrained weights.
        num_channels (`int`, *optional*, defaults to 3):
            Number of image channels.
        drop_path_rate (`float`, *optional*, defaults to 0.15):
            Stochastic depth rate of the encoder, as in the paper.
        model_kwargs (`dict`, *optional*):
            Further keyword arguments of `timm.create_model` that describe the network, such as `img_size` or `depths`.
        out_indices (`list[int]`, *optional*, defaults to `[6, 12, 18, 24]`):
            Stages that are returned as feature maps, counted from 1: stages of a hierarchical encoder, blocks of a plain one
            (layers 6, 12, 18 and 24 of ViT-L in the paper).
        out_features (`list[str]`, *optional*):
            The same stages by name (`"stage1"`, ...).

    Raises:
        StrictDataclassError: If a value has the wrong type or size, or an argument of timm does not describe the network.
    """

    model_type = "sem_timm_backbone"

    model_name: str = "vit_large_patch16_384.augreg_in21k_ft_in1k"
    num_channels: int = 3
    drop_path_rate: float | int = 0.15
    model_kwargs: dict | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        check_base_fields({**kwargs, **vars(self)})
        kwargs.pop("stage_names", None)  # derived below, and part of every saved configuration
        out_indices = read_out_indices(kwargs.pop("out_features", None), kwargs.pop("out_indices", None))
        self.model_kwargs = self.model_kwargs or {}
        self.stage_names = ["stem", *(f"stage{index}" for index in range(1, max(out_indices) + 1))]
        self.set_output_features_output_indices(out_features=None, out_indices=out_indices)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """Builds a configuration; see [`SEMConfig.from_dict`]."""
        check_file_fields(config_dict)
        return super().from_dict(config_dict, **kwargs)

    def validate_encoder(self):
        """Checks that the fields describe a network and nothing else."""
        if not 1 <= self.num_channels <= MAX_LAYERS:
            raise ValueError(f"`num_channels` is 1 to {MAX_LAYERS}; got {self.num_channels}.")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"`drop_path_rate` is at least 0 and below 1; got {self.drop_path_rate}.")
        unknown = sorted(set(self.model_kwargs) - set(MODEL_KWARGS.split()), key=str)
        if unknown:
            raise ValueError(
                f"`model_kwargs` are arguments of timm that describe the network, {' '.join(MODEL_KWARGS.split())}; got {unknown}. "
                "Weights are loaded by from_pretrained_backbone() or `pretrained_backbone`."
            )
        check_numbers("model_kwargs", self.model_kwargs, MAX_ENCODER_NUMBER)


def read_out_indices(out_features: list[str] | None, out_indices: list[int] | None) -> list[int]:
    """Returns the stages of a timm encoder that are feature maps, counted from 1.

    Raises:
        ValueError: If they are not whole numbers from 1 to `MAX_LAYERS`, or no names of stages.
    """
    if out_features is not None:
        try:
            return read_out_indices(None, [int(name.removeprefix("stage")) for name in out_features])
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"`out_features` are names of stages, ['stage1', ...]; got {out_features!r}.") from error
    indices = [6, 12, 18, 24] if out_indices is None else out_indices
    is_list = isinstance(indices, (list, tuple)) and len(indices) > 0
    if not is_list or not all(type(index) is int and 1 <= index <= MAX_LAYERS for index in indices):
        raise ValueError(f"`out_indices` count the stages of a timm encoder from 1 to {MAX_LAYERS}; got {indices!r}.")
    return list(indices)


@strict
class SEMConfig(PreTrainedConfig):
    r"""Configuration of [`SEMModel`] and [`SEMForMultiTaskDensePrediction`]. The defaults are the paper's NYUD-v2 ViT-L.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of a timm encoder or of a backbone of transformers. `None` is the timm ViT-L/16 of the paper.
        reassemble_factors (`list[int | float]`, *optional*):
            Factors that resize the encoder stages to strides 4, 8, 16 and 32. `None` derives them from the backbone:
            `[4, 2, 1, 0.5]` if all its maps share one stride, no resizing if they form a pyramid.
        task_num_labels (`dict[str, int]`, *optional*):
            Number of output channels of each task, in order. `None` is NYUD-v2: 40 classes, depth, normals, boundaries.
        task_variants (`dict[str, str]`, *optional*):
            Tasks that differ from one of the task table in their classes only, `{name: name in the table}`.
        task_id2label (`dict[str, dict[int, str]]`, *optional*):
            Class names of the tasks that have classes.
        num_labels, id2label, label2id (*optional*):
            As in every transformers configuration: number and names of the classes of `segmentation_task`, the first task of
            class ids. They set `task_num_labels` and `task_id2label`, and are filled in from there.
        first_task (`str`, *optional*):
            Task to put first, so that the Auto classes and pipelines for one task choose it among tasks of its kind.
        task_loss_weights (`dict[str, float]`, *optional*):
            Weight of each task in the loss. Missing entries are taken from the task table.
        task_loss_weighting (`str`, *optional*, defaults to `"fixed"`):
            `"fixed"` keeps `task_loss_weights`. `"uncertainty"` starts there and learns a log variance s of each task
            (Kendall et al., CVPR 2018): the loss is the sum of exp(-s) x weight x loss + s / 2, where the loss of a task includes its
            auxiliary loss, over the tasks with a weight above 0.
        task_loss_kwargs (`dict[str, dict]`, *optional*):
            Keyword arguments of the loss of each task.
        hidden_size (`int`, *optional*, defaults to 512):
            Width C of the intra-task module.
        offset_strides (`list[int]`, *optional*, defaults to `[8, 4, 2, 1]`):
            r_s, from the shallow to the deep stage: one deformed point per `r_s x r_s` pixels of the stage.
        num_attention_heads (`int`, *optional*, defaults to 8):
            Number of heads of the intra-task attention.
        mlp_ratio (`float`, *optional*, defaults to 4.0):
            Ratio of the hidden width of every MLP to its input width.
        decoder_hidden_sizes (`list[int]`, *optional*, defaults to `[512, 256, 128, 64]`):
            Widths of the decoder stages, from deep to shallow.
        decoder_num_attention_heads (`list[int]`, *optional*, defaults to `[8, 4, 2, 1]`):
            Number of heads of the decoder stages.
        sr_ratios (`list[int]`, *optional*, defaults to `[1, 2, 4, 8]`):
            Spatial reduction of keys and values in the decoder stages.
        use_decoder (`bool`, *optional*, defaults to `True`):
            Whether to use the decoder. `False` is the MTL model of the paper (STL with one task).
        use_intra_task (`bool`, *optional*, defaults to `True`):
            Whether to use the intra-task modules. `False` replaces each by a 3x3 convolution block.
        num_intra_task_stages (`int`, *optional*, defaults to 4):
            Number of encoder stages, from the deepest, that the intra-task module reads (ES in Fig. 6).
        inter_task_stages (`int`, *optional*, defaults to 4):
            Number of decoder stages, from the deepest, with an inter-task module (DS in Fig. 6).
        num_bases (`int`, *optional*, defaults to 64):
            K, the number of bases.
        num_em_iterations (`int`, *optional*, defaults to 5):
            R, the number of EM iterations.
        em_temperature (`float`, *optional*, defaults to 1.0):
            Temperature tau of Eq. 8.
        bases_momentum (`float`, *optional*, defaults to 0.9):
            Momentum alpha of the moving average of the initial bases.
        use_auxiliary_heads (`bool`, *optional*, defaults to `True`):
            Whether to supervise the intra-task features with auxiliary heads.
        auxiliary_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the auxiliary losses.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the weight initialization.

    Raises:
        ValueError: If a task is unknown.
        StrictDataclassError: If a value has the wrong type, or two values contradict each other.

    ```python
    >>> from transformers_sem import SEMConfig
    >>> SEMConfig(num_em_iterations=3).num_em_iterations
    3

    ```
    """

    model_type = "sem"
    keys_to_ignore_at_inference = ["losses", "auxiliary_logits", "hidden_states", "attentions", "sem_states"]
    sub_configs = {"backbone_config": AutoConfig}

    backbone_config: dict | PreTrainedConfig | None = None
    reassemble_factors: list[int | float] | None = None
    task_num_labels: dict[str, int] | None = None
    task_variants: dict[str, str] | None = None
    task_id2label: dict | None = None
    task_loss_weights: dict[str, float | int] | None = None
    task_loss_weighting: Literal["fixed", "uncertainty"] = "fixed"
    task_loss_kwargs: dict[str, dict] | None = None
    hidden_size: int = 512
    offset_strides: list[int] | tuple[int, ...] = (8, 4, 2, 1)
    num_attention_heads: int = 8
    mlp_ratio: float | int = 4.0
    decoder_hidden_sizes: list[int] | tuple[int, ...] = (512, 256, 128, 64)
    decoder_num_attention_heads: list[int] | tuple[int, ...] = (8, 4, 2, 1)
    sr_ratios: list[int] | tuple[int, ...] = (1, 2, 4, 8)
    use_decoder: bool = True
    use_intra_task: bool = True
    num_intra_task_stages: int = 4
    inter_task_stages: int = 4
    num_bases: int = 64
    num_em_iterations: int = 5
    em_temperature: float | int = 1.0
    bases_momentum: float | int = 0.9
    use_auxiliary_heads: bool = True
    auxiliary_loss_weight: float | int = 1.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        check_base_fields({**kwargs, **vars(self)})
        self.backbone_config = _build_backbone_config(self.backbone_config)
        for field in ("offset_strides", "decoder_hidden_sizes", "decoder_num_attention_heads", "sr_ratios"):
            setattr(self, field, list(getattr(self, field)))  # JSON has lists, no tuples
        has_widths = self.task_num_labels is not None
        if not has_widths:
            self.task_num_labels = {task.name: task.num_labels for task in NYUD_V2_TASKS}
        self._restore_task_order(kwargs.pop("tasks", None))
        self._move_to_front(kwargs.pop("first_task", None))
        self._fill_in_from_task_table()
        self._read_standard_classes(kwargs.pop("num_labels", None), has_widths)
        self._write_standard_classes()
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """Builds a configuration. Fields among `kwargs` replace those of the dictionary before the values are checked.

        If `task_num_labels` is replaced, tasks of another width take their other entries from the task table. A dictionary
        `backbone_config` that names no other encoder replaces single fields of the encoder.
        """
        check_file_fields(config_dict)
        config_dict = _without_return_dict(config_dict)
        known = {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}
        changes = {name: kwargs.pop(name) for name in sorted({*known, "first_task"} & set(kwargs))}
        classes = {name: kwargs.pop(name, None) for name in STANDARD_CLASS_FIELDS}
        if isinstance(changes.get("backbone_config"), dict):
            changes["backbone_config"] = _changed_encoder(
                config_dict.get("backbone_config"), changes["backbone_config"]
            )
        if any(value is not None for value in classes.values()):
            changes |= cls.from_dict(config_dict, **changes)._with_classes(**classes)
        if {"task_num_labels", "task_id2label", "first_task"} & set(changes):
            config_dict = {name: value for name, value in config_dict.items() if name not in STANDARD_CLASS_FIELDS}
        if "task_num_labels" in changes:
            config_dict.pop("tasks", None)
            widths, new_widths = config_dict.get("task_num_labels") or {}, changes["task_num_labels"] or {}
            for name in ("task_id2label", "task_loss_weights", "task_loss_kwargs"):
                entries = config_dict.get(name) or {}
                config_dict[name] = {t: entries[t] for t in entries if widths.get(t) == new_widths.get(t)}
        return super().from_dict({**config_dict, **changes}, **kwargs)

    @classmethod
    def from_json_file(cls, json_file: str | PathLike):
        """Builds a configuration from a JSON file; see [`SEMConfig.from_dict`]."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def _restore_task_order(self, tasks: list[str] | None) -> None:
        """Restores the order of the tasks from the list `tasks`, because transformers sorts the keys of its JSON files."""
        if tasks is None:
            return
        if not isinstance(tasks, list) or sorted(tasks, key=str) != sorted(self.task_num_labels):
            raise ValueError(
                f"`tasks` orders the tasks of `task_num_labels`, {list(self.task_num_labels)}; got {tasks}."
            )
        self.task_num_labels = {task: self.task_num_labels[task] for task in tasks}

    def _move_to_front(self, task: str | None) -> None:
        if task is None:
            return
        if not isinstance(task, str) or task not in self.task_num_labels:
            raise ValueError(f"`first_task` is one of the tasks {list(self.task_num_labels)}; got {task!r}.")
        self.task_num_labels = {task: self.task_num_labels[task], **self.task_num_labels}

    def _read_standard_classes(self, num_labels: int | None, has_widths: bool) -> None:
        """Gives `num_labels`, `id2label` and `label2id` to `segmentation_task`. Placeholder names are not read."""
        if self.id2label is not None and _is_placeholder(self.id2label):
            self.id2label = self.label2id = None
        if num_labels is None and not self.id2label and not self.label2id:
            return
        new = self._with_classes(num_labels, self.id2label, self.label2id)
        names = self.task_id2label.get(self.segmentation_task)
        new_names = new["task_id2label"].get(self.segmentation_task)
        widths_differ = has_widths and new["task_num_labels"] != self.task_num_labels
        if widths_differ or (names is not None and new_names not in (None, names)):
            raise ValueError(
                f"`num_labels`, `id2label` and `label2id` describe the classes of {self.segmentation_task!r}, which "
                "`task_num_labels` and `task_id2label` describe otherwise. Give only the latter."
            )
        self.task_num_labels = new["task_num_labels"]
        self.task_id2label = {**self.task_id2label, **new["task_id2label"]}

    def _with_classes(self, num_labels: int | None, id2label: dict | None, label2id: dict | None) -> dict[str, dict]:
        """Returns `task_num_labels` and `task_id2label` with other classes of `segmentation_task`."""
        task = self.segmentation_task
        if task is None:
            raise ValueError(
                f"`num_labels`, `id2label` and `label2id` describe a task of class ids; this model has the tasks "
                f"{self.tasks}. Set `task_num_labels` and `task_id2label` instead."
            )
        by_name = _read_names((id, name) for name, id in (label2id or {}).items())
        names = _read_names((id2label or {}).items()) or by_name
        num_labels = len(names) if num_labels is None else num_labels
        ids = {name: id for id, name in names.items()}
        if (names and len(names) != num_labels) or any(
            ids.get(name) != int(id) for name, id in (label2id or {}).items()
        ):
            raise ValueError(
                f"`num_labels`, `id2label` and `label2id` describe the same classes; got {num_labels}, {id2label} and "
                f"{label2id}. Give one of them."
            )
        others = {other: self.task_id2label[other] for other in self.task_id2label if other != task}
        return {
            "task_num_labels": {**self.task_num_labels, task: num_labels},
            "task_id2label": {**others, task: names} if names else others,
        }

    def _write_standard_classes(self) -> None:
        """Fills in `id2label` and `label2id`, in which transformers' pipelines look up names."""
        task = self.segmentation_task
        if task is not None and self.task_num_labels[task] in get_task(task).widths:  # others are refused later
            names = self.task_id2label.get(task) or _placeholders(self.task_num_labels[task])
            self.id2label, self.label2id = dict(names), {name: id for id, name in names.items()}

    def _fill_in_from_task_table(self) -> None:
        for name, task in (self.task_variants or {}).items():
            if name in self.task_num_labels:
                register_variant(name, task)
        specs = {name: get_task(name) for name in self.task_num_labels}
        self.task_variants = {name: VARIANTS[name] for name in specs if name in VARIANTS} or None
        for field in ("task_id2label", "task_loss_weights", "task_loss_kwargs"):
            stray = set(getattr(self, field) or {}) - set(specs)
            if stray:
                raise ValueError(f"`{field}` names {sorted(stray)}, which `task_num_labels` lacks: {list(specs)}.")
        weights, names = self.task_loss_weights or {}, self.task_id2label or {}
        self.task_loss_weights = {name: weights.get(name, spec.loss_weight) for name, spec in specs.items()}
        self.task_loss_kwargs = self.task_loss_kwargs or {}
        # JSON turns the ids into strings
        for task, task_names in names.items():
            if not isinstance(task_names, dict) or not all(isinstance(name, str) for name in task_names.values()):
                raise ValueError(f"`task_id2label[{task!r}]` is {{id: name}}; got {task_names!r}.")
        self.task_id2label = {task: _read_names(names[task].items()) for task in names}

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in order."""
        return list(self.task_num_labels)

    @property
    def segmentation_task(self) -> str | None:
        """The first task of class ids, which `id2label` names the classes of; `None` if there is none."""
        return self.first_task_of(CLASS_IDS)

    def class_names(self, task: str) -> list[str]:
        """Returns the class names of a task in the order of the ids; an empty list unless every class has one."""
        names = self.task_id2label.get(task, {})
        return [names[id] for id in sorted(names)] if len(names) == self.task_num_labels.get(task) else []

    def rename_classes(self, task: str, names: Sequence[str]) -> None:
        """Sets the class names of a task, from id 0."""
        self.task_id2label = {**self.task_id2label, task: dict(enumerate(names))}
        self._write_standard_classes()

    def first_task_of(self, kind: TaskKind) -> str | None:
        """Returns the first task of a kind, or `None`."""
        return next((task for task in self.tasks if get_task(task).kind is kind), None)

    def to_dict(self) -> dict:
        """Returns the configuration as a dictionary, with the order of the tasks in the list `tasks`."""
        return {**super().to_dict(), "tasks": self.tasks}

    def validate_tasks(self):
        """Checks that every task has a head of a width that it can use, and as many names as classes."""
        if not self.task_num_labels:
            raise ValueError("`task_num_labels` is empty; name at least one task.")
        for task, num_labels in self.task_num_labels.items():
            spec = get_task(task)
            if num_labels not in spec.widths:
                raise ValueError(
                    f"A head for {spec.kind.values} has {describe_widths(spec.widths)}; `task_num_labels[{task!r}]` is "
                    f"{num_labels}. Set it to that, or register a task of your own."
                )
            names = self.task_id2label.get(task)
            if names is not None and sorted(names) != list(range(num_labels)):
                raise ValueError(
                    f"`task_id2label[{task!r}]` must name the ids 0 to {num_labels - 1}, one per label of the head; got "
                    f"{len(names)} names, {sorted(names)}."
                )
        self._check_standard_classes()

    def _check_standard_classes(self) -> None:
        """Checks that `id2label` and `num_labels` have not been set to other classes than those of the head."""
        task = self.segmentation_task
        if task is None:
            return
        width, names = self.task_num_labels[task], self.task_id2label.get(task) or _placeholders(self.num_labels)
        if self.num_labels != width or self.id2label != names:
            raise ValueError(
                f"`id2label` and `num_labels` are those of {task!r}, {width} classes; got {self.num_labels} other names. Set "
                "`task_num_labels` and `task_id2label`, or pass `id2label` to from_pretrained()."
            )

    def _check_numbers(self) -> None:
        for field in ("hidden_size", "num_attention_heads", "mlp_ratio", "num_bases", "em_temperature"):
            if not 0 < getattr(self, field) <= MAX_WIDTH:
                raise ValueError(f"`{field}` must be above 0 and at most {MAX_WIDTH}; got {getattr(self, field)}.")
        for field in ("decoder_hidden_sizes", "decoder_num_attention_heads", "offset_strides", "sr_ratios"):
            values, limit = getattr(self, field), MAX_WIDTH if field.startswith("decoder") else MAX_STRIDE
            if not values or not 1 <= min(values) <= max(values) <= limit:
                raise ValueError(f"Every entry of `{field}` must be above 0 and at most {limit}; got {values}.")
        if not 0 <= self.num_em_iterations <= MAX_EM_ITERATIONS:
            raise ValueError(f"`num_em_iterations` is 0 to {MAX_EM_ITERATIONS}; got {self.num_em_iterations}.")
        weights = {"auxiliary_loss_weight": self.auxiliary_loss_weight, "initializer_range": self.initializer_range}
        weights |= {f"task_loss_weights[{task!r}]": weight for task, weight in self.task_loss_weights.items()}
        for field, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"`{field}` must not be below 0 and must be finite; got {weight}.")

    def validate_losses(self):
        """Checks that the losses have the given arguments."""
        for task, arguments in self.task_loss_kwargs.items():
            try:
                inspect.signature(get_task(task).loss).bind(None, None, **arguments)
            except TypeError as error:
                raise ValueError(f"`task_loss_kwargs[{task!r}]` are arguments of its loss: {error}.") from error

    def validate_architecture(self):
        """Checks that lists have one entry per stage and that widths are multiples of the number of heads."""
        self._check_numbers()
        num_stages = len(self.decoder_hidden_sizes)
        for field in ("offset_strides", "decoder_num_attention_heads", "sr_ratios"):
            if len(getattr(self, field)) != num_stages:
                raise ValueError(
                    f"`{field}` needs one entry per decoder stage, {num_stages} as `decoder_hidden_sizes`; got "
                    f"{getattr(self, field)}."
                )
        if self.reassemble_factors is not None and len(self.reassemble_factors) != num_stages:
            raise ValueError(f"`reassemble_factors` needs {num_stages} entries; got {self.reassemble_factors}.")
        factors = self.reassemble_factors or []
        if any(not 1 / MAX_STRIDE <= factor <= MAX_STRIDE or max(factor, 1 / factor) % 1 for factor in factors):
            raise ValueError(
                f"`reassemble_factors` are whole numbers up to {MAX_STRIDE} or one over a whole number; got {factors}."
            )
        _check_is_backbone(type(self.backbone_config))
        out_indices = list(self.backbone_config.out_indices)
        if self.use_decoder and len(out_indices) != num_stages:
            raise ValueError(
                f"The decoder has {num_stages} stages (`decoder_hidden_sizes`), so the backbone must give as many feature "
                f"maps; it gives {len(out_indices)}. Set its `out_indices`, now {out_indices}."
            )
        if not 1 <= self.num_intra_task_stages <= num_stages:
            raise ValueError(f"`num_intra_task_stages` is 1 to {num_stages}; got {self.num_intra_task_stages}.")
        if not 0 <= self.inter_task_stages <= num_stages:
            raise ValueError(f"`inter_task_stages` is 0 to {num_stages}; got {self.inter_task_stages}.")
        widths = (self.hidden_size, *self.decoder_hidden_sizes)
        heads = (self.num_attention_heads, *self.decoder_num_attention_heads)
        if any(width % num_heads for width, num_heads in zip(widths, heads, strict=True)):
            raise ValueError(f"Widths must divide by their attention heads; got widths {widths} and heads {heads}.")
        if not 0 <= self.bases_momentum <= 1:
            raise ValueError(f"`bases_momentum` is 0 to 1; got {self.bases_momentum}.")


def _placeholders(num_labels: int) -> dict[int, str]:
    """The names of transformers for classes without names."""
    return {id: f"LABEL_{id}" for id in range(num_labels)}


def _read_names(pairs: Iterable[tuple[Any, str]]) -> dict[int, str]:
    """Returns `{id: name}`; JSON turns the ids into strings."""
    pairs = list(pairs)
    try:
        return {int(id): name for id, name in pairs}
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"Ids of `id2label`, `label2id` and `task_id2label` are whole numbers; got {pairs[:5]}."
        ) from error


def _is_placeholder(id2label: dict) -> bool:
    return _read_names(id2label.items()) == _placeholders(len(id2label))


def _build_backbone_config(backbone_config: dict | PreTrainedConfig | None) -> PreTrainedConfig:
    """Builds the configuration from a dictionary; without a `model_type` it is that of a timm encoder."""
    if isinstance(backbone_config, PreTrainedConfig):
        return backbone_config
    backbone_config = _without_return_dict(backbone_config or {})
    model_type = backbone_config.get("model_type", SEMTimmBackboneConfig.model_type)
    if model_type == SEMTimmBackboneConfig.model_type:
        return SEMTimmBackboneConfig.from_dict(backbone_config)
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"`backbone_config.model_type` is the name of a backbone of transformers, such as 'dinov2'; got {model_type!r}. "
            "Correct it, or register the configuration with AutoConfig."
        )
    # Before it is built: configurations of whole models look for their encoders on the Hub
    _check_is_backbone(CONFIG_MAPPING[model_type])
    check_numbers("backbone_config", backbone_config, MAX_WIDTH)
    check_base_fields(backbone_config)
    check_names(backbone_config)
    try:
        return AutoConfig.for_model(**backbone_config)
    except BUILD_ERRORS as error:
        raise ValueError(
            f"`backbone_config` cannot be that of a {model_type} encoder: {error}. Correct the fields that this names."
        ) from error


def _changed_encoder(encoder: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the dictionary of an encoder with other fields, or of another encoder, which `changes` name."""
    encoder = encoder.to_dict() if isinstance(encoder, PreTrainedConfig) else encoder
    is_same = isinstance(encoder, dict) and all(
        changes.get(name, encoder.get(name)) == encoder.get(name) for name in ("model_type", "model_name")
    )
    if not is_same:
        return changes
    maps = {"out_indices", "out_features"}  # two names of one choice
    replaced = maps if maps & {*changes} else set()
    return {name: value for name, value in encoder.items() if name not in replaced} | changes


def _without_return_dict(config_dict: dict[str, Any]) -> dict[str, Any]:
    """Leaves out the field that turns outputs into tuples: only the caller of a model or of `from_pretrained` asks for them."""
    return {name: value for name, value in config_dict.items() if name != "return_dict"}


def _check_is_backbone(config_class: type[PreTrainedConfig]) -> None:
    """Checks that the model of a configuration returns feature maps and loads no files."""
    # The model names of timm_backbone may be addresses
    if not issubclass(config_class, BackboneConfigMixin) or config_class.model_type == "timm_backbone":
        raise ValueError(
            f"`backbone_config` must be that of a timm encoder or of a backbone of transformers; got "
            f"{config_class.model_type!r}, which returns no feature maps or may load files. Use the encoder of timm instead: "
            "{'model_name': ..., 'out_indices': ...}."
        )


__all__ = ["SEMConfig", "SEMTimmBackboneConfig"]
