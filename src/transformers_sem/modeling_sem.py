"""PyTorch SEM model, in the order of Fig. 2 of the paper.

    image -> backbone -> (reassembly) -> intra-task module per task -> decoder with inter-task EM modules -> heads

Letters in shapes: B batch, T tasks, S encoder stages (shallow to deep), C channels, N points or tokens, K bases, R EM
iterations.

"Going Beyond Multi-Task Dense Prediction with Synergy Embedding Models", CVPR 2024.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, DepthEstimatorOutput, SemanticSegmenterOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, maybe_autocast

from .backbone import (
    build_backbone,
    find_image_sizes,
    inspect_backbone,
    load_backbone_weights,
    parameters_to_buffers,
)
from .configuration_sem import SEMConfig
from .layers import (
    SEMMLP,
    Padding,
    SEMConvBlock,
    SEMPatchConv2d,
    SkipInitOnMeta,
    record,
    record_states,
    resize,
    to_map,
    to_tokens,
)
from .losses import mean_over_ranks
from .modeling_outputs import SEMModelOutput, SEMMultiTaskOutput, SEMNormalEstimatorOutput, SEMStates
from .task_kinds import CLASS_IDS, METRES, UNIT_VECTORS, TaskKind
from .tasks import get_task, invalid_labels


logger = logging.get_logger(__name__)

# A checkpoint may lack new heads, but not most of the model: `from_pretrained` takes no more memory than this for the rest
SPARE_FACTOR = 8
SPARE_VALUES = 2**22


# ----------------------------------------------------------------------------------------------------------------------
# Attention


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Softmax attention: `(B, heads, N, C / heads)` -> `(B, N, heads, C / heads)` and weights `(B, heads, N, M)`."""
    weights = (query @ key.transpose(-1, -2) * scaling).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SEMAttention(nn.Module):
    """Multi-head attention of query tokens over another sequence of key and value tokens."""

    def __init__(self, config: SEMConfig, hidden_size: int, num_heads: int):
        super().__init__()
        self.config = config  # the attention implementation in it may change after construction
        self.head_dim = hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, query_tokens: Tensor, key_value_tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """`(B, N, C)` and `(B, M, C)` -> `(B, N, C)` and weights `(B, heads, N, M)`, `None` unless eager."""
        query_states = self._split_heads(self.q_proj(query_tokens))
        key_states = self._split_heads(self.k_proj(key_value_tokens))
        value_states = self._split_heads(self.v_proj(key_value_tokens))
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, attention = attend(
            self, query_states, key_states, value_states, attention_mask=None, scaling=self.scaling
        )
        return self.o_proj(attended.flatten(2)), attention

    def _split_heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, heads, N, C / heads)


# ----------------------------------------------------------------------------------------------------------------------
# Reassembly of plain encoders (DPT)


class SEMFeatureReassemblyLayer(nn.Module):
    """Projects a map to the width of its stage and resizes it by `factor`."""

    def __init__(self, in_channels: int, out_channels: int, factor: float):
        super().__init__()
        self.projection = SEMPatchConv2d(in_channels, out_channels, 1)
        if factor > 1:
            self.resize = nn.ConvTranspose2d(out_channels, out_channels, int(factor), stride=int(factor))
        elif factor < 1:
            self.resize = nn.Conv2d(out_channels, out_channels, 3, stride=round(1 / factor), padding=1)
        else:
            self.resize = nn.Identity()

    def forward(self, feature_map: Tensor) -> Tensor:
        """`(B, C_in, H, W)` -> `(B, C_out, factor * H, factor * W)`."""
        return self.resize(self.projection(feature_map))


