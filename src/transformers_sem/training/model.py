"""The model of a training run, and its image processor."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..backbone import build_backbone, load_backbone_weights
from ..configuration_sem import SEMConfig
from ..data.benchmarks import Benchmark, same_classes
from ..evaluation.constant_predictor import ConstantPredictor
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction
from ..tasks import get_task
from ..utils.loading import explain_failure, load_config, load_image_processor
from .config import IF_AVAILABLE, LOSS_FIELDS, TrainingConfig, label_fields, model_config, model_fields, network_size


logger = logging.getLogger(__name__)


def build_model(
    config: TrainingConfig, benchmark: Benchmark, constant: ConstantPredictor | None = None
) -> SEMForMultiTaskDensePrediction:
    """Builds the model of a run: tasks and class names of the dataset, everything else from the settings.

    New heads start at the `constant` predictor, if it is given.
    """
    labels = label_fields(config, benchmark)
    if config.pretrained_model:
        model, new_tasks = load_trained_model(config, labels)
    else:
        model = build_new_model(config, model_config(config, benchmark))
        new_tasks = model.config.tasks
    if constant is not None:
        init_heads(model, constant, new_tasks)
    if config.gradient_checkpointing:
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable()
        else:  # its name in older releases of transformers
            model.gradient_checkpointing_enable()
    if config.freeze_backbone:
        model.sem.backbone.requires_grad_(False)
    # The momentum of the bases is per optimizer step, whatever the number of micro-batches.
    model.sem.bases_momentum = model.config.bases_momentum ** (1 / config.gradient_accumulation_steps)
    return model


def load_trained_model(config: TrainingConfig, labels: dict) -> tuple[SEMForMultiTaskDensePrediction, list[str]]:
    """Loads `pretrained_model`, for tasks and classes that may be others; returns it with the tasks whose heads are new."""
    try:
        trained = load_config(SEMConfig, config.pretrained_model)
        # Classes in another order are loaded as they were trained, and then brought to the order of the data
        new_names = {task: list(names.values()) for task, names in labels["task_id2label"].items()}
        reordered = [task for task in new_names if same_classes(trained.class_names(task), new_names[task])]
        names = {**labels["task_id2label"], **{task: trained.task_id2label[task] for task in reordered}}
        fields = pretrained_fields(config, trained, {**labels, "task_id2label": names})
        new = SEMConfig.from_pretrained(config.pretrained_model, **fields)
        with explain_failure(f"The weights in {config.pretrained_model} cannot be read"):
            model, info = SEMForMultiTaskDensePrediction.from_pretrained(
                config.pretrained_model,
                config=new,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype=torch.float32,
                use_safetensors=True,
            )
    except OSError as error:
        raise OSError(
            f"`pretrained_model` is the folder or Hub name of a trained SEM; got {config.pretrained_model!r}: {error}"
        ) from error
    absent = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    lost = find_lost_tensors(trained, model, absent)
    if lost:
        raise ValueError(
            f"The weights of `pretrained_model` {config.pretrained_model!r} do not match its config.json: {len(lost)} tensors "
            f"are missing or have another shape, such as {lost[:3]}. Train or copy them again."
        )
    new_tasks = [task for task in model.config.tasks if f"heads.{task}.classifier.bias" in absent]
    for task, class_names in new_names.items():
        trained_names = trained.class_names(task)
        if task in reordered:
            model.reorder_classes(task, class_names)
        elif trained_names and task not in new_tasks:  # as many classes, but others
            logger.warning(
                "The head of %r starts anew: its classes were %s and are %s.", task, trained_names, class_names
            )
            renew_classes(model, task)
            new_tasks.append(task)
    return model, new_tasks


def pretrained_fields(config: TrainingConfig, trained: SEMConfig, labels: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields that a training changes in the configuration of `pretrained_model`.

    Raises:
        ValueError: If it would be another encoder.
    """
    fields = {**labels, **model_fields(config, labels["task_num_labels"])}
    for name in LOSS_FIELDS:  # of tasks that the settings do not name, they stay
        kept = {task: value for task, value in getattr(trained, name).items() if task in labels["task_num_labels"]}
        fields[name] = {**kept, **(fields.get(name) or {})}
    fields["backbone_config"] = fields.get("backbone_config") or {}
    check_encoder(trained.backbone_config.to_dict(), fields["backbone_config"])
    return fields


