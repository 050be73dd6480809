"""The settings of a training run: a dataclass of the paper's recipe, a YAML file of what differs, and overrides."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import yaml
from filelock import FileLock, Timeout

from ..configuration_sem import SEMConfig
from ..data.benchmarks import Benchmark
from ..utils.errors import check_keys
from ..utils.files import atomic_write
from ..utils.settings import apply_overrides, read_settings


SETTINGS_NAME = "training.yaml"
COUNTS = (
    "max_steps",
    "batch_size",
    "gradient_accumulation_steps",
    "max_skipped_steps",
    "log_every",
    "save_every",
    "keep_checkpoints",
    "num_snapshot_images",
)
TRACKERS = ("tensorboard", "wandb", "trackio")
LOCK_SECONDS = 30  # data workers of a process that was killed hold its lock until they notice
WITHOUT_EFFECT_ON_WEIGHTS = (
    "num_workers",
    "log_every",
    "save_every",
    "keep_checkpoints",
    "max_skipped_steps",
    "trackers",
    "snapshot_every",
    "num_snapshot_images",
    "num_evaluation_images",
)


@dataclass(kw_only=True)
class TrainingConfig:
    """Settings of a run; the defaults are the paper's recipe for NYUD-v2.

    Args:
        output_dir (`str`): Where everything of the run goes.
        dataset (`str`): Name of the data set.
        data_dir (`str`, *optional*): Folder of the data, for data sets that are read from disk.
        dataset_kwargs (`dict`): Fields of the data set's builder configuration.
        tasks (`list[str]`, *optional*): The tasks to learn; `None` is all of the data set.
        model (`dict`): Fields of [`SEMConfig`] besides the tasks.
        pretrained_model (`str`, *optional*): Start from a trained SEM, a folder or Hub name. Its configuration holds but for
            the tasks and what `model` says; what does not fit, as the heads of other classes, starts anew.
        pretrained_backbone (`bool | str`): Else, start from the encoder's own weights, from the cache or the Hub, or from a file
            in timm's format, or a folder or Hub name in transformers'.
        input_size (`list[int]`): Height and width of the training crops and of the padded evaluation images.
        network_size (`list[int]`, *optional*): Stretch crops and evaluation images to this height and width, for a
            smaller network input; `None` leaves them at `input_size`.
        zoom (`list[float]`): Range of the random zoom.
        max_steps (`int`): Optimiser steps.
        batch_size (`int`): Images per optimiser step, over all ranks and accumulated micro-batches.
        gradient_accumulation_steps (`int`): Micro-batches per optimiser step.
        learning_rate (`float`): Of Adam; it decays to 0 with the power `decay_power`.
        decay_power (`float`): Of the polynomial decay.
        layer_decay (`float`): Each layer of the encoder learns slower than the one above it by this factor (BEiT).
        freeze_backbone (`bool`): Leave the encoder as it is, and out of training mode.
        weight_decay (`float`): Of Adam.
        max_grad_norm (`float`): Gradients are clipped to this norm.
        max_skipped_steps (`int`): Steps with a loss or a gradient that is not finite are left out; so many in a row at most.
        weight_average_decay (`float`, *optional*): Save and evaluate the exponential moving average of the weights, which
            keeps this much of itself in every step.
        mixed_precision (`str`): `no`, `bf16` or `fp16`.
        gradient_checkpointing (`bool`): Trade time for memory.
        compile (`bool`): `torch.compile` the model: a slow start, then faster steps.
        deterministic (`bool`): The same bits from the same devices every time, slower. On CPUs they always are.
        seed (`int`): Of weights, data order and augmentation.
        num_workers (`int`): Processes that prepare data, per rank.
        trackers (`list[str]`): Where log entries go besides `history.jsonl`: `tensorboard`, `wandb`, `trackio`.
        log_every (`int`): Steps between two log entries.
        save_every (`int`): Steps between two checkpoints.
        keep_checkpoints (`int`): How many of the newest to keep.
        snapshot_every (`int`, *optional*): Steps between two looks at validation images, for `training_report.html`; `None`
            is ten looks in all.
        num_snapshot_images (`int`): How many images to look at; each is scored, and the first few are drawn.
        num_evaluation_images (`int`, *optional*): Evaluate on so many validation images; `None` is all.
    """

    output_dir: str = "runs/sem"
    dataset: str = "nyud_v2"
    data_dir: str | None = None
    dataset_kwargs: dict = field(default_factory=dict)
    tasks: list | None = None
    model: dict = field(default_factory=dict)
    pretrained_model: str | None = None
    pretrained_backbone: bool | str = True
    input_size: list = field(default_factory=lambda: [448, 576])
    network_size: list | None = None
    zoom: list = field(default_factory=lambda: [0.5, 2.0])
    max_steps: int = 40_000
    batch_size: int = 4
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-5
    decay_power: float = 0.9
    layer_decay: float = 1.0
    freeze_backbone: bool = False
    weight_decay: float = 1e-6
    max_grad_norm: float = 10.0
    max_skipped_steps: int = 10
    weight_average_decay: float | None = None
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    deterministic: bool = False
    seed: int = 0
    num_workers: int = 2
    trackers: list = field(default_factory=lambda: ["tensorboard"])
    log_every: int = 50
    save_every: int = 1000
    keep_checkpoints: int = 2
    snapshot_every: int | None = None
    num_snapshot_images: int = 8
    num_evaluation_images: int | None = None

    def __post_init__(self):
        for spec in fields(self):
            value, types = getattr(self, spec.name), get_args(spec.type) or (spec.type,)
            if float in types and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            # bool is an int to Python, and `1e-5` is text to YAML
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                names = " or ".join(kind.__name__ for kind in types)
                raise ValueError(f"`{spec.name}` is of type {names}; got {value!r} (write 1.0e-5, not 1e-5).")
            setattr(self, spec.name, value)
        for name in ("input_size", "network_size", "zoom"):
            value = getattr(self, name)
            if value is not None and (len(value) != 2 or not all(isinstance(edge, (int, float)) for edge in value)):
                raise ValueError(f"`{name}` is two numbers; got {value!r}.")
        if self.network_size is not None and self.zoom[0] < 1:
            raise ValueError(
                f"With `network_size`, crops are stretched, so `zoom` starts at 1 or above; got {self.zoom}."
            )
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is 1 or more; got {getattr(self, name)}.")
        for name in ("snapshot_every", "num_evaluation_images"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` is 1 or more; got {getattr(self, name)}.")
        if not self.max_grad_norm > 0:
            raise ValueError(f"`max_grad_norm` is above 0, and .inf clips nothing; got {self.max_grad_norm}.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"`layer_decay` is above 0 and at most 1; got {self.layer_decay}. To keep the encoder, `freeze_backbone`."
            )
        if self.weight_average_decay is not None and not 0 < self.weight_average_decay < 1:
            raise ValueError(
                f"`weight_average_decay` is between 0 and 1, or null for no average; got {self.weight_average_decay}."
            )
        check_keys("`trackers`", map(str, self.trackers), TRACKERS)
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError(f"`zoom` is a range above 0, the lower end first; got {self.zoom}.")
        backbone = self.model.get("backbone_config") or {}
        if "model_type" not in backbone:
            known = ["model_name", "num_channels", "drop_path_rate", "model_kwargs", "out_indices", "out_features"]
            check_keys("fields of `model.backbone_config`", backbone, known)
        check_keys("fields of `model`", self.model, [spec.name for spec in fields(SEMConfig)])

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> "TrainingConfig":
        """Reads a YAML file and `key=value` overrides, where `model.num_bases=32` reaches inside.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a key is unknown, or a value of another type.
        """
        return cls.from_dict(apply_overrides(read_settings(path), overrides))

    @classmethod
    def load_if_there(cls, path: str | Path, overrides: Sequence[str] = ()) -> "TrainingConfig":
        """The same, from the defaults where there is no such file."""
        return cls.load(path, overrides) if Path(path).is_file() else cls.from_dict(apply_overrides({}, overrides))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainingConfig":
        """Builds the settings from a dictionary.

        Raises:
            ValueError: If a key is unknown.
        """
        check_keys("settings", values, [spec.name for spec in fields(cls)])
        return cls(**values)

    def describe(self) -> dict[str, Any]:
        """The settings but for where things lie on this machine."""
        return {key: value for key, value in asdict(self).items() if key not in ("output_dir", "data_dir")}

    def is_snapshot(self, step: int) -> bool:
        """Whether a step is one after which validation images are looked at."""
        every = self.snapshot_every or -(-self.max_steps // 10)
        return step % every == 0 or step == self.max_steps

    def images_per_forward(self, num_processes: int) -> int:
        """Images that one rank sees at once.

        Raises:
            ValueError: If the batch does not divide by ranks and micro-batches.
        """
        num_parts = num_processes * self.gradient_accumulation_steps
        if self.batch_size % num_parts:
            raise ValueError(
                f"`batch_size` is all images of an optimiser step and divides by ranks x micro-batches; got "
                f"{self.batch_size} images, {num_processes} ranks, {self.gradient_accumulation_steps} micro-batches."
            )
        return self.batch_size // num_parts


def label_fields(config: TrainingConfig, benchmark: Benchmark) -> dict[str, dict]:
    """The fields of [`SEMConfig`] that the data set determines: tasks, head widths and class names."""
    tasks = config.tasks or list(benchmark.task_num_labels)
    names = benchmark.class_names
    return {
        "task_num_labels": {task: benchmark.num_labels(task) for task in tasks},
        "task_id2label": {task: dict(enumerate(names[task])) for task in names if task in tasks},
    }


def read_command_line(description: str) -> tuple[TrainingConfig, bool]:
    """Parses `--config FILE [--dry-run] [key=value ...]` into the settings and whether it is a dry run."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the settings that differ from the defaults")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, measure one step, write nothing"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, for example max_steps=100")
    # intermixed: `--dry-run` may stand behind the settings
    arguments = parser.parse_intermixed_args()
    return TrainingConfig.load(arguments.config, arguments.overrides), arguments.dry_run


