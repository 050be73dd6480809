"""Settings of a training run, and the folder that the run writes to."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.utils import CONFIG_NAME

from ..configuration_sem import SEMConfig
from ..data.benchmarks import Benchmark
from ..data.mixture import DatasetConfig, merge_benchmarks
from ..evaluation.config import SETTINGS_NAME
from ..image_processing_sem import MAX_EDGE, is_edge
from ..tasks import TASKS
from ..utils.errors import check_keys
from ..utils.files import locked, write_text
from ..utils.loading import load_config
from ..utils.settings import apply_overrides, format_yaml, read_settings


PATHS = ("output_dir", "pretrained_model", "pretrained_backbone")  # may begin with ~
LOSS_FIELDS = ("task_loss_weights", "task_loss_kwargs")  # of `model`, by task
COUNTS = (
    "max_steps",
    "batch_size",
    "gradient_accumulation_steps",
    "max_skipped_steps",
    "log_every",
    "save_every",
    "keep_checkpoints",
    "snapshot_every",
    "num_snapshot_images",
    "num_evaluation_images",
)
IF_AVAILABLE = "if_available"
MAX_ZOOM = 10
ZOOM_TOLERANCE = 0.05  # of the logarithm: [0.75, 1.35] is symmetric enough
TRACKERS = ("tensorboard", "wandb", "trackio")
LOCK_SECONDS = 30  # data workers of a killed process hold its lock until they notice
WITHOUT_EFFECT_ON_WEIGHTS = (
    "output_dir",
    "num_workers",
    "keep_in_memory",
    "log_every",
    "save_every",
    "keep_checkpoints",
    "max_skipped_steps",
    "trackers",
    "snapshot_every",
    "num_snapshot_images",
    "num_evaluation_images",
)


@strict
@dataclass(kw_only=True)
class TrainingConfig:
    """Settings of a training run. The defaults are the recipe of the paper for NYUD-v2.

    Args:
        output_dir (`str`): Folder of everything that the run writes.
        dataset (`str`): Name of the dataset.
        data_dir (`str`, *optional*): Folder of the data, for datasets that are read from disk.
        dataset_kwargs (`dict`): Arguments of the dataset's loader.
        datasets (`list[dict]`): Several datasets to train one model on, in place of these three: the fields of a
            [`DatasetConfig`] each. Images are drawn from them in proportion to their weights.
        tasks (`list[str]`, *optional*): Tasks to train; `None` trains all tasks of the dataset or datasets.
        model (`dict`): Fields of [`SEMConfig`] besides the tasks.
        pretrained_model (`str`, *optional*): Folder or Hub name of a trained SEM to start from. Its configuration is kept
            except for the tasks and the fields in `model`. Weights that do not fit, such as heads of other classes, are
            initialized.
        pretrained_backbone (`bool` or `str`): Without `pretrained_model`, whether to start from the pretrained weights of
            the encoder. `if_available` starts from random weights where they cannot be loaded. Any other string is a file in
            timm's format, or a folder or Hub name in that of transformers.
        input_size (`list[int]`): Height and width of the training crops and of the padded evaluation images.
        network_size (`list[int]`, *optional*): Height and width to which crops and evaluation images are stretched after the
            padding; `None` does not stretch.
        image_mean (`list[float]`, *optional*): Mean of the pixels in [0, 1] that normalizes images; `None` is that of the
            encoder's pretraining.
        image_std (`list[float]`, *optional*): Their standard deviation; `None` is that of the encoder's pretraining.
        zoom (`list[float]`): Range of the random zoom, symmetric around 1 in its logarithm. A view that is smaller than
            `input_size` is padded.
        init_heads_from_data (`bool`): Whether the heads of a new model start at the constant predictor of the training rows.
        max_steps (`int`): Number of optimizer steps.
        batch_size (`int`): Images per optimizer step, over all ranks and micro-batches.
        gradient_accumulation_steps (`int`): Micro-batches per optimizer step. Each micro-batch averages over its own valid pixels,
            so a task that only some of them have labels of counts for less than in one batch.
        learning_rate (`float`): Initial learning rate of Adam; it decays polynomially to 0.
        decay_power (`float`): Power of the polynomial decay.
        layer_decay (`float`): Factor of the learning rate from one encoder layer to the layer below it (BEiT).
        freeze_backbone (`bool`): Whether to keep the encoder unchanged and in evaluation mode.
        weight_decay (`float`): Weight decay of Adam.
        max_grad_norm (`float`): Norm to which gradients are clipped.
        max_skipped_steps (`int`): Maximum number of consecutive skipped steps, those with a loss or gradient that is not
            finite.
        weight_average_decay (`float`, *optional*): Decay of an exponential moving average of the weights, which is saved
            and evaluated in place of the weights. It is smaller in the first steps, (1 + n) / (10 + n) after n.
        mixed_precision (`str`): `no`, `bf16` or `fp16`.
        gradient_checkpointing (`bool`): Whether to recompute activations in the backward pass, which saves memory.
        compile (`bool`): Whether to `torch.compile` the model.
        deterministic (`bool`): Whether to use deterministic operations only. On CPUs training always is deterministic.
        seed (`int`): Seed of the weights, the data order and the augmentation.
        num_workers (`int`): Processes per rank that load data.
        keep_in_memory (`bool`): Whether to decode the training images and maps once and keep them in main memory: 8 MB for a
            frame of 425 x 560, on each rank.
        trackers (`list[str]`): Trackers besides `history.jsonl`: `tensorboard`, `wandb`, `trackio`.
        log_every (`int`): Steps between two log entries.
        save_every (`int`): Steps between two checkpoints.
        keep_checkpoints (`int`): Number of checkpoints to keep.
        snapshot_every (`int`, *optional*): Steps between two snapshots, which score and draw a few validation images;
            `None` takes ten in the run.
        num_snapshot_images (`int`): Number of validation images that a snapshot scores; the first four are drawn.
        num_evaluation_images (`int`, *optional*): Number of validation images of the final evaluation; `None` is all.

    Raises:
        StrictDataclassError: If a value has the wrong type or is out of range, or two values contradict each other.
    """

    output_dir: str = "runs/sem"
    dataset: str = "nyud_v2"
    data_dir: str | None = None
    dataset_kwargs: dict = field(default_factory=dict)
    datasets: list[dict] = field(default_factory=list)
    tasks: list[str] | None = None
    model: dict = field(default_factory=dict)
    pretrained_model: str | None = None
    pretrained_backbone: bool | str = True
    input_size: list[int] = field(default_factory=lambda: [448, 576])
    network_size: list[int] | None = None
    image_mean: list[float | int] | None = None
    image_std: list[float | int] | None = None
    zoom: list[float | int] = field(default_factory=lambda: [0.5, 2.0])
    init_heads_from_data: bool = True
    max_steps: int = 40_000
    batch_size: int = 4
    gradient_accumulation_steps: int = 1
    learning_rate: float | int = 1e-5
    decay_power: float | int = 0.9
    layer_decay: float | int = 1.0
    freeze_backbone: bool = False
    weight_decay: float | int = 1e-6
    max_grad_norm: float | int = 10.0
    max_skipped_steps: int = 10
    weight_average_decay: float | None = None
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    deterministic: bool = False
    seed: int = 0
    num_workers: int = 2
    keep_in_memory: bool = False
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    log_every: int = 50
    save_every: int = 1000
    keep_checkpoints: int = 2
    snapshot_every: int | None = None
    num_snapshot_images: int = 8
    num_evaluation_images: int | None = None

    def validate_counts(self):
        """Counts are 1 or more, and those that may be left out are 1 or more where they are given."""
        for name in COUNTS:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` is 1 or more; got {getattr(self, name)}.")

    def validate_datasets(self):
        """Several datasets replace the one, and each has known settings."""
        if self.datasets and (self.data_dir is not None or self.dataset_kwargs):
            raise ValueError(
                f"`data_dir` and `dataset_kwargs` belong in each entry of `datasets`; got data_dir={self.data_dir!r} and "
                f"dataset_kwargs={self.dataset_kwargs} beside it."
            )
        for entry in self.datasets:
            DatasetConfig.from_dict(entry)

    def validate_sizes(self):
        """Sizes are those of images, and a zoom shrinks as much as it enlarges."""
        for name in ("input_size", "network_size"):
            value = getattr(self, name)
            if value is not None and (len(value) != 2 or not all(map(is_edge, value))):
                raise ValueError(f"`{name}` is a height and a width of 1 to {MAX_EDGE} pixels; got {value!r}.")
        if len(self.zoom) != 2 or not 0 < self.zoom[0] <= self.zoom[1] <= MAX_ZOOM:
            raise ValueError(
                f"`zoom` is a range above 0 and up to {MAX_ZOOM}, the lower end first; got {self.zoom}. The paper's is [0.5,2]."
            )
        if abs(math.log(self.zoom[0] * self.zoom[1])) > ZOOM_TOLERANCE:
            raise ValueError(
                f"`zoom` is symmetric around 1 in its logarithm, [1 / z, z], so that depth stays unbiased; got {self.zoom}. "
                f"Set zoom=[{1 / self.zoom[1]:.3g},{self.zoom[1]}]."
            )

    def validate_normalization(self):
        """Mean and standard deviation have three values, the deviations above 0."""
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if value is not None and (len(value) != 3 or not all(map(math.isfinite, value))):
                raise ValueError(f"`{name}` has a finite value for red, green and blue; got {value}.")
        if self.image_std is not None and not min(self.image_std) > 0:
            raise ValueError(f"`image_std` is above 0; got {self.image_std}.")

    def validate_optimizer(self):
        """Rates, decays and norms are in their ranges."""
        for name in ("learning_rate", "decay_power", "weight_decay", "seed", "num_workers"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` is 0 or more, and finite; got {getattr(self, name)}.")
        if self.seed >= 2**32:
            raise ValueError(f"`seed` is below 2**32; got {self.seed}.")
        if not self.max_grad_norm > 0:
            raise ValueError(f"`max_grad_norm` is above 0 (.inf does not clip); got {self.max_grad_norm}.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"`layer_decay` is above 0 and at most 1; got {self.layer_decay}. To train no encoder layer, set "
                "freeze_backbone=true."
            )
        if self.weight_average_decay is not None and not 0 < self.weight_average_decay < 1:
            raise ValueError(
                f"`weight_average_decay` is between 0 and 1, or null for no average; got {self.weight_average_decay}."
            )

    def validate_names(self):
        """Tasks are distinct, trackers and fields of the model are known."""
        if self.tasks is not None and (not self.tasks or len(set(self.tasks)) < len(self.tasks)):
            raise ValueError(f"`tasks` are one or more tasks, each once, or null for all; got {self.tasks}.")
        check_keys("`trackers`", self.trackers, TRACKERS)
        backbone = self.model.get("backbone_config")
        backbone = {} if backbone is None else backbone
        if not isinstance(backbone, dict):
            raise ValueError(
                f"`model.backbone_config` has fields, such as model_name and out_indices; got {backbone!r}. Write each as "
                "`key: value`, or leave it out."
            )
        if "model_type" not in backbone:
            known = ["model_name", "num_channels", "drop_path_rate", "model_kwargs", "out_indices", "out_features"]
            check_keys("fields of `model.backbone_config`", backbone, known)
        check_keys("fields of `model`", self.model, [spec.name for spec in fields(SEMConfig)])
        of_dataset = sorted({"task_num_labels", "task_id2label"} & set(self.model))
        if of_dataset:
            raise ValueError(
                f"A model has the tasks and classes of its dataset; got {of_dataset} in `model`. Choose tasks with `tasks`, and "
                "leave these out."
            )

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> "TrainingConfig":
        """Reads a YAML file and applies `key=value` overrides; `model.num_bases=32` sets a field of `model`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a key is unknown or an override has another form.
            StrictDataclassError: If a value is wrong.
        """
        return cls.from_dict(apply_overrides(read_settings(path), overrides))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainingConfig":
        """Builds the settings from a dictionary.

        Raises:
            ValueError: If a key is unknown.
        """
        check_keys("settings", values, [spec.name for spec in fields(cls)])
        if values.get("mixed_precision") is False:  # YAML reads `no` as false
            values = {**values, "mixed_precision": "no"}
        paths = {name: values[name] for name in PATHS if isinstance(values.get(name), str)}
        return cls(**{**values, **{name: os.path.expanduser(path) for name, path in paths.items()}})

    def describe(self) -> dict[str, Any]:
        """Returns the settings without the paths of this machine."""
        settings = {key: value for key, value in asdict(self).items() if key not in ("output_dir", "data_dir")}
        entries = [{key: entry[key] for key in entry if key != "data_dir"} for entry in self.datasets]
        return {**settings, "datasets": entries}

    @property
    def dataset_configs(self) -> list[DatasetConfig]:
        """Settings of each dataset, also where there is only one."""
        if self.datasets:
            return [DatasetConfig.from_dict(entry) for entry in self.datasets]
        return [DatasetConfig(dataset=self.dataset, data_dir=self.data_dir, dataset_kwargs=self.dataset_kwargs)]

    def get_benchmark(self) -> Benchmark:
        """Returns the benchmark of the dataset, or one with the tasks and classes of all datasets.

        Raises:
            ValueError: If there is no such dataset, or two have tasks of one name with different classes.
        """
        return merge_benchmarks([dataset.get_benchmark() for dataset in self.dataset_configs])

    def is_snapshot(self, step: int) -> bool:
        """Returns whether a snapshot is taken after a step."""
        every = self.snapshot_every or -(-self.max_steps // 10)
        return step % every == 0 or step == self.max_steps

    def images_per_forward(self, num_processes: int) -> int:
        """Returns the number of images in a forward pass of one rank.

        Raises:
            ValueError: If `batch_size` is not divisible by ranks x micro-batches.
        """
        num_parts = num_processes * self.gradient_accumulation_steps
        if self.batch_size % num_parts:
            raise ValueError(
                f"`batch_size` counts all images of an optimizer step and is divisible by ranks x micro-batches; got "
                f"{self.batch_size} images, {num_processes} ranks, {self.gradient_accumulation_steps} micro-batches."
            )
        return self.batch_size // num_parts


def label_fields(config: TrainingConfig, benchmark: Benchmark) -> dict[str, dict]:
    """Returns the fields of [`SEMConfig`] that follow from the dataset: tasks, head widths and class names.

    Raises:
        ValueError: If no dataset has a task, or one of several has none of the tasks.
    """
    tasks = config.tasks or list(benchmark.task_num_labels)
    for dataset in config.dataset_configs if len(config.datasets) > 1 else ():
        known = dataset.get_benchmark().tasks
        if not {*known} & {*tasks}:
            raise ValueError(
                f"Every dataset has labels of one of `tasks`, {tasks}; {dataset.dataset} has {list(known)}. Leave it out, or add a "
                "task of it."
            )
    names = benchmark.class_names
    return {
        "task_num_labels": {task: benchmark.num_labels(task) for task in tasks},
        "task_id2label": {task: dict(enumerate(names[task])) for task in names if task in tasks},
    }


def model_config(config: TrainingConfig, benchmark: Benchmark) -> SEMConfig:
    """Returns the configuration of a new model: fields that follow from the dataset, and those of the settings."""
    labels = label_fields(config, benchmark)
    return SEMConfig(**labels, **model_fields(config, labels["task_num_labels"]))


def model_fields(config: TrainingConfig, tasks: Iterable[str]) -> dict[str, Any]:
    """Returns the fields of `model`, without losses of tasks other than `tasks`: a recipe has them for all tasks of its dataset."""
    left_out = {*TASKS} - {*tasks}  # an unknown name stays, and is an error
    return {
        name: {task: entry for task, entry in value.items() if task not in left_out}
        if name in LOSS_FIELDS and isinstance(value, dict)
        else value
        for name, value in config.model.items()
    }


@contextmanager
def hold_output_dir(config: TrainingConfig) -> Iterator[None]:
    """Locks the folder of a run in a `with` block, and writes the settings to it.

    Raises:
        ValueError: If another process trains there, or the folder holds a run with other settings, or a model that no
            training wrote there.
    """
    output_dir = Path(config.output_dir)
    if not (output_dir / SETTINGS_NAME).is_file() and any(output_dir.glob("*.safetensors")):
        raise ValueError(
            f"{config.output_dir!r} holds a model that no training has written there, and that this one would replace. Choose "
            "another output_dir."
        )
    with locked(output_dir / ".lock", "One process trains in a folder at a time", LOCK_SECONDS):
        claim_output_dir(config, replace=not holds_weights(output_dir))
        yield


def claim_output_dir(config: TrainingConfig, *, replace: bool = False) -> None:
    """Writes the settings to `output_dir`, or checks that the run to resume there has the same settings.

    Args:
        config (`TrainingConfig`): The settings.
        replace (`bool`, *optional*, defaults to `False`): Whether to write the settings over others.

    Raises:
        ValueError: If the folder holds a run with other settings.
    """
    path = Path(config.output_dir) / SETTINGS_NAME
    changed = changed_settings(config, path) if path.is_file() else []
    if changed and not replace:
        raise ValueError(
            f"{config.output_dir!r} holds a run with other settings ({'; '.join(changed)}), which cannot be resumed with "
            "these. Choose another output_dir, or remove that folder."
        )
    if changed or not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, format_yaml(asdict(config)))


def claim_classes(folder: Path, config: SEMConfig) -> None:
    """Writes the configuration of the model to the folder of a run, or checks that the run to resume there has the same classes.

    Raises:
        ValueError: If the data has other classes than the weights there.
    """
    path = folder / CONFIG_NAME
    if path.is_file() and holds_weights(folder):
        earlier = load_config(SEMConfig, folder, local_files_only=True)
        changed = [
            task
            for task in {**earlier.task_num_labels, **config.task_num_labels}
            if earlier.task_num_labels.get(task) != config.task_num_labels.get(task)
            or earlier.task_id2label.get(task) != config.task_id2label.get(task)
        ]
        if changed:
            raise ValueError(
                f"{str(folder)!r} holds a run on other tasks or classes; those of {changed} differ from the data's. Choose another "
                "output_dir, or restore the description of the data."
            )
    else:
        write_text(path, config.to_json_string())


def changed_settings(config: TrainingConfig, path: Path) -> list[str]:
    """Returns the settings that differ from those in a file and that weights depend on, as "name old -> new"."""
    earlier = asdict(TrainingConfig.load(path))
    return [
        f"{key} {earlier[key]!r} -> {value!r}"
        for key, value in asdict(config).items()
        if earlier[key] != value
        and key not in WITHOUT_EFFECT_ON_WEIGHTS
        and resolve_paths(key, earlier[key]) != resolve_paths(key, value)
    ]


def resolve_paths(key: str, value: Any) -> Any:
    """Returns a setting with the absolute paths of data and weights, which may be given relative to this folder."""
    if key == "data_dir":
        return None if value is None else os.path.realpath(value)
    if key in ("pretrained_model", "pretrained_backbone"):  # or the name of a repository
        return os.path.realpath(value) if isinstance(value, str) and os.path.exists(value) else value
    if key == "datasets":
        return [{name: resolve_paths(name, entry[name]) for name in entry} for entry in value]
    return value


def holds_weights(folder: Path) -> bool:
    """Returns whether a run in a folder has reached its first checkpoint."""
    return any(folder.glob("checkpoints/step_*")) or any(folder.rglob("*.safetensors"))


def network_size(config: TrainingConfig) -> tuple[int, int]:
    """Returns height and width of the images that the network of a run gets."""
    return tuple(config.network_size or config.input_size)