def check_encoder(trained: dict[str, Any], changes: dict[str, Any]) -> None:
    """Checks that `pretrained_model` keeps its encoder, with which `changes` of its fields are merged.

    Raises:
        ValueError: If it would be another encoder, without weights.
    """
    for name in ("model_type", "model_name"):
        if changes.get(name, trained.get(name)) != trained.get(name):
            raise ValueError(
                f"`pretrained_model` keeps its encoder, {name} {trained.get(name)!r}; `model.backbone_config` has "
                f"{changes[name]!r}. Set model={{}} to use the model as it is, or leave out `pretrained_model`."
            )


def find_lost_tensors(trained: SEMConfig, model: SEMForMultiTaskDensePrediction, absent: set[str]) -> list[str]:
    """Returns the absent tensors that a checkpoint must have, because a model of its own configuration has them too.

    If nothing is there at all, these are all tensors: nothing would be left of the training.
    """
    shapes = {name: values.shape for name, values in model.state_dict().items()}
    if not absent or len(absent) == len(shapes):
        return sorted(absent)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        own = SEMForMultiTaskDensePrediction(trained).state_dict()
    return sorted(name for name in absent if name in own and own[name].shape == shapes[name])


@torch.no_grad()
def renew_classes(model: SEMForMultiTaskDensePrediction, task: str) -> None:
    """Draws the weights of the classes of a task again, as those of a new model."""
    for layer in model.class_layers(task):
        layer.weight.normal_(std=model.config.initializer_range)
        layer.bias.zero_()


def build_new_model(config: TrainingConfig, new_config: SEMConfig) -> SEMForMultiTaskDensePrediction:
    """Builds a model with random weights, except for the encoder's if `pretrained_backbone` is set."""
    if not config.pretrained_backbone:
        return SEMForMultiTaskDensePrediction(new_config)
    return SEMForMultiTaskDensePrediction.from_pretrained_backbone(new_config, backbone_source(config))


@torch.no_grad()
def init_heads(model: SEMForMultiTaskDensePrediction, constant: ConstantPredictor, tasks: Iterable[str]) -> None:
    """Sets the bias of the last layer of heads and auxiliary heads by the rule of the kind of each task.

    Args:
        model (`SEMForMultiTaskDensePrediction`): The model.
        constant (`ConstantPredictor`): Fitted to the training rows.
        tasks (`Iterable[str]`): Tasks whose heads are new.
    """
    for task in tasks:
        bias = get_task(task).kind.start_logits(constant.mean_label(task), model.config.task_num_labels[task])
        for layer in model.class_layers(task):
            layer.bias.copy_(bias)


def backbone_source(config: TrainingConfig) -> str | None:
    """Returns the file, folder or Hub name of the encoder's weights; `None` is that of the encoder's configuration."""
    named = isinstance(config.pretrained_backbone, str) and config.pretrained_backbone != IF_AVAILABLE
    return config.pretrained_backbone if named else None


def decide_pretrained_backbone(config: TrainingConfig, benchmark: Benchmark) -> TrainingConfig:
    """Returns the settings with `pretrained_backbone` true or false instead of `if_available`.

    It loads the weights into an encoder of its own, so that the model of the run draws the same random numbers whatever is found.
    """
    if config.pretrained_backbone != IF_AVAILABLE:
        return config
    if config.pretrained_model:
        return replace(config, pretrained_backbone=False)
    try:
        load_backbone_weights(build_backbone(model_config(config, benchmark).backbone_config), None)
    except OSError as error:
        logger.warning("The encoder starts from random weights. %s", error)
        return replace(config, pretrained_backbone=False)
    return replace(config, pretrained_backbone=True)


def build_image_processor(config: TrainingConfig, backbone_config: PreTrainedConfig) -> SEMImageProcessor:
    """Builds a processor that pads to `input_size`, as is usual in the field, and stretches to `network_size`.

    Pixels are normalized as the settings say, else as for the `pretrained_model`, else as in the encoder's pretraining.
    """
    (height, width), (rows, columns) = config.input_size, network_size(config)
    settings = {
        "pad_size": {"height": height, "width": width},
        "size": {"height": rows, "width": columns},
        "do_pad": True,
        "do_resize": config.network_size is not None,
    }
    for name in ("image_mean", "image_std"):
        if getattr(config, name) is not None:
            settings[name] = getattr(config, name)
    if config.pretrained_model:
        trained = load_image_processor(SEMImageProcessor, config.pretrained_model)
        return SEMImageProcessor.from_dict(trained.to_dict(), **settings)
    return SEMImageProcessor.for_backbone(backbone_config, backbone_source(config), **settings)