class SEMFeatureReassembly(nn.Module):
    """Turns the maps of a plain encoder, which share one stride, into a pyramid."""

    def __init__(self, in_channels: list[int], out_channels: list[int], factors: list[float]):
        super().__init__()
        self.layers = nn.ModuleList(
            SEMFeatureReassemblyLayer(in_width, out_width, factor)
            for in_width, out_width, factor in zip(in_channels, out_channels, factors, strict=True)
        )

    def forward(self, feature_maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """S maps of one size -> S maps, from large (shallow) to small (deep)."""
        return tuple(layer(feature_map) for layer, feature_map in zip(self.layers, feature_maps, strict=True))


# ----------------------------------------------------------------------------------------------------------------------
# Intra-task hierarchy-adaptive module (Sec. 3.2, Fig. 3)


def reference_grid(height: int, width: int, device: torch.device) -> Tensor:
    """p_ref of Eq. (1): the centers of `height` x `width` cells in [-1, 1], `(height * width, 2)` as (y, x)."""
    rows = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * (2 / height) - 1
    columns = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * (2 / width) - 1
    return torch.cartesian_prod(rows, columns)


def deform_points(reference_points: Tensor, offsets: Tensor) -> Tensor:
    """Eq. (1): p_s = p_s^ref + offsets, kept inside the image; `(N_s, 2)` and `(B, N_s, 2)` -> `(B, N_s, 2)`."""
    return (reference_points + offsets).clamp(-1, 1)


def sample_points(feature_map: Tensor, points: Tensor) -> Tensor:
    """Bilinear sampling, phi of Eq. (2): `(B, C, H, W)` at `points` `(B, N, 2)` -> `(B, N, C)`.

    Points are (y, x) in float32, because bfloat16 has too few digits; -1 and 1 are the centers of the first and last
    pixel. Values outside the map are zero.
    """
    grid = points.flip(-1).unsqueeze(2)  # grid_sample wants (x, y)
    sampled = F.grid_sample(feature_map.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return sampled.squeeze(-1).transpose(1, 2).to(feature_map.dtype)


def aggregate_stages(sampled_states: Tensor, stage_weights: Tensor) -> Tensor:
    """The weighted sum of Eq. (4): `(B, S, N, C)` and `(B, N, S)` -> `(B, N, C)`."""
    return torch.einsum("bsnc,bns->bnc", sampled_states, stage_weights)


class SEMOffsetNetwork(nn.Module):
    """theta_offset of Eq. (1): the offsets of the reference points of one stage."""

    def __init__(self, hidden_size: int, stride: int):
        super().__init__()
        # depthwise, as in deformable attention: a full 8 x 8 convolution would have more weights than all else
        self.pool = SEMPatchConv2d(hidden_size, hidden_size, stride, stride=stride, groups=hidden_size)
        self.activation = nn.GELU()
        self.offset = SEMPatchConv2d(hidden_size, 2, 1)  # initialized to zero: training starts from the uniform grid

    def forward(self, feature_map: Tensor) -> Tensor:
        """`(B, C, H_s, W_s)` -> deformed points `(B, N_s, 2)`, float32."""
        offset_map = self.offset(self.activation(self.pool(feature_map))).float().tanh()
        reference_points = reference_grid(*offset_map.shape[-2:], device=offset_map.device)
        return deform_points(reference_points, to_tokens(offset_map))


class SEMStageWeighting(nn.Module):
    """theta_HW of Eq. (3): the weight of each stage at each deformed point."""

    def __init__(self, hidden_size: int, num_stages: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, hidden_size // 4)
        self.activation = nn.ReLU()
        self.fc2 = nn.Linear(hidden_size // 4, num_stages)

    def forward(self, query_map: Tensor, points: Tensor) -> Tensor:
        """Query map `(B, C, H_S, W_S)` and points `(B, N, 2)` -> weights `(B, N, S)` that sum to 1 over S."""
        states = self.activation(self.fc1(sample_points(query_map, points)))
        return self.fc2(states).softmax(dim=-1)


class SEMHierarchyAdaptiveAttention(nn.Module):
    """Attention of the query map over keys and values that are sampled at deformed points and mixed over the stages."""

    def __init__(self, config: SEMConfig):
        super().__init__()
        strides = config.offset_strides[-config.num_intra_task_stages :]
        self.offset_networks = nn.ModuleList(SEMOffsetNetwork(config.hidden_size, stride) for stride in strides)
        self.stage_weighting = SEMStageWeighting(config.hidden_size, len(strides))
        self.attention = SEMAttention(config, config.hidden_size, config.num_attention_heads)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, query_map: Tensor, stage_maps: tuple[Tensor, ...]) -> Tensor:
        """`(B, C, H_S, W_S)` and S maps `(B, C, H_s, W_s)` -> attended query tokens `(B, H_S * W_S, C)`."""
        stage_points = tuple(
            network(stage_map) for network, stage_map in zip(self.offset_networks, stage_maps, strict=True)
        )
        points = torch.cat(stage_points, dim=1)  # (B, N, 2)
        sampled_states = torch.stack([sample_points(stage_map, points) for stage_map in stage_maps], dim=1)
        stage_weights = self.stage_weighting(query_map, points)
        hierarchy_states = aggregate_stages(sampled_states, stage_weights)  # (B, N, C)
        attended, attention = self.attention(self.norm(to_tokens(query_map)), self.norm(hierarchy_states))
        record("points", stage_points)
        record("stage_weights", stage_weights)
        record("intra_task_attentions", attention)
        return attended


class SEMIntraTaskModule(GradientCheckpointingLayer):
    """Hierarchy-adaptive attention and MLP of one task, at the deepest stride."""

    def __init__(self, config: SEMConfig):
        super().__init__()
        self.query_conv = nn.Conv2d(config.hidden_size, config.hidden_size, 3, padding=1)
        self.activation = nn.GELU()
        self.attention = SEMHierarchyAdaptiveAttention(config)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.mlp = SEMMLP(config.hidden_size, config.mlp_ratio)

    def forward(self, fused_map: Tensor, *stage_maps: Tensor) -> Tensor:
        """Sum of all stages `(B, C, H_S, W_S)` and the S stages `(B, C, H_s, W_s)` -> X^t `(B, C, H_S, W_S)`.

        Each map is an argument of its own: reentrant gradient checkpointing does not look for tensors inside a list.
        """
        query_map = self.activation(self.query_conv(fused_map))
        attended = self.attention(query_map, stage_maps)
        tokens = to_tokens(query_map) + attended
        tokens = tokens + self.mlp(self.norm(tokens))
        return to_map(tokens, fused_map.shape[-2:])


class SEMIntraTaskStage(nn.Module):
    """Stage projections shared by the tasks, and one intra-task module per task.

    With `use_intra_task=False` each task has one convolution block on the deepest map instead.
    """

    def __init__(self, config: SEMConfig, channels: list[int]):
        super().__init__()
        self.use_intra_task = config.use_intra_task
        if config.use_intra_task:
            self.num_stages = config.num_intra_task_stages
            self.stage_projections = nn.ModuleList(
                SEMPatchConv2d(width, config.hidden_size, 1) for width in channels[-self.num_stages :]
            )
            self.task_modules = nn.ModuleDict({task: SEMIntraTaskModule(config) for task in config.tasks})
        else:
            self.task_modules = nn.ModuleDict(
                {task: SEMConvBlock(channels[-1], config.hidden_size) for task in config.tasks}
            )

    def forward(self, feature_maps: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """S encoder maps -> `{task: X^t}`, each `(B, C, H_S, W_S)`."""
        if not self.use_intra_task:
            return {task: module(feature_maps[-1]) for task, module in self.task_modules.items()}
        seen_maps = feature_maps[-self.num_stages :]
        stage_maps = [project(seen_map) for project, seen_map in zip(self.stage_projections, seen_maps, strict=True)]
        # The queries of all tasks are computed from the same sum
        fused_map = sum(resize(stage_map, stage_maps[-1].shape[-2:]) for stage_map in stage_maps)
        return {task: module(fused_map, *stage_maps) for task, module in self.task_modules.items()}


# ----------------------------------------------------------------------------------------------------------------------
# Inter-task EM-interactive module (Sec. 3.3, Fig. 4)


def init_bases(num_bases: int, hidden_size: int) -> Tensor:
    """Returns mu^(0) before training: unit rows `(K, C)`, orthogonal if K <= C, the same in every model."""
    bases = torch.empty(num_bases, hidden_size, dtype=torch.float32, device="cpu")
    nn.init.orthogonal_(bases, generator=torch.Generator("cpu").manual_seed(0))
    return F.normalize(bases, dim=-1)


def expectation_step(states: Tensor, bases: Tensor, temperature: float = 1.0) -> Tensor:
    """E step, Eq. (7)-(8): states `(..., N, C)` and bases `(..., K, C)` -> responsibilities `(..., N, K)`."""
    return (states @ (bases / temperature).transpose(-1, -2)).softmax(dim=-1)


def maximization_step(states: Tensor, responsibilities: Tensor) -> Tensor:
    """M step, Eq. (9): weighted means of the states, normalized to unit length as in EMANet; -> bases `(..., K, C)`."""
    weighted_sums, sums = responsibilities.transpose(-1, -2) @ states, responsibilities.sum(dim=-2)
    return F.normalize(weighted_sums / (sums.unsqueeze(-1) + 1e-6), dim=-1)  # divides K x C values, not N x K


@torch.no_grad()
def expectation_maximization(states: Tensor, bases: Tensor, num_iterations: int, temperature: float = 1.0) -> Tensor:
    """R iterations of Eq. (8) and Eq. (9) from the initial bases `(K, C)`; -> task bases `(..., K, C)`."""
    for _ in range(num_iterations):
        bases = maximization_step(states, expectation_step(states, bases, temperature))
    return bases


def consensus(task_bases: Tensor) -> Tensor:
    """Eq. (10): mean of the task bases `(B, T, K, C)` over the tasks; -> consensus bases `(B, K, C)`."""
    return task_bases.mean(dim=1)


def moving_average(initial_bases: Tensor, bases: Tensor, momentum: float) -> Tensor:
    """mu^(0) <- alpha mu^(0) + (1 - alpha) mu (end of Sec. 3.3), with rows normalized to unit length.

    If `bases` are not finite (an overflow in half precision), mu^(0) is returned unchanged.
    """
    updated = F.normalize(momentum * initial_bases + (1 - momentum) * bases, dim=-1)
    return torch.where(updated.isfinite().all(), updated, initial_bases)


def mean_over_images(values: Tensor) -> Tensor:
    """Mean of `(B, ...)` over the images of all ranks; 1 rank with 8 images and 2 ranks with 4 give the same."""
    total, num_images = values.sum(dim=0), torch.tensor(float(values.shape[0]), device=values.device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        dist.all_reduce(num_images)
    return total / num_images


class SEMInterTaskModule(nn.Module):
    """Reconstructs the features of each task from K bases that all tasks share."""

    def __init__(self, config: SEMConfig, hidden_size: int):
        super().__init__()
        self.num_iterations = config.num_em_iterations
        self.temperature = config.em_temperature
        self.norm = nn.LayerNorm(hidden_size)
        self.project_in = nn.Linear(hidden_size, hidden_size)  # a 1x1 convolution, on tokens
        self.project_out = nn.Linear(hidden_size, hidden_size)
        bases = init_bases(config.num_bases, hidden_size)
        # `torch.empty` is on the default device, which is the meta device while a checkpoint is loaded
        self.initial_bases = nn.Buffer(torch.empty(bases.shape, dtype=bases.dtype).copy_(bases))

    def _apply(self, fn: Callable, recurse: bool = True):
        # Updates of the moving average underflow in half precision, so casts of the model must keep float32. Without this
        # override test_casting_the_model_keeps_the_bases_exact fails: `_keep_in_fp32_modules_strict` covers loading only.
        bases = self.initial_bases
        super()._apply(fn, recurse)
        if self.initial_bases.dtype != torch.float32:
            self.initial_bases = bases.to(self.initial_bases.device)
        return self

    def forward(self, task_maps: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """`{task: (B, C, H, W)}` -> maps of the same shapes and mu^(R) `(B, K, C)`."""
        size = next(iter(task_maps.values())).shape[-2:]
        tokens = torch.stack([to_tokens(task_map) for task_map in task_maps.values()], dim=1)  # (B, T, N, C)
        states = self.project_in(self.norm(tokens))
        with maybe_autocast(states.device.type, enabled=False):
            reconstructed_states, responsibilities, consensus_bases = self.interact(states.float())
        tokens = tokens + self.project_out(reconstructed_states.to(states.dtype))
        record("responsibilities", (responsibilities, size))
        record("bases", consensus_bases)
        return dict(zip(task_maps, to_map(tokens, size).unbind(dim=1), strict=True)), consensus_bases

    def interact(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """X `(B, T, N, C)` -> X~ = A mu^(R) of the same shape, A `(B, T, N, K)` and mu^(R) `(B, K, C)`.

        The iterations run without gradient (EMANet); the last E step is recomputed with gradient, so that the features
        learn through A.
        """
        task_bases = expectation_maximization(states, self.initial_bases, self.num_iterations, self.temperature)
        if self.num_iterations == 0:
            task_bases = task_bases.expand(*states.shape[:2], -1, -1)
        responsibilities = expectation_step(states, task_bases, self.temperature)  # (B, T, N, K)
        consensus_bases = consensus(task_bases)
        return responsibilities @ consensus_bases.unsqueeze(1), responsibilities, consensus_bases


# ----------------------------------------------------------------------------------------------------------------------
# Decoder (end of Sec. 3.3)


class SEMSpatialReductionAttention(nn.Module):
    """Self-attention with keys and values on a grid that is coarser by `sr_ratio` (PVT)."""

    def __init__(self, config: SEMConfig, hidden_size: int, num_heads: int, sr_ratio: int):
        super().__init__()
        self.attention = SEMAttention(config, hidden_size, num_heads)
        self.sr_ratio = sr_ratio
        if sr_ratio > 1:
            self.reduction = SEMPatchConv2d(hidden_size, hidden_size, sr_ratio, stride=sr_ratio)
            self.norm = LayerNorm2d(hidden_size)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """`(B, H * W, C)` -> `(B, H * W, C)`."""
        reduced_tokens = tokens
        if self.sr_ratio > 1:
            reduced_tokens = to_tokens(self.norm(self.reduction(to_map(tokens, size))))
        attended, _ = self.attention(tokens, reduced_tokens)
        return attended


class SEMDecoderBlock(GradientCheckpointingLayer):
    """One task in one decoder stage: upsample, add the encoder feature, apply spatial-reduction attention and MLP."""

    def __init__(self, config: SEMConfig, in_channels: int, stage: int):
        super().__init__()
        hidden_size = config.decoder_hidden_sizes[stage]
        self.projection = SEMPatchConv2d(in_channels, hidden_size, 1)
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = SEMSpatialReductionAttention(
            config, hidden_size, config.decoder_num_attention_heads[stage], config.sr_ratios[stage]
        )
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp = SEMMLP(hidden_size, config.mlp_ratio)

    def forward(self, task_map: Tensor, encoder_map: Tensor) -> Tensor:
        """`(B, C_in, h, w)` and `(B, C, H, W)` -> `(B, C, H, W)`."""
        size = encoder_map.shape[-2:]
        # Projecting before upsampling gives the same map at a quarter of the cost
        tokens = to_tokens(resize(self.projection(task_map), size) + encoder_map)
        tokens = tokens + self.attention(self.attention_norm(tokens), size)
        tokens = tokens + self.mlp(self.mlp_norm(tokens))
        return to_map(tokens, size)


class SEMDecoderStage(nn.Module):
    """One decoder stage: a block for each task, then the inter-task module in the first `inter_task_stages` stages."""

    def __init__(self, config: SEMConfig, in_channels: int, encoder_channels: int, stage: int):
        super().__init__()
        hidden_size = config.decoder_hidden_sizes[stage]
        self.lateral = SEMPatchConv2d(encoder_channels, hidden_size, 1)
        self.blocks = nn.ModuleDict({task: SEMDecoderBlock(config, in_channels, stage) for task in config.tasks})
        self.inter_task = SEMInterTaskModule(config, hidden_size) if stage < config.inter_task_stages else None

    def forward(self, task_maps: dict[str, Tensor], feature_map: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """`{task: (B, C_in, h, w)}` and `(B, C_s, H, W)` -> `{task: (B, C, H, W)}` and mu^(R) `(B, K, C)`."""
        encoder_map = self.lateral(feature_map)
        task_maps = {task: self.blocks[task](task_map, encoder_map) for task, task_map in task_maps.items()}
        return (task_maps, None) if self.inter_task is None else self.inter_task(task_maps)


class SEMDecoder(nn.Module):
    """Decoder stages from the deepest stride to the shallowest."""

    def __init__(self, config: SEMConfig, channels: list[int]):
        super().__init__()
        in_channels = [config.hidden_size, *config.decoder_hidden_sizes[:-1]]
        self.stages = nn.ModuleList(
            SEMDecoderStage(config, in_width, encoder_width, stage)
            for stage, (in_width, encoder_width) in enumerate(zip(in_channels, reversed(channels), strict=True))
        )

    def forward(
        self, task_maps: dict[str, Tensor], feature_maps: tuple[Tensor, ...]
    ) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        """`{task: X^t}` and S encoder maps -> `{task: (B, C, H / 4, W / 4)}` and mu^(R) of each stage."""
        stage_bases = []
        for stage, feature_map in zip(self.stages, reversed(feature_maps), strict=True):
            task_maps, bases = stage(task_maps, feature_map)
            stage_bases.append(bases)
        return task_maps, stage_bases


# ----------------------------------------------------------------------------------------------------------------------
# Model


class SEMTaskHead(SEMConvBlock):
    """3x3 convolution block, then a 1x1 convolution to the channels of one task."""

    def __init__(self, in_channels: int, hidden_channels: int, num_labels: int):
        super().__init__(in_channels, hidden_channels)
        self.classifier = SEMPatchConv2d(hidden_channels, num_labels, 1)

    def forward(self, feature_map: Tensor) -> Tensor:
        """`(B, C, H, W)` -> logits `(B, num_labels, H, W)`."""
        return self.classifier(super().forward(feature_map))


class SEMTaskHeads(nn.Module):
    """The layers `heads`, one per task, each on the features of its task.

    It is no `nn.ModuleDict`, which `modules_to_save` of peft cannot hold.
    """

    def __init__(self, heads: dict[str, nn.Module]):
        super().__init__()
        for task, head in heads.items():
            self.add_module(task, head)

    def __getitem__(self, task: str) -> nn.Module:
        return self.get_submodule(task)

    def items(self) -> Iterator[tuple[str, nn.Module]]:
        """Returns tasks and heads, as `nn.ModuleDict` does."""
        return self.named_children()

    def forward(self, task_maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{task: (B, C, H, W)}` -> logits `{task: (B, num_labels, H, W)}`."""
        return {task: head(task_maps[task]) for task, head in self.items()}


class SEMPreTrainedModel(PreTrainedModel):
    """Weight initialization and loading of pretrained weights."""

    config: SEMConfig
    base_model_prefix = "sem"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["SEMTimmBackbone", "SEMIntraTaskModule", "SEMDecoderStage", "SEMTaskHead"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["initial_bases"]

    @classmethod
    def is_custom_code(cls) -> bool:
        """Returns `False`, so that `_init_weights` is called for every module."""
        # For custom code transformers skips modules that own no tensor, such as SEMOffsetNetwork:
        # test_training_starts_on_the_uniform_grid fails. `init.*` keeps loaded weights in any case.
        return False

    @classmethod
    def get_init_context(cls, *args, **kwargs) -> list:
        """Returns the contexts that `from_pretrained` builds the model in."""
        return [*super().get_init_context(*args, **kwargs), SkipInitOnMeta()]

    def get_input_embeddings(self) -> nn.Module | None:
        """Returns the first layer of the encoder, which reads the pixels, as vision models of transformers do."""
        backbone = self.base_model.backbone
        # accelerate shards what this method returns, and FSDP2 refuses a layer inside of a module that it has sharded
        if dist.is_available():
            from torch.distributed.fsdp import FSDPModule

            if isinstance(backbone, FSDPModule):
                return backbone
        return next((module for module in backbone.modules() if isinstance(module, (nn.Conv2d, nn.Linear))), None)

    @classmethod
    def from_pretrained_backbone(cls, config: SEMConfig, source: str | None = None) -> "SEMPreTrainedModel":
        """Builds the model with a pretrained encoder and random weights elsewhere, and logs which weights were loaded.

        `SEMImageProcessor.for_backbone(config.backbone_config)` normalizes images as the encoder expects them.

        Args:
            config ([`SEMConfig`]):
                Configuration of the whole model.
            source (`str`, *optional*):
                For a timm encoder, a file of weights in timm's format; for one of transformers, a folder or Hub name.
                `None` uses the weights that `backbone_config` names: timm's weights of `model_name`, or the place that
                the configuration was loaded from.

        Raises:
            OSError: If the weights cannot be loaded, or belong to another encoder.
            ValueError: If neither `source` nor `backbone_config` names weights.
        """
        model = cls(config)
        loaded = load_backbone_weights(model.base_model.backbone, source)
        logger.warning(
            f"Loaded {loaded} into the encoder. The rest of {cls.__name__} is newly initialized: train it before use."
        )
        return model

    def _move_missing_keys_from_meta_to_device(self, missing_keys: set[str], *args, **kwargs) -> None:
        """Checks that tensors that a checkpoint lacks do not need far more memory than the checkpoint itself."""
        sizes = {name: tensor.numel() for name, tensor in self.state_dict().items()}
        loaded = sum(sizes[name] for name in sizes if name not in missing_keys)
        buffers = sum(buffer.numel() for _, buffer in self.named_non_persistent_buffers())
        needed = sum(sizes.values()) - loaded + buffers
        if needed > SPARE_FACTOR * loaded + SPARE_VALUES:
            raise ValueError(
                f"config.json describes a model that has {needed + loaded} values, but the weights hold {loaded} of them. Use "
                "the configuration that belongs to the weights."
            )
        super()._move_missing_keys_from_meta_to_device(missing_keys, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.ParameterDict):  # log variances of the tasks
            for parameter in module.values():
                init.zeros_(parameter)
        elif isinstance(module, SEMOffsetNetwork):
            init.zeros_(module.offset.weight)
        elif isinstance(module, SEMInterTaskModule):
            hidden_size = module.project_in.in_features
            # States of unit variance at any width, so that temperature 1 separates the bases from the first step on
            init.normal_(module.project_in.weight, std=hidden_size**-0.5)
            # The reconstruction has unit norm, not unit variance; scale the init by sqrt(C)
            init.normal_(module.project_out.weight, std=self.config.initializer_range * hidden_size**0.5)
            init.copy_(module.initial_bases, init_bases(*module.initial_bases.shape))


class SEMModel(SEMPreTrainedModel):
    """Encoder, intra-task modules and decoder: features of every task at a quarter of the image size."""

    def __init__(self, config: SEMConfig):
        super().__init__(config)
        # With gradient accumulation over n batches, training sets the n-th root
        self.bases_momentum = config.bases_momentum
        self.backbone = build_backbone(config.backbone_config)
        channels = list(self.backbone.channels)
        strides, unused = inspect_backbone(self.backbone, num_maps=len(channels) if config.use_decoder else 1)
        parameters_to_buffers(self.backbone, unused)
        self.min_size = int(min(strides))
        self.strides = strides  # of the maps that the decoder reads, from shallow to deep
        self.size_divisor, self.image_size = find_image_sizes(self.backbone, strides)
        self.output_channels = channels[-1]
        self.reassembly = nn.Identity()
        self.intra_task = self.decoder = None
        if config.use_decoder:
            self._build_decoder(config, channels)
        self.deepest_stride = max(self.strides)
        self.output_stride = min(self.strides) if config.use_decoder else self.deepest_stride
        if self.image_size is not None and any(edge % self.size_divisor for edge in self.image_size):
            raise ValueError(
                f"The decoder needs images whose height and width are multiples of {self.size_divisor}; the encoder takes "
                f"{self.image_size} only. Give a timm encoder such a size as model_kwargs={{'img_size': [height, width]}}."
            )
        self.post_init()

    def _build_decoder(self, config: SEMConfig, channels: list[int]) -> None:
        num_stages = len(config.decoder_hidden_sizes)
        factors = config.reassemble_factors
        if factors is None and len(set(self.strides)) == 1:
            factors = [2.0 ** (num_stages - 2 - stage) for stage in range(num_stages)]  # 4, 2, 1, 0.5
        if factors is not None:
            widths = list(reversed(config.decoder_hidden_sizes))
            self.reassembly = SEMFeatureReassembly(channels, widths, factors)
            self.strides = [s / Fraction(f).limit_denominator() for s, f in zip(self.strides, factors, strict=True)]
            channels = widths
        # Every stage needs a whole number of pixels, of deformed points and of reduced keys
        steps = [stride * step for stride, step in zip(self.strides, config.offset_strides, strict=True)]
        steps += [stride * ratio for stride, ratio in zip(reversed(self.strides), config.sr_ratios, strict=True)]
        self.size_divisor = math.lcm(self.size_divisor, *(round(step) for step in (max(self.strides), *steps)))
        self.output_channels = config.decoder_hidden_sizes[-1]
        self.intra_task = SEMIntraTaskStage(config, channels)
        self.decoder = SEMDecoder(config, channels)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.FloatTensor, output_sem_states: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> SEMModelOutput:
        r"""Encodes images and decodes the features of every task.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalized images of any size not below one patch.
            output_sem_states (`bool`, *optional*, defaults to `False`):
                Whether to return [`SEMStates`].
            **kwargs:
                `output_hidden_states`, `output_attentions` and `return_dict`, as in every transformers model.

        Raises:
            ValueError: If the images have the wrong number of dimensions or channels, or are smaller than a patch.
        """
        if not isinstance(pixel_values, Tensor):
            raise ValueError(
                f"`pixel_values` is a tensor (batch_size, num_channels, height, width); got {type(pixel_values).__name__}. Use the "
                "image processor."
            )
        padding = Padding(tuple(pixel_values.shape[-2:]), self.size_divisor)
        encoded = self.encode(pixel_values, padding, **kwargs)
        with record_states(output_sem_states) as states:
            task_maps, intra_task_maps, stage_bases = self.decode(self.reassembly(encoded.feature_maps))
        self.update_initial_bases(stage_bases)
        return self.build_output(encoded, task_maps, intra_task_maps, states, padding)

    def encode(
        self, pixel_values: torch.FloatTensor, padding: Padding, **kwargs: Unpack[TransformersKwargs]
    ) -> BackboneOutput:
        """Checks and pads the images, and returns the output of the backbone."""
        self._check_pixel_values(pixel_values, padding)
        for name in ("output_hidden_states", "output_attentions"):
            kwargs.setdefault(name, getattr(self.config, name))
        # the processor returns float32, whatever the model; a replica of DataParallel lists no parameters
        dtypes = (parameter.dtype for parameter in self.backbone.parameters() if parameter.is_floating_point())
        padded = padding.pad(pixel_values).to(next(dtypes, pixel_values.dtype))
        if padded.device.type == "cpu":  # faster there; convolutions pass the memory format on
            padded = padded.contiguous(memory_format=torch.channels_last)
        return self.backbone.forward_with_filtered_kwargs(padded, **{**kwargs, "return_dict": True})

    def decode(
        self, feature_maps: tuple[Tensor, ...]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, list[Tensor | None]]:
        """S encoder maps -> `{task: (B, C, H / 4, W / 4)}`, `{task: X^t}` and mu^(R) of each stage.

        Without a decoder, in the rows STL and MTL of the paper's tables, every task has the last encoder map.
        """
        if self.decoder is None:
            return dict.fromkeys(self.config.tasks, feature_maps[-1]), None, []
        intra_task_maps = self.intra_task(feature_maps)
        task_maps, stage_bases = self.decoder(intra_task_maps, feature_maps)
        return task_maps, intra_task_maps, stage_bases

    @torch.no_grad()
    def update_initial_bases(self, stage_bases: list[Tensor | None]) -> None:
        """Moves mu^(0) of every stage towards the consensus bases of this batch, in training only.

        The bases of a module whose weights are frozen stay, as those of a model with adapters, which are saved without it.
        It is called here and not in the inter-task module, because gradient checkpointing may run that module twice.
        """
        if not self.training or self.decoder is None:
            return
        for stage, bases in zip(self.decoder.stages, stage_bases, strict=True):
            if bases is not None and stage.inter_task.project_in.weight.requires_grad:
                initial_bases = stage.inter_task.initial_bases
                initial_bases.copy_(moving_average(initial_bases, mean_over_images(bases), self.bases_momentum))

    def build_output(
        self,
        encoded: BackboneOutput,
        task_maps: dict[str, Tensor],
        intra_task_maps: dict[str, Tensor] | None,
        states: dict[str, list] | None,
        padding: Padding,
    ) -> SEMModelOutput:
        """Crops all maps to the image and collects the outputs."""
        task_hidden_states = padding.crop(task_maps, self.output_stride)
        intra_task_hidden_states = None
        if intra_task_maps is not None:
            intra_task_hidden_states = padding.crop(intra_task_maps, self.deepest_stride)
        return SEMModelOutput(
            last_hidden_state=encoded.feature_maps[-1],
            task_hidden_states=task_hidden_states,
            intra_task_hidden_states=intra_task_hidden_states,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            sem_states=None if states is None else self.build_states(states, task_hidden_states, padding),
        )

    def build_states(
        self, states: dict[str, list], task_hidden_states: dict[str, Tensor], padding: Padding
    ) -> SEMStates:
        """Relates the recorded states to the image: the tasks record in their order, the stages from deep to shallow."""
        tasks = self.config.tasks
        return SEMStates(
            features=task_hidden_states,
            points={
                task: tuple(padding.to_image(points) for points in stage_points)
                for task, stage_points in zip(tasks, states["points"], strict=False)
            },
            stage_weights=dict(zip(tasks, states["stage_weights"], strict=False)),
            intra_task_attentions=dict(zip(tasks, states["intra_task_attentions"], strict=False)),
            responsibilities=tuple(
                padding.crop(dict(zip(tasks, to_map(by_task, size).unbind(dim=1), strict=True)), stride)
                for (by_task, size), stride in zip(states["responsibilities"], reversed(self.strides), strict=False)
            ),
            bases=tuple(states["bases"]),
        )

    def _check_pixel_values(self, pixel_values: Tensor, padding: Padding) -> None:
        if pixel_values.ndim != 4:
            raise ValueError(
                f"`pixel_values` must have the shape (batch_size, num_channels, height, width); got "
                f"{tuple(pixel_values.shape)}. Use the image processor, or add a batch dimension."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"`pixel_values` must be normalized floats; got {pixel_values.dtype}. Use the image processor."
            )
        num_channels, height, width = pixel_values.shape[1:]
        expected = self.config.backbone_config.num_channels
        if num_channels != expected:
            raise ValueError(f"The model takes images of {expected} channels; got {num_channels}.")
        if min(height, width) < self.min_size:
            raise ValueError(
                f"An image must have at least the size of one patch, {self.min_size} x {self.min_size} pixels; got "
                f"{height} x {width}. Enlarge it, for example with the image processor's `size`."
            )
        if self.image_size is not None and padding.padded_size != self.image_size:
            raise ValueError(
                f"This encoder takes images of {self.image_size[0]} x {self.image_size[1]} only; got {height} x {width}. "
                "Set the image processor's `size` or `pad_size` to that, build a timm encoder for another size with "
                "model_kwargs={'img_size': [height, width]}, or use an encoder for all sizes."
            )


class SEMForMultiTaskDensePrediction(SEMPreTrainedModel):
    """SEM with one head per task, which predicts all tasks in one forward pass.

    ```python
    >>> import torch
    >>> from transformers_sem import SEMConfig, SEMForMultiTaskDensePrediction

    >>> encoder = {"model_name": "vit_tiny_patch16_224", "out_indices": [3, 6, 9, 12]}
    >>> config = SEMConfig(backbone_config=encoder, hidden_size=64, decoder_hidden_sizes=[64, 32, 16, 8])
    >>> model = SEMForMultiTaskDensePrediction(config).eval()
    >>> outputs = model(torch.zeros(1, 3, 96, 128))
    >>> [tuple(logits.shape) for logits in outputs.logits.values()]
    [(1, 40, 24, 32), (1, 1, 24, 32), (1, 3, 24, 32), (1, 1, 24, 32)]

    ```
    """

    def __init__(self, config: SEMConfig):
        config.validate()  # after its construction somebody may have set `num_labels`, which the heads would not follow
        super().__init__(config)
        self.sem = SEMModel(config)
        in_channels = self.sem.output_channels
        hidden_channels = in_channels if config.use_decoder else config.hidden_size
        self.heads = SEMTaskHeads(
            {task: SEMTaskHead(in_channels, hidden_channels, width) for task, width in config.task_num_labels.items()}
        )
        self.auxiliary_heads = None
        if config.use_decoder and config.use_auxiliary_heads:
            self.auxiliary_heads = SEMTaskHeads(
                {task: SEMPatchConv2d(config.hidden_size, width, 1) for task, width in config.task_num_labels.items()}
            )
        self.task_log_variances = None
        if config.task_loss_weighting == "uncertainty":
            # One entry each: FSDP cannot shard scalars
            self.task_log_variances = nn.ParameterDict([(task, torch.zeros(1)) for task in config.tasks])
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        labels: dict[str, Tensor] | None = None,
        output_sem_states: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SEMMultiTaskOutput:
        r"""Predicts every task.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalized images of any size not below one patch.
            labels (`dict[str, torch.Tensor]`, *optional*):
                Labels of any subset of the tasks: `(batch_size, height, width)` ids with 255 invalid, or
                `(batch_size, channels, height, width)` measurements with NaN invalid; depth that is not positive is
                invalid too. Shapes and dtypes are checked, and on a CPU that depth is at most 1,000 m; other values are not.
                In distributed training losses and bases are means over all ranks, so either every rank gives labels or none
                does; the ranks may have labels of different tasks.
            output_sem_states (`bool`, *optional*, defaults to `False`):
                Whether to return [`SEMStates`].
            **kwargs:
                `output_hidden_states`, `output_attentions` and `return_dict`, as in every transformers model.

        Raises:
            ValueError: If the model lacks one of the tasks, a label has the wrong shape or dtype, or depth another unit.
        """
        outputs = self.sem(pixel_values, output_sem_states, **{**kwargs, "return_dict": True})
        logits = self.heads(outputs.task_hidden_states)
        auxiliary_logits = None
        if self.auxiliary_heads is not None and (self.training or labels is not None):
            auxiliary_logits = self.auxiliary_heads(outputs.intra_task_hidden_states)
        loss, losses = None, None
        if labels is not None:
            labels = self.prepare_labels(labels, pixel_values)
            loss, losses = self.compute_loss(logits, auxiliary_logits, labels)
        return SEMMultiTaskOutput(
            loss=loss,
            losses=losses,
            logits=logits,
            auxiliary_logits=auxiliary_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            sem_states=outputs.sem_states,
        )

    def class_layers(self, task: str) -> list[nn.Module]:
        """Returns the layers whose output channels are the labels of a task: those of the head and of its auxiliary head."""
        layers = [self.heads[task].classifier]
        return layers if self.auxiliary_heads is None else [*layers, self.auxiliary_heads[task]]

    @torch.no_grad()
    def reorder_classes(self, task: str, names: Sequence[str]) -> None:
        """Gives the classes of a task other ids, those of `names`; what the model recognizes stays the same.

        Args:
            task (`str`): A task with class names.
            names (`Sequence[str]`): The names of its classes, in the new order.

        Raises:
            ValueError: If the model has other classes, or two of one name.
        """
        ids = {name: id for id, name in self.config.task_id2label.get(task, {}).items()}
        if sorted(ids) != sorted(names) or len(ids) != self.config.task_num_labels[task]:
            raise ValueError(
                f"`names` are the class names of {task!r} in another order; got {list(names)} for {list(ids)}."
            )
        order = [ids[name] for name in names]
        for layer in self.class_layers(task):
            layer.weight.copy_(layer.weight[order])
            layer.bias.copy_(layer.bias[order])
        self.config.rename_classes(task, names)

    def compute_loss(
        self, logits: dict[str, Tensor], auxiliary_logits: dict[str, Tensor] | None, labels: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sum over the tasks, and the unweighted loss of each task on its final logits."""
        losses = {task: self.task_loss(task, logits[task], labels[task]) for task in logits if task in labels}
        weights = self.task_loss_weights()
        total = sum(weights[task] * loss for task, loss in losses.items())
        if auxiliary_logits is not None:
            total = total + self.config.auxiliary_loss_weight * sum(
                weights[task] * self.task_loss(task, auxiliary_logits[task], labels[task]) for task in losses
            )
        if self.task_log_variances is not None:
            total = total + self.variance_penalty(losses)
        return total, losses

    def task_loss_weights(self) -> dict[str, float | Tensor]:
        """Returns the weight of each task in the loss: that of the configuration, times exp(-s) where s is learned."""
        if self.task_log_variances is None:
            return self.config.task_loss_weights
        return {
            task: weight * (-self.task_log_variances[task].squeeze(0).float()).exp()
            for task, weight in self.config.task_loss_weights.items()
        }

    def variance_penalty(self, losses: dict[str, Tensor]) -> Tensor:
        """Returns the sum of s / 2 over the tasks with a weight and a label in the batch of all ranks."""
        has_labels = mean_over_ranks(torch.stack([loss.detach() > 0 for loss in losses.values()])) > 0
        weights = torch.tensor([self.config.task_loss_weights[task] for task in losses], device=has_labels.device)
        log_variances = torch.cat([self.task_log_variances[task].float() for task in losses])
        return torch.where(has_labels & (weights > 0), log_variances / 2, 0.0).sum()

    def task_loss(self, task: str, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of one task on logits upsampled to the size of the labels."""
        logits = resize(logits.float(), labels.shape[-2:])
        return get_task(task).loss(logits, labels, **self.config.task_loss_kwargs.get(task, {}))

    def prepare_labels(self, labels: dict[str, Tensor], pixel_values: Tensor) -> dict[str, Tensor]:
        """Checks the labels and, in distributed training, adds invalid labels for the tasks that this rank has none of.

        The losses are means over all ranks, so every rank has to compute the losses of the same tasks.
        """
        num_images, size = len(pixel_values), tuple(pixel_values.shape[-2:])
        if not isinstance(labels, Mapping) or not labels:
            raise ValueError(
                f"`labels` must be {{task: tensor}} with at least one of the tasks {self.config.tasks}, or None."
            )
        for task, label in labels.items():
            self._check_label(task, label, num_images, size)
        labels = {task: get_task(task).kind.known_values(label) for task, label in labels.items()}
        if torch.is_grad_enabled() and dist.is_available() and dist.is_initialized():  # as `mean_over_ranks`
            missing = [task for task in self.config.tasks if task not in labels]
            labels = {**labels, **{t: invalid_labels(t, num_images, size, pixel_values.device) for t in missing}}
        return labels

    def _check_label(self, task: str, label: Tensor, num_images: int, size: tuple[int, int]) -> None:
        if task not in self.config.task_num_labels:
            raise ValueError(f"`labels` has the task {task!r}, which this model lacks; it has {self.config.tasks}.")
        if not isinstance(label, Tensor):
            raise ValueError(
                f"Labels of {task} must be a tensor; got {type(label).__name__}. Use the image processor."
            )
        spec = get_task(task)
        expected = spec.label_shape(num_images, size)
        if label.shape != expected:
            raise ValueError(
                f"Labels of {task} must have the shape {expected}, as the images; got {tuple(label.shape)}."
            )
        both_float = label.dtype.is_floating_point and spec.dtype.is_floating_point
        if label.dtype != spec.dtype and not both_float:
            raise ValueError(f"Labels of {task} must be {spec.dtype}; got {label.dtype}.")


class SEMForSingleTask(SEMForMultiTaskDensePrediction):
    """Base of the classes that return one task, with all weights of [`SEMForMultiTaskDensePrediction`].

    The other tasks are computed too: in SEM every task helps every other. Where several tasks of a model are of the `kind`
    of the class, the first one is returned; `from_pretrained(..., first_task=...)` puts another one first.
    """

    kind: TaskKind

    def __init__(self, config: SEMConfig):
        task = config.first_task_of(self.kind)
        if task is None:
            raise ValueError(
                f"{type(self).__name__} returns {self.kind.values}, which none of the tasks {config.tasks} of this model "
                "predicts. Load it as SEMForMultiTaskDensePrediction."
            )
        super().__init__(config)
        self.task = task

    def predict_all(
        self, pixel_values: torch.FloatTensor, labels: Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> SEMMultiTaskOutput:
        """Predicts every task; `labels` are those of the task that the class returns."""
        labels = None if labels is None else {self.task: labels}
        return super().forward(pixel_values, labels, **{**kwargs, "return_dict": True})


class SEMForSemanticSegmentation(SEMForSingleTask):
    """SEM as a model of semantic segmentation, for `AutoModelForSemanticSegmentation` and `"image-segmentation"`."""

    kind = CLASS_IDS

    @can_return_tuple
    def forward(
        self, pixel_values: torch.FloatTensor, labels: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> SemanticSegmenterOutput:
        r"""Predicts the first task of class ids.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalized images of any size not below one patch.
            labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                Class ids, 255 invalid.
            **kwargs:
                `output_hidden_states`, `output_attentions` and `return_dict`, as in every transformers model.

        Returns:
            `SemanticSegmenterOutput`: `logits` of shape `(batch_size, num_labels, height / 4, width / 4)` and, with labels,
            `loss`, as the multi-task model weights it.
        """
        outputs = self.predict_all(pixel_values, labels, **kwargs)
        return SemanticSegmenterOutput(
            loss=outputs.loss,
            logits=outputs.logits[self.task],
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class SEMForDepthEstimation(SEMForSingleTask):
    """SEM as a model of depth estimation, for `AutoModelForDepthEstimation` and `"depth-estimation"`."""

    kind = METRES

    @can_return_tuple
    def forward(
        self, pixel_values: torch.FloatTensor, labels: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> DepthEstimatorOutput:
        r"""Predicts the first task of metres.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalized images of any size not below one patch.
            labels (`torch.FloatTensor` of shape `(batch_size, height, width)` or `(batch_size, 1, height, width)`, *optional*):
                Metres, NaN invalid.
            **kwargs:
                `output_hidden_states`, `output_attentions` and `return_dict`, as in every transformers model.

        Returns:
            `DepthEstimatorOutput`: `predicted_depth` in metres, float32 of shape `(batch_size, height / 4, width / 4)`, and,
            with labels, `loss`, as the multi-task model weights it.
        """
        if labels is not None and labels.ndim == 3:
            labels = labels.unsqueeze(1)
        outputs = self.predict_all(pixel_values, labels, **kwargs)
        return DepthEstimatorOutput(
            loss=outputs.loss,
            predicted_depth=self.kind.predict(outputs.logits[self.task]),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class SEMForNormalEstimation(SEMForSingleTask):
    """SEM as a model of surface normals, for `AutoModelForNormalEstimation`."""

    kind = UNIT_VECTORS

    @can_return_tuple
    def forward(
        self, pixel_values: torch.FloatTensor, labels: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> SEMNormalEstimatorOutput:
        r"""Predicts the first task of unit vectors.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalized images of any size not below one patch.
            labels (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`, *optional*):
                Unit vectors (x right, y down, z forward), NaN invalid.
            **kwargs:
                `output_hidden_states`, `output_attentions` and `return_dict`, as in every transformers model.
        """
        outputs = self.predict_all(pixel_values, labels, **kwargs)
        return SEMNormalEstimatorOutput(
            loss=outputs.loss,
            normals=outputs.logits[self.task],
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# The class that each Auto class of transformers loads; they share all weights, and a model is saved as any of them
AUTO_MODELS = {
    "AutoModel": SEMModel,
    "AutoModelForDepthEstimation": SEMForDepthEstimation,
    "AutoModelForNormalEstimation": SEMForNormalEstimation,
    "AutoModelForSemanticSegmentation": SEMForSemanticSegmentation,
    "AutoModelForUniversalSegmentation": SEMForMultiTaskDensePrediction,
}


__all__ = [
    "SEMForDepthEstimation",
    "SEMForMultiTaskDensePrediction",
    "SEMForNormalEstimation",
    "SEMForSemanticSegmentation",
    "SEMModel",
    "SEMPreTrainedModel",
]