def lock_output_dir(folder: Path) -> FileLock:
    """Keeps other processes from training in the same folder, for as long as this one lives and holds the lock.

    Raises:
        ValueError: If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise ValueError(
            f"One process trains in a folder at a time; another one holds {str(lock.lock_file)!r}. Wait for it or stop it; "
            "ending its launcher is not enough."
        ) from error
    return lock


def claim_output_dir(config: TrainingConfig) -> None:
    """Notes the settings in `output_dir`, or checks that the run there, which this one resumes, has the same.

    Raises:
        ValueError: If the folder holds a run of other settings.
    """
    path = Path(config.output_dir) / SETTINGS_NAME
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished:
            unfinished.write_text(yaml.safe_dump(asdict(config), sort_keys=False))
        return
    earlier = asdict(TrainingConfig.load(path))
    changed = [
        f"{key} {earlier[key]!r} -> {value!r}"
        for key, value in asdict(config).items()
        if earlier[key] != value and key not in WITHOUT_EFFECT_ON_WEIGHTS
    ]
    if changed:
        raise ValueError(
            f"{config.output_dir!r} holds a run of other settings ({'; '.join(changed)}), which cannot be resumed with "
            "these. Choose another output_dir, or remove that folder."
        )


def network_size(config: TrainingConfig) -> tuple[int, int]:
    """Height and width of the images that the network of a run sees."""
    return tuple(config.network_size or config.input_size)
