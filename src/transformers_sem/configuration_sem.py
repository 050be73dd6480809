"""Configuration of SEM and of its timm encoder."""

from dataclasses import fields

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .tasks import NYUD_V2_TASKS, get_task


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
            Further keyword arguments of `timm.create_model`.
        out_indices (`list[int]`, *optional*, defaults to `[6, 12, 18, 24]`):
            Stages that are returned as feature maps, counted from 1: stages of a hierarchical encoder, blocks of a plain one
            (layers 6, 12, 18 and 24 of ViT-L in the paper).
        out_features (`list[str]`, *optional*):
            The same stages by name (`"stage1"`, ...).
    """

    model_type = "sem_timm_backbone"

    model_name: str = "vit_large_patch16_384.augreg_in21k_ft_in1k"
    num_channels: int = 3
    drop_path_rate: float | int = 0.15
    model_kwargs: dict | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        kwargs.pop("stage_names", None)  # derived below, and part of every saved configuration
        out_features = kwargs.pop("out_features", None)
        out_indices = kwargs.pop("out_indices", None)
        if out_features is not None:
            out_indices = [int(name.removeprefix("stage")) for name in out_features]
        out_indices = list(out_indices) if out_indices is not None else [6, 12, 18, 24]
        if min(out_indices) < 1:
            raise ValueError(f"`out_indices` count the stages of a timm encoder from 1; got {out_indices}.")
        self.model_kwargs = self.model_kwargs or {}
        self.stage_names = ["stem", *(f"stage{index}" for index in range(1, max(out_indices) + 1))]
        self.set_output_features_output_indices(out_features=None, out_indices=out_indices)
        super().__post_init__(**kwargs)


@strict
class SEMConfig(PreTrainedConfig):
    r"""Configuration of [`SEMModel`] and [`SEMForMultiTaskDensePrediction`]. The defaults are the paper's NYUD-v2 ViT-L.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of any backbone. `None` is the timm ViT-L/16 of the paper.
        reassemble_factors (`list[int | float]`, *optional*):
            Factors that resize the encoder stages to strides 4, 8, 16 and 32. `None` derives them from the backbone:
            `[4, 2, 1, 0.5]` if all its maps share one stride, no resizing if they form a pyramid.
        task_num_labels (`dict[str, int]`, *optional*):
            Number of output channels of each task, in order. `None` is NYUD-v2: 40 classes, depth, normals, boundaries.
        task_id2label (`dict[str, dict[int, str]]`, *optional*):
            Class names of the tasks that have classes.
        task_loss_weights (`dict[str, float]`, *optional*):
            Weight of each task in the loss. Missing entries are taken from the task table.
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
    task_id2label: dict | None = None
    task_loss_weights: dict[str, float | int] | None = None
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
    inter_task_options: dict | None = None  # of the comparison of readings of Sec. 3.3, see `SEMInterTaskModule`
    use_auxiliary_heads: bool = True
    auxiliary_loss_weight: float | int = 1.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        self.backbone_config = _build_backbone_config(self.backbone_config)
        for field in ("offset_strides", "decoder_hidden_sizes", "decoder_num_attention_heads", "sr_ratios"):
            setattr(self, field, list(getattr(self, field)))  # JSON has lists, no tuples
        if self.task_num_labels is None:
            self.task_num_labels = {task.name: task.num_labels for task in NYUD_V2_TASKS}
        self._restore_task_order(kwargs.pop("tasks", None))
        self._fill_in_from_task_table()
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """Builds a configuration. Fields among `kwargs` replace those of the dictionary before the values are checked.

        If `task_num_labels` is replaced, tasks of another width take their other entries from the task table.
        """
        known = {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}
        changes = {name: kwargs.pop(name) for name in sorted(known & set(kwargs))}
        config_dict = dict(config_dict)
        if "task_num_labels" in changes:
            config_dict.pop("tasks", None)
            widths, new_widths = config_dict.get("task_num_labels") or {}, changes["task_num_labels"] or {}
            for name in ("task_id2label", "task_loss_weights", "task_loss_kwargs"):
                entries = config_dict.get(name) or {}
                config_dict[name] = {t: entries[t] for t in entries if widths.get(t) == new_widths.get(t)}
        return super().from_dict({**config_dict, **changes}, **kwargs)

    def _restore_task_order(self, tasks: list[str] | None) -> None:
        """Restores the order of the tasks from the list `tasks`, because transformers sorts the keys of its JSON files."""
        if tasks is None:
            return
        if sorted(tasks) != sorted(self.task_num_labels):
            raise ValueError(
                f"`tasks` orders the tasks of `task_num_labels`, {list(self.task_num_labels)}; got {tasks}."
            )
        self.task_num_labels = {task: self.task_num_labels[task] for task in tasks}

    def _fill_in_from_task_table(self) -> None:
        specs = {name: get_task(name) for name in self.task_num_labels}
        for field in ("task_id2label", "task_loss_weights", "task_loss_kwargs"):
            stray = set(getattr(self, field) or {}) - set(specs)
            if stray:
                raise ValueError(f"`{field}` names {sorted(stray)}, which `task_num_labels` lacks: {list(specs)}.")
        weights, names = self.task_loss_weights or {}, self.task_id2label or {}
        self.task_loss_weights = {name: weights.get(name, spec.loss_weight) for name, spec in specs.items()}
        self.task_loss_kwargs = self.task_loss_kwargs or {}
        # JSON turns the ids into strings
        self.task_id2label = {task: {int(id): name for id, name in names[task].items()} for task in names}

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in order."""
        return list(self.task_num_labels)

    def to_dict(self) -> dict:
        """Returns the configuration as a dictionary, with the order of the tasks in the list `tasks`."""
        return {**super().to_dict(), "tasks": self.tasks}

    def validate_tasks(self):
        """Checks that every task has a head of positive width and as many names as classes."""
        if not self.task_num_labels:
            raise ValueError("`task_num_labels` is empty; name at least one task.")
        for task, num_labels in self.task_num_labels.items():
            if num_labels < 1:
                raise ValueError(f"A head needs at least one channel; `task_num_labels[{task!r}]` is {num_labels}.")
            names = self.task_id2label.get(task)
            if names is not None and sorted(names) != list(range(num_labels)):
                raise ValueError(
                    f"`task_id2label[{task!r}]` must name the ids 0 to {num_labels - 1}, one per label of the head; got "
                    f"{len(names)} names, {sorted(names)}."
                )

    def _check_positive(self) -> None:
        for field in ("hidden_size", "num_attention_heads", "mlp_ratio", "num_bases", "em_temperature"):
            if getattr(self, field) <= 0:
                raise ValueError(f"`{field}` must be above 0; got {getattr(self, field)}.")
        for field in ("offset_strides", "decoder_hidden_sizes", "decoder_num_attention_heads", "sr_ratios"):
            if not getattr(self, field) or min(getattr(self, field)) < 1:
                raise ValueError(f"Every entry of `{field}` must be above 0; got {getattr(self, field)}.")
        if self.num_em_iterations < 0:
            raise ValueError(f"`num_em_iterations` must not be below 0; got {self.num_em_iterations}.")

    def validate_architecture(self):
        """Checks that lists have one entry per stage and that widths are multiples of the number of heads."""
        self._check_positive()
        num_stages = len(self.decoder_hidden_sizes)
        for field in ("offset_strides", "decoder_num_attention_heads", "sr_ratios"):
            if len(getattr(self, field)) != num_stages:
                raise ValueError(
                    f"`{field}` needs one entry per decoder stage, {num_stages} as `decoder_hidden_sizes`; got "
                    f"{getattr(self, field)}."
                )
        if self.reassemble_factors is not None and len(self.reassemble_factors) != num_stages:
            raise ValueError(f"`reassemble_factors` needs {num_stages} entries; got {self.reassemble_factors}.")
        if any(factor <= 0 or max(factor, 1 / factor) % 1 for factor in self.reassemble_factors or []):
            raise ValueError(
                f"`reassemble_factors` are whole numbers or one over a whole number; got {self.reassemble_factors}."
            )
        if not isinstance(self.backbone_config, BackboneConfigMixin):
            raise ValueError(
                f"`backbone_config` must be that of a timm encoder or of a backbone of transformers; got "
                f"{self.backbone_config.model_type!r}, which returns no feature maps. Use the encoder of timm instead: "
                "{'model_name': ..., 'out_indices': ...}."
            )
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


def _build_backbone_config(backbone_config: dict | PreTrainedConfig | None) -> PreTrainedConfig:
    """Builds the configuration from a dictionary; without a `model_type` it is that of a timm encoder."""
    if isinstance(backbone_config, PreTrainedConfig):
        return backbone_config
    model_type = (backbone_config or {}).get("model_type", SEMTimmBackboneConfig.model_type)
    if model_type == SEMTimmBackboneConfig.model_type:
        return SEMTimmBackboneConfig.from_dict(backbone_config or {})
    return AutoConfig.for_model(**backbone_config)


AutoConfig.register(SEMConfig.model_type, SEMConfig, exist_ok=True)
AutoConfig.register(SEMTimmBackboneConfig.model_type, SEMTimmBackboneConfig, exist_ok=True)


__all__ = ["SEMConfig", "SEMTimmBackboneConfig"]
