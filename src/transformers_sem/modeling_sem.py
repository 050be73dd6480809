"""SEM, from the image to the tasks, in the order of the paper's Fig. 2.

Letters: B batch, T tasks, S encoder stages (shallow to deep), C channels, N points or tokens, K bases, R EM iterations.

    image -> backbone -> (reassembly) -> intra-task module, per task -> decoder with inter-task EM modules -> heads

"Going Beyond Multi-Task Dense Prediction with Synergy Embedding Models", CVPR 2024.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from transformers import AutoBackbone, AutoModel, AutoModelForSemanticSegmentation, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, maybe_autocast

from .backbone_timm import SEMTimmBackbone
from .configuration_sem import SEMConfig, SEMTimmBackboneConfig
from .hub.card import TEMPLATE, make_card
from .losses import INVALID_ID
from .tasks import get_task


logger = logging.get_logger(__name__)


@dataclass
class SEMStates(ModelOutput):
    """What goes on inside: where each task looks, which stages it weighs, and how the tasks meet.

    Args:
        features (`dict[str, torch.FloatTensor]`):
            What each head gets, `(batch_size, channels, height / 4, width / 4)`.
        points (`dict[str, tuple[torch.FloatTensor]]`):
            Deformed points of Eq. (1), for each task and encoder stage `(batch_size, num_points, 2)`, as (y, x); -1 and 1 are
            the edges of the image, and beyond 1 is padding.
        stage_weights (`dict[str, torch.FloatTensor]`):
            Weights of Eq. (3), `(batch_size, num_points of all stages, num_stages)`, of sum 1 over the stages.
        intra_task_attentions (`dict[str, torch.FloatTensor]`):
            How much each pixel of the deepest map attends to each point,
            `(batch_size, num_heads, height * width / 32^2, num_points of all stages)`; `None` for other attention
            implementations than eager, which do not give it.
        responsibilities (`tuple[dict[str, torch.FloatTensor]]`):
            A of Eq. (8), for each decoder stage with an inter-task module and each task
            `(batch_size, num_bases, height, width)` at the size of that stage, of sum 1 over the bases.
        bases (`tuple[torch.FloatTensor]`):
            Consensus bases of Eq. (10), for each of these stages `(batch_size, num_bases, channels)`.
    """

    features: dict[str, torch.FloatTensor] | None = None
    points: dict[str, tuple[torch.FloatTensor, ...]] | None = None
    stage_weights: dict[str, torch.FloatTensor] | None = None
    intra_task_attentions: dict[str, torch.FloatTensor | None] | None = None
    responsibilities: tuple[dict[str, torch.FloatTensor], ...] | None = None
    bases: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SEMModelOutput(ModelOutput):
    """Output of [`SEMModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`):
            Deepest feature map of the encoder, of the padded image.
        task_hidden_states (`dict[str, torch.FloatTensor]`):
            Decoded features of each task, `(batch_size, decoder_hidden_sizes[-1], height / 4, width / 4)`.
        intra_task_hidden_states (`dict[str, torch.FloatTensor]`, *optional*):
            Features of each task before the decoder, `(batch_size, hidden_size, height / 32, width / 32)`.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            Hidden states of the encoder, with `output_hidden_states=True`.
        attentions (`tuple[torch.FloatTensor]`, *optional*):
            Attentions of the encoder, with `output_attentions=True` and an encoder that has them.
        sem_states ([`SEMStates`], *optional*):
            Points, weights and responsibilities, with `output_sem_states=True`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    task_hidden_states: dict[str, torch.FloatTensor] | None = None
    intra_task_hidden_states: dict[str, torch.FloatTensor] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    sem_states: SEMStates | None = None


@dataclass
class SEMMultiTaskOutput(ModelOutput):
    """Output of [`SEMForMultiTaskDensePrediction`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*):
            Weighted sum over the tasks that have labels, with intermediate supervision.
        losses (`dict[str, torch.FloatTensor]`, *optional*):
            Loss of each task on its final logits, unweighted.
        logits (`dict[str, torch.FloatTensor]`):
            Raw predictions of each task, `(batch_size, num_labels, height / 4, width / 4)`.
        auxiliary_logits (`dict[str, torch.FloatTensor]`, *optional*):
            Predictions from the intra-task features, in training and where labels are given.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            Hidden states of the encoder, with `output_hidden_states=True`.
        attentions (`tuple[torch.FloatTensor]`, *optional*):
            Attentions of the encoder, with `output_attentions=True` and an encoder that has them.
        sem_states ([`SEMStates`], *optional*):
            Points, weights and responsibilities, with `output_sem_states=True`.
    """

    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    logits: dict[str, torch.FloatTensor] | None = None
    auxiliary_logits: dict[str, torch.FloatTensor] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    sem_states: SEMStates | None = None


# ----------------------------------------------------------------------------------------------------------------------
# Shared parts


def to_tokens(feature_map: Tensor) -> Tensor:
    """`(B, C, H, W)` -> `(B, H * W, C)`."""
    return feature_map.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """`(B, H * W, C)` -> `(B, C, H, W)`."""
    return tokens.transpose(1, 2).unflatten(2, size)


def cover(feature_map: Tensor, size: tuple[int, int], stride: Fraction) -> Tensor:
    """Takes the padding off a map of stride `stride`, so that its cells cover an image of `size`, no more and no less."""
    # rounded up; ONNX rounds quotients of negative numbers the other way
    cells = [(edge * stride.denominator + stride.numerator - 1) // stride.numerator for edge in size]
    # An exported graph holds for every size, so it always resamples; whole numbers, since compiled sizes know no fractions
    if not torch.compiler.is_exporting() and all(
        edge * stride.denominator == count * stride.numerator for edge, count in zip(size, cells, strict=True)
    ):
        return feature_map[..., : cells[0], : cells[1]]
    # The last cells reach beyond the image: narrower cells, or every resizing to the image would shift what it shows
    rows, columns = (
        (torch.arange(count, device=feature_map.device) + 0.5) * (2 * edge / (count * float(stride) * full)) - 1
        for edge, count, full in zip(size, cells, feature_map.shape[-2:], strict=True)
    )
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flip(-1)  # grid_sample wants (x, y)
    grid = grid.expand(feature_map.shape[0], -1, -1, -1)
    covered = F.grid_sample(feature_map.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return covered.to(feature_map.dtype)


def resize(feature_map: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation to `size`; the map itself where it has that size."""
    if feature_map.shape[-2:] == size:
        return feature_map
    return F.interpolate(feature_map, size=size, mode="bilinear", align_corners=False)


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
    """Softmax attention written out, `(B, heads, N, C / heads)` in, `(B, N, heads, C / heads)` and the weights out."""
    weights = (query @ key.transpose(-1, -2) * scaling).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SEMAttention(nn.Module):
    """Multi-head attention of query tokens over key and value tokens of another length."""

    def __init__(self, config: SEMConfig, hidden_size: int, num_heads: int):
        super().__init__()
        self.config = config  # holds the attention implementation, which may change after construction
        self.head_dim = hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, query_tokens: Tensor, key_value_tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """`(B, N, C)` and `(B, M, C)` -> `(B, N, C)` and, where the implementation gives them, weights `(B, heads, N, M)`."""
        query_states = self._split_heads(self.query(query_tokens))
        key_states = self._split_heads(self.key(key_value_tokens))
        value_states = self._split_heads(self.value(key_value_tokens))
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, attention = attend(
            self, query_states, key_states, value_states, attention_mask=None, scaling=self.scaling
        )
        return self.output(attended.flatten(2)), attention

    def _split_heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, heads, N, C / heads)


class SEMMLP(nn.Sequential):
    """Linear, GELU, Linear."""

    def __init__(self, hidden_size: int, mlp_ratio: float):
        intermediate_size = int(hidden_size * mlp_ratio)
        super().__init__(
            nn.Linear(hidden_size, intermediate_size), nn.GELU(), nn.Linear(intermediate_size, hidden_size)
        )


class SEMConvBlock(nn.Sequential):
    """3x3 convolution, LayerNorm over the channels (the same for any batch and any number of ranks), GELU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(nn.Conv2d(in_channels, out_channels, 3, padding=1), LayerNorm2d(out_channels), nn.GELU())


# ----------------------------------------------------------------------------------------------------------------------
# Encoder


def build_backbone(backbone_config) -> PreTrainedModel:
    """The encoder that a backbone configuration describes, with random weights."""
    # by name: of code that travels with a checkpoint, configuration and model may hold two copies of one class
    if backbone_config.model_type == SEMTimmBackboneConfig.model_type:
        return SEMTimmBackbone(backbone_config)
    return AutoBackbone.from_config(backbone_config)


@dataclass(frozen=True, kw_only=True)
class BackboneSurvey:
    """What a backbone of transformers does not say of itself.

    Args:
        strides (`list[Fraction]`): Stride of each feature map.
        unused_parameters (`list[str]`): Names of the parameters that the feature maps in use do not depend on.
    """

    strides: list[Fraction]
    unused_parameters: list[str]


def survey_backbone(backbone: PreTrainedModel, num_maps: int) -> BackboneSurvey:
    """Asks a twin without weights which strides the maps have, and what the last `num_maps` of them depend on."""
    if isinstance(backbone, SEMTimmBackbone):  # says its strides, and timm leaves out what no map needs
        return BackboneSurvey(strides=[Fraction(stride) for stride in backbone.strides], unused_parameters=[])
    size = 224  # divides by the patches of 14 and 16 pixels and by the strides of every pyramid
    with torch.device("meta"), torch.enable_grad():
        twin = build_backbone(backbone.config).requires_grad_(True)
        feature_maps = twin(torch.empty(1, backbone.config.num_channels, size, size)).feature_maps
        names, parameters = zip(*twin.named_parameters(), strict=True)
        output = sum(feature_map.float().sum() for feature_map in feature_maps[-num_maps:])
        gradients = torch.autograd.grad(output, parameters, allow_unused=True)
    return BackboneSurvey(
        strides=[Fraction(round(size / feature_map.shape[-1])) for feature_map in feature_maps],
        unused_parameters=[name for name, gradient in zip(names, gradients, strict=True) if gradient is None],
    )


def load_backbone_weights(backbone: PreTrainedModel, source: str | None) -> str:
    """Loads pretrained weights into an encoder; see [`SEMPreTrainedModel.from_pretrained_backbone`].

    Returns:
        `str`: what was loaded, for people.
    """
    if isinstance(backbone, SEMTimmBackbone):
        backbone.load_timm_weights(source)
        return f"all {len(backbone.state_dict())} tensors of {backbone.config.model_name!r} from {source or 'timm'}"
    source = source or backbone.config.name_or_path
    if not source:
        raise ValueError(
            "`backbone_config` does not say which weights it came with. Give `source`, a folder or Hub name, or build it by "
            "AutoConfig.from_pretrained(...)."
        )
    try:
        pretrained, info = type(backbone).from_pretrained(source, config=backbone.config, output_loading_info=True)
    except Exception as error:
        raise OSError(
            f"Could not load pretrained weights of a {backbone.config.model_type} encoder from {source!r}: {error}"
        ) from error
    missing, names = set(info["missing_keys"]), set(backbone.state_dict())
    if missing >= {name for name, _ in backbone.named_parameters()}:
        raise OSError(
            f"{source!r} holds no weight of a {backbone.config.model_type} encoder; got none of {len(names)}."
        )
    backbone.load_state_dict(pretrained.state_dict())
    new = f"; new are {sorted(missing)}" if missing else ""
    return f"{len(names - missing)} of {len(names)} tensors from {source!r}{new}"


class SEMFeatureReassembly(nn.ModuleList):
    """Turns the maps of a plain encoder, all of one stride, into a pyramid (DPT's reassembly)."""

    def __init__(self, in_channels: list[int], out_channels: list[int], factors: list[float]):
        super().__init__(
            nn.Sequential(nn.Conv2d(in_width, out_width, 1), self._resampling(out_width, factor))
            for in_width, out_width, factor in zip(in_channels, out_channels, factors, strict=True)
        )

    @staticmethod
    def _resampling(channels: int, factor: float) -> nn.Module:
        if factor > 1:
            return nn.ConvTranspose2d(channels, channels, int(factor), stride=int(factor))
        if factor < 1:
            return nn.Conv2d(channels, channels, 3, stride=round(1 / factor), padding=1)
        return nn.Identity()

    def forward(self, feature_maps: list[Tensor]) -> list[Tensor]:
        """S maps of one size -> S maps from shallow and large to deep and small."""
        return [layer(feature_map) for layer, feature_map in zip(self, feature_maps, strict=True)]


# ----------------------------------------------------------------------------------------------------------------------
# Intra-task hierarchy-adaptive module (Sec. 3.2, Fig. 3)


def reference_grid(height: int, width: int, device: torch.device) -> Tensor:
    """p_ref: the centres of `height` x `width` cells in [-1, 1], `(height * width, 2)` as (y, x)."""
    rows = 2 * (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height - 1
    columns = 2 * (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width - 1
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)


def deform_points(reference_points: Tensor, offsets: Tensor) -> Tensor:
    """Eq. (1): p_s = p_s^ref + offsets, kept inside the image; `(N_s, 2)` and `(B, N_s, 2)` -> `(B, N_s, 2)`."""
    return (reference_points + offsets).clamp(-1, 1)


def sample_points(feature_map: Tensor, points: Tensor) -> Tensor:
    """Bilinear sampling, phi of Eq. (2): `(B, C, H, W)` at `points` `(B, N, 2)` -> `(B, N, C)`.

    Points are (y, x); -1 and 1 are the centres of the first and last pixel, and outside is zero.
    """
    grid = points.flip(-1).unsqueeze(2).float()  # grid_sample wants (x, y); coordinates need more digits than bfloat16
    sampled = F.grid_sample(feature_map.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return sampled.squeeze(-1).transpose(1, 2).to(feature_map.dtype)


def aggregate_stages(sampled_states: Tensor, stage_weights: Tensor) -> Tensor:
    """The weighted sum of Eq. (4): `(B, S, N, C)` and `(B, N, S)` -> `(B, N, C)`."""
    return torch.einsum("bsnc,bns->bnc", sampled_states, stage_weights)


class SEMOffsetNetwork(nn.Module):
    """theta_offset of Eq. (1): how far each reference point of one stage moves."""

    def __init__(self, hidden_size: int, stride: int):
        super().__init__()
        # depthwise, as in deformable attention: a full 8 x 8 convolution would outweigh the whole module
        self.pool = nn.Conv2d(hidden_size, hidden_size, stride, stride=stride, groups=hidden_size)
        self.activation = nn.GELU()
        self.offset = nn.Conv2d(hidden_size, 2, 1)  # starts at zero: training starts on the uniform grid

    def forward(self, feature_map: Tensor) -> Tensor:
        """`(B, C, H_s, W_s)` -> deformed points `(B, N_s, 2)`, float32."""
        offset_map = self.offset(self.activation(self.pool(feature_map))).float().tanh()
        reference_points = reference_grid(*offset_map.shape[-2:], device=offset_map.device)
        return deform_points(reference_points, to_tokens(offset_map))


class SEMStageWeighting(nn.Module):
    """theta_HW of Eq. (3): how much each stage counts at each deformed point."""

    def __init__(self, hidden_size: int, num_stages: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(hidden_size, hidden_size // 4), nn.ReLU(), nn.Linear(hidden_size // 4, num_stages)
        )

    def forward(self, query_map: Tensor, points: Tensor) -> Tensor:
        """Query map `(B, C, H_S, W_S)` and points `(B, N, 2)` -> weights `(B, N, S)` that sum to 1 over S."""
        return self.layers(sample_points(query_map, points)).softmax(dim=-1)


class SEMIntraTaskState(NamedTuple):
    """Of one task: points of each stage `(B, N_s, 2)`, stage weights `(B, N, S)`, attention `(B, heads, H_S * W_S, N)`."""

    points: tuple[Tensor, ...]
    stage_weights: Tensor
    attention: Tensor | None


class SEMHierarchyAdaptiveAttention(nn.Module):
    """Keys and values at deformed points, mixed over the stages, for the queries of the smallest map."""

    def __init__(self, config: SEMConfig):
        super().__init__()
        strides = config.offset_strides[-config.num_intra_task_stages :]
        self.offset_networks = nn.ModuleList(SEMOffsetNetwork(config.hidden_size, stride) for stride in strides)
        self.stage_weighting = SEMStageWeighting(config.hidden_size, len(strides))
        self.attention = SEMAttention(config, config.hidden_size, config.num_attention_heads)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, query_map: Tensor, stage_maps: tuple[Tensor, ...]) -> tuple[Tensor, SEMIntraTaskState]:
        """`(B, C, H_S, W_S)` and S maps `(B, C, H_s, W_s)` -> attended query tokens `(B, H_S * W_S, C)`, and how."""
        stage_points = tuple(
            network(stage_map) for network, stage_map in zip(self.offset_networks, stage_maps, strict=True)
        )
        points = torch.cat(stage_points, dim=1)  # (B, N, 2)
        sampled_states = torch.stack([sample_points(stage_map, points) for stage_map in stage_maps], dim=1)
        stage_weights = self.stage_weighting(query_map, points)
        hierarchy_states = aggregate_stages(sampled_states, stage_weights)  # (B, N, C)
        attended, attention = self.attention(self.norm(to_tokens(query_map)), self.norm(hierarchy_states))
        return attended, SEMIntraTaskState(stage_points, stage_weights, attention)


class SEMIntraTaskModule(GradientCheckpointingLayer):
    """One task's own view of the shared features, `(B, C, H_S, W_S)` at the deepest stride."""

    def __init__(self, config: SEMConfig):
        super().__init__()
        self.query = nn.Sequential(nn.Conv2d(config.hidden_size, config.hidden_size, 3, padding=1), nn.GELU())
        self.attention = SEMHierarchyAdaptiveAttention(config)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.mlp = SEMMLP(config.hidden_size, config.mlp_ratio)

    def forward(self, fused_map: Tensor, *stage_maps: Tensor) -> tuple[Tensor, SEMIntraTaskState]:
        """The sum of all stages `(B, C, H_S, W_S)` and the S stages `(B, C, H_s, W_s)` -> X^t `(B, C, H_S, W_S)`, and how.

        Each map is an argument: checkpointing that re-enters autograd finds no gradient to give inside a list.
        """
        query_map = self.query(fused_map)
        attended, state = self.attention(query_map, stage_maps)
        tokens = to_tokens(query_map) + attended
        tokens = tokens + self.mlp(self.norm(tokens))
        return to_map(tokens, fused_map.shape[-2:]), state


class SEMIntraTask(nn.Module):
    """The shared stage projections and one intra-task module (or, without it, one convolution block) per task."""

    def __init__(self, config: SEMConfig, channels: list[int]):
        super().__init__()
        self.use_intra_task = config.use_intra_task
        if config.use_intra_task:
            self.num_stages = config.num_intra_task_stages
            self.stage_projections = nn.ModuleList(
                nn.Conv2d(width, config.hidden_size, 1) for width in channels[-self.num_stages :]
            )
            self.task_modules = nn.ModuleDict({task: SEMIntraTaskModule(config) for task in config.tasks})
        else:
            self.task_modules = nn.ModuleDict(
                {task: SEMConvBlock(channels[-1], config.hidden_size) for task in config.tasks}
            )

    def forward(self, feature_maps: list[Tensor]) -> tuple[dict[str, Tensor], dict[str, SEMIntraTaskState]]:
        """S encoder maps -> `{task: X^t}`, and how."""
        if not self.use_intra_task:
            return {task: module(feature_maps[-1]) for task, module in self.task_modules.items()}, {}
        seen_maps = feature_maps[-self.num_stages :]
        stage_maps = [project(seen) for project, seen in zip(self.stage_projections, seen_maps, strict=True)]
        # where the queries of every task come from: the same for all, so summed once
        fused_map = sum(resize(stage_map, stage_maps[-1].shape[-2:]) for stage_map in stage_maps)
        outputs = {task: module(fused_map, *stage_maps) for task, module in self.task_modules.items()}
        return {task: x for task, (x, _) in outputs.items()}, {task: state for task, (_, state) in outputs.items()}


# ----------------------------------------------------------------------------------------------------------------------
# Inter-task EM-interactive module (Sec. 3.3, Fig. 4)


def init_bases(num_bases: int, hidden_size: int) -> Tensor:
    """mu^(0) before training: unit rows `(K, C)`, orthogonal where K <= C, and the same in every model."""
    bases = torch.empty(num_bases, hidden_size, dtype=torch.float32, device="cpu")
    nn.init.orthogonal_(bases, generator=torch.Generator("cpu").manual_seed(0))
    return F.normalize(bases, dim=-1)


def expectation_step(states: Tensor, bases: Tensor, temperature: float = 1.0) -> Tensor:
    """E step, Eq. (7)-(8): responsibilities `(..., N, K)` of bases `(..., K, C)` for states `(..., N, C)`."""
    return (states @ bases.transpose(-1, -2) / temperature).softmax(dim=-1)


def maximization_step(states: Tensor, responsibilities: Tensor) -> Tensor:
    """M step, Eq. (9): bases `(..., K, C)`, the weighted mean of the states, brought to unit length as in EMANet."""
    weights = responsibilities / (responsibilities.sum(dim=-2, keepdim=True) + 1e-6)
    return F.normalize(weights.transpose(-1, -2) @ states, dim=-1)


@torch.no_grad()
def expectation_maximization(states: Tensor, bases: Tensor, num_iterations: int, temperature: float = 1.0) -> Tensor:
    """R alternations of Eq. (8) and Eq. (9) from the initial bases `(K, C)`; -> task bases `(..., K, C)`."""
    for _ in range(num_iterations):
        bases = maximization_step(states, expectation_step(states, bases, temperature))
    return bases


def consensus(task_bases: Tensor) -> Tensor:
    """Eq. (10): the mean of the bases `(B, T, K, C)` over the tasks, `(B, K, C)`."""
    return task_bases.mean(dim=1)


def moving_average(initial_bases: Tensor, bases: Tensor, momentum: float) -> Tensor:
    """mu^(0) <- alpha mu^(0) + (1 - alpha) mu, end of Sec. 3.3, its rows brought back to unit length.

    Bases that are not finite (an overflow in half precision) leave mu^(0) as it is.
    """
    updated = F.normalize(momentum * initial_bases + (1 - momentum) * bases, dim=-1)
    return torch.where(updated.isfinite().all(), updated, initial_bases)


def mean_over_images(values: Tensor) -> Tensor:
    """Mean of `(B, ...)` over the images of all ranks: 1 rank x 8 images and 2 x 4 give the same."""
    total, num_images = values.sum(dim=0), torch.tensor(float(values.shape[0]), device=values.device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        dist.all_reduce(num_images)
    return total / num_images


class SEMInterTaskState(NamedTuple):
    """Of one decoder stage: responsibilities `(B, T, K, H, W)` and consensus bases `(B, K, C)`."""

    responsibilities: Tensor
    bases: Tensor


class SEMInterTaskModule(nn.Module):
    """The tasks meet in K shared bases: each is rebuilt from the consensus of all."""

    def __init__(self, config: SEMConfig, hidden_size: int):
        super().__init__()
        self.num_iterations = config.num_em_iterations
        self.temperature = config.em_temperature
        self.norm = nn.LayerNorm(hidden_size)
        self.project_in = nn.Linear(hidden_size, hidden_size)  # a 1x1 convolution, on tokens
        self.project_out = nn.Linear(hidden_size, hidden_size)
        bases = init_bases(config.num_bases, hidden_size)
        # on the device that modules are built on, which may be the meta device
        self.initial_bases = nn.Buffer(torch.empty(bases.shape, dtype=bases.dtype).copy_(bases))

    def _apply(self, fn: Callable, recurse: bool = True):
        # the moving average creeps by less than half precision can hold: no cast of the model touches it
        bases = self.initial_bases
        super()._apply(fn, recurse)
        if self.initial_bases.dtype != torch.float32:
            self.initial_bases = bases.to(self.initial_bases.device)
        return self

    def forward(self, task_maps: dict[str, Tensor]) -> tuple[dict[str, Tensor], SEMInterTaskState]:
        """`{task: (B, C, H, W)}` -> the same, rebuilt, and how."""
        size = next(iter(task_maps.values())).shape[-2:]
        tokens = torch.stack([to_tokens(task_map) for task_map in task_maps.values()], dim=1)  # (B, T, N, C)
        states = self.project_in(self.norm(tokens))
        with maybe_autocast(states.device.type, enabled=False):
            reconstructed_states, responsibilities, consensus_bases = self.interact(states.float())
        tokens = tokens + self.project_out(reconstructed_states.to(states.dtype))
        rebuilt_maps = {task: to_map(tokens[:, index], size) for index, task in enumerate(task_maps)}
        responsibility_maps = responsibilities.transpose(-1, -2).unflatten(-1, size)
        return rebuilt_maps, SEMInterTaskState(responsibility_maps, consensus_bases)

    def interact(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """X `(B, T, N, C)` -> X~ = A mu^(R) of the same shape, A `(B, T, N, K)` and mu^(R) `(B, K, C)`.

        The iterations run without gradient (EMANet); the last E step is taken again with it, so that the features learn
        through A.
        """
        task_bases = expectation_maximization(states, self.initial_bases, self.num_iterations, self.temperature)
        if self.num_iterations == 0:
            task_bases = task_bases.repeat(*states.shape[:2], 1, 1)  # not expand: the moving average writes in place
        responsibilities = expectation_step(states, task_bases, self.temperature)  # (B, T, N, K)
        consensus_bases = consensus(task_bases)
        return responsibilities @ consensus_bases.unsqueeze(1), responsibilities, consensus_bases


# ----------------------------------------------------------------------------------------------------------------------
# Decoder (end of Sec. 3.3)


class SEMSpatialReductionAttention(nn.Module):
    """Self-attention whose keys and values live on a coarser grid (PVT)."""

    def __init__(self, config: SEMConfig, hidden_size: int, num_heads: int, sr_ratio: int):
        super().__init__()
        self.attention = SEMAttention(config, hidden_size, num_heads)
        self.reduction = None
        if sr_ratio > 1:
            self.reduction = nn.Sequential(
                nn.Conv2d(hidden_size, hidden_size, sr_ratio, stride=sr_ratio), LayerNorm2d(hidden_size)
            )

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """`(B, H * W, C)` -> the same shape."""
        reduced = tokens if self.reduction is None else to_tokens(self.reduction(to_map(tokens, size)))
        attended, _ = self.attention(tokens, reduced)
        return attended


class SEMDecoderBlock(GradientCheckpointingLayer):
    """One task in one decoder stage: upsample, add the encoder feature, refine by light self-attention."""

    def __init__(self, config: SEMConfig, in_channels: int, stage: int):
        super().__init__()
        hidden_size = config.decoder_hidden_sizes[stage]
        self.projection = nn.Conv2d(in_channels, hidden_size, 1)
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = SEMSpatialReductionAttention(
            config, hidden_size, config.decoder_num_attention_heads[stage], config.sr_ratios[stage]
        )
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp = SEMMLP(hidden_size, config.mlp_ratio)

    def forward(self, task_map: Tensor, encoder_map: Tensor) -> Tensor:
        """`(B, C_in, h, w)` and `(B, C, H, W)` -> `(B, C, H, W)`."""
        size = encoder_map.shape[-2:]
        # projecting before upsampling is the same map, at a quarter of the cost
        tokens = to_tokens(resize(self.projection(task_map), size) + encoder_map)
        tokens = tokens + self.attention(self.attention_norm(tokens), size)
        tokens = tokens + self.mlp(self.mlp_norm(tokens))
        return to_map(tokens, size)


class SEMDecoderStage(nn.Module):
    """All tasks in one decoder stage, and where they meet."""

    def __init__(self, config: SEMConfig, in_channels: int, encoder_channels: int, stage: int):
        super().__init__()
        hidden_size = config.decoder_hidden_sizes[stage]
        self.lateral = nn.Conv2d(encoder_channels, hidden_size, 1)
        self.blocks = nn.ModuleDict({task: SEMDecoderBlock(config, in_channels, stage) for task in config.tasks})
        self.inter_task = SEMInterTaskModule(config, hidden_size) if stage < config.inter_task_stages else None

    def forward(
        self, task_maps: dict[str, Tensor], feature_map: Tensor
    ) -> tuple[dict[str, Tensor], SEMInterTaskState | None]:
        """`{task: (B, C_in, h, w)}` and `(B, C_s, H, W)` -> `{task: (B, C, H, W)}`, and how the tasks met."""
        encoder_map = self.lateral(feature_map)
        task_maps = {task: self.blocks[task](task_map, encoder_map) for task, task_map in task_maps.items()}
        return (task_maps, None) if self.inter_task is None else self.inter_task(task_maps)


class SEMDecoder(nn.Module):
    """Four stages from the deepest stride to stride 4."""

    def __init__(self, config: SEMConfig, channels: list[int]):
        super().__init__()
        in_channels = [config.hidden_size, *config.decoder_hidden_sizes[:-1]]
        self.stages = nn.ModuleList(
            SEMDecoderStage(config, in_width, encoder_width, stage)
            for stage, (in_width, encoder_width) in enumerate(zip(in_channels, reversed(channels), strict=True))
        )

    def forward(
        self, task_maps: dict[str, Tensor], feature_maps: list[Tensor]
    ) -> tuple[dict[str, Tensor], list[SEMInterTaskState]]:
        """`{task: X^t}` and S encoder maps -> `{task: (B, C, H / 4, W / 4)}`, and how the tasks met in each stage."""
        states = []
        for stage, feature_map in zip(self.stages, reversed(feature_maps), strict=True):
            task_maps, state = stage(task_maps, feature_map)
            states += [] if state is None else [state]
        return task_maps, states


# ----------------------------------------------------------------------------------------------------------------------
# Model


class SEMTaskHead(nn.Sequential):
    """3x3 convolution block and 1x1 convolution to the channels of one task."""

    def __init__(self, in_channels: int, hidden_channels: int, num_labels: int):
        super().__init__(SEMConvBlock(in_channels, hidden_channels), nn.Conv2d(hidden_channels, num_labels, 1))


class SEMPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation."""

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
        """`False`: `_init_weights` keeps to loaded weights itself, and must see modules without tensors of their own."""
        return False

    def get_input_embeddings(self) -> None:
        """`None`: nothing is looked up in a table, which FSDP would shard on its own."""
        return None

    @classmethod
    def from_pretrained_backbone(cls, config: SEMConfig, source: str | None = None) -> "SEMPreTrainedModel":
        """Builds the model around a pretrained encoder, and logs which weights were loaded; everything else is new.

        Args:
            config ([`SEMConfig`]):
                Of the whole model.
            source (`str`, *optional*):
                For a timm encoder a file of weights in timm's format; for one of transformers a folder or Hub name.
                `None` is what `backbone_config` names: timm's weights of `model_name`, or where the configuration itself was
                loaded from.

        Raises:
            OSError: If the weights cannot be had, or are those of another encoder.
            ValueError: If nothing names them.
        """
        model = cls(config)
        loaded = load_backbone_weights(model.base_model.backbone, source)
        logger.warning(f"The encoder starts from {loaded}. The rest of {cls.__name__} is new: train it before use.")
        return model

    def _upload_modified_files(self, working_dir: str, repo_id: str, *args, **kwargs):
        """The last step of `push_to_hub`: a new repository gets a card of ours, one that has a card keeps it.

        Scores are not in it: nobody knows whether they still hold for these weights. `scripts/push_to_hub.py` uploads a
        model with its scores.
        """
        card = Path(working_dir, "README.md")
        if "[More Information Needed]" in card.read_text(encoding="utf-8") and TEMPLATE.is_file():
            make_card(self.config, repo_id.split("/")[-1], model_id=repo_id).save(card)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SEMOffsetNetwork):
            init.zeros_(module.offset.weight)
        elif isinstance(module, SEMModel):
            for name in module.unused_parameters:
                # Distributed training waits for the gradient of whatever could have one. Here and not in `__init__`: loading
                # puts new, trainable parameters in the place of those
                module.backbone.get_parameter(name).requires_grad_(False)
        elif isinstance(module, SEMInterTaskModule):
            # states of unit variance whatever the width, so that tau = 1 tells bases apart from the first step on
            width = module.project_in.in_features
            init.normal_(module.project_in.weight, std=width**-0.5)
            # X~ is made of bases of unit length, not of unit variance: without this, nobody would hear the other tasks
            init.normal_(module.project_out.weight, std=self.config.initializer_range * width**0.5)
            init.copy_(module.initial_bases, init_bases(*module.initial_bases.shape))


class SEMModel(SEMPreTrainedModel):
    """Encoder, intra-task modules and decoder: features of every task at a quarter of the image size."""

    def __init__(self, config: SEMConfig):
        super().__init__(config)
        # a training loop that accumulates over n batches takes its n-th root
        self.bases_momentum = config.bases_momentum
        self.use_decoder = config.use_decoder
        self.backbone = build_backbone(config.backbone_config)
        survey = survey_backbone(self.backbone, num_maps=len(self.backbone.channels) if config.use_decoder else 1)
        self.unused_parameters = survey.unused_parameters
        strides, channels = survey.strides, list(self.backbone.channels)
        self.min_size = int(min(strides))
        self.size_divisor = int(max(strides))
        self.deepest_stride = self.output_stride = max(strides)
        self.output_channels = channels[-1]
        self.reassembly = self.intra_task = self.decoder = None
        self.decoder_strides = []
        if config.use_decoder:
            self._build_decoder(config, strides, channels)
        self.post_init()

    def _build_decoder(self, config: SEMConfig, strides: list[Fraction], channels: list[int]) -> None:
        num_stages = len(config.decoder_hidden_sizes)
        factors = config.reassemble_factors
        if factors is None and len(set(strides)) == 1:
            factors = [2.0 ** (num_stages - 2 - stage) for stage in range(num_stages)]  # 4, 2, 1, 0.5
        if factors is not None:
            widths = list(reversed(config.decoder_hidden_sizes))
            self.reassembly = SEMFeatureReassembly(channels, widths, factors)
            strides = [s / Fraction(f).limit_denominator() for s, f in zip(strides, factors, strict=True)]
            channels = widths
        # every stage has a whole number of pixels, and of deformed points
        steps = [s * r for s, r in zip(strides, config.offset_strides, strict=True)]
        self.size_divisor = math.lcm(*(round(step) for step in (max(strides), *steps)))
        self.decoder_strides = list(reversed(strides))
        self.deepest_stride, self.output_stride = max(strides), min(strides)
        self.output_channels = config.decoder_hidden_sizes[-1]
        self.intra_task = SEMIntraTask(config, channels)
        self.decoder = SEMDecoder(config, channels)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.FloatTensor, output_sem_states: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> SEMModelOutput:
        r"""Encodes an image and decodes the features of every task.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images of any size not below one patch.
            output_sem_states (`bool`, *optional*, defaults to `False`):
                Whether to return [`SEMStates`].
            **kwargs:
                `output_hidden_states`, `output_attentions` and `return_dict`, as in every transformers model.

        Raises:
            ValueError: If the images have another number of dimensions or channels, or are smaller than a patch.
        """
        self._check_pixel_values(pixel_values)
        size = pixel_values.shape[-2:]
        for name in ("output_hidden_states", "output_attentions"):
            kwargs.setdefault(name, getattr(self.config, name))
        outputs = self.backbone.forward_with_filtered_kwargs(self._pad(pixel_values), **kwargs)
        feature_maps = list(outputs.feature_maps)
        last_hidden_state = feature_maps[-1]
        intra_task_maps, intra_task_states, inter_task_states = None, {}, []
        if not self.use_decoder:
            task_maps = dict.fromkeys(self.config.tasks, last_hidden_state)
        else:
            feature_maps = feature_maps if self.reassembly is None else self.reassembly(feature_maps)
            intra_task_maps, intra_task_states = self.intra_task(feature_maps)
            task_maps, inter_task_states = self.decoder(intra_task_maps, feature_maps)
            if self.training:
                self.update_initial_bases([state.bases for state in inter_task_states])
        task_hidden_states = {task: cover(task_map, size, self.output_stride) for task, task_map in task_maps.items()}
        sem_states = None
        if output_sem_states:
            sem_states = self.collect_states(task_hidden_states, intra_task_states, inter_task_states, size)
        return SEMModelOutput(
            last_hidden_state=last_hidden_state,
            task_hidden_states=task_hidden_states,
            intra_task_hidden_states=intra_task_maps
            and {task: cover(task_map, size, self.deepest_stride) for task, task_map in intra_task_maps.items()},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            sem_states=sem_states,
        )

    def collect_states(
        self,
        task_hidden_states: dict[str, Tensor],
        intra_task_states: dict[str, SEMIntraTaskState],
        inter_task_states: list[SEMInterTaskState],
        size: tuple[int, int],
    ) -> SEMStates:
        """Relates what the modules saw to the image of `size`, without its padding."""
        padding = [1 + (-edge % self.size_divisor) / edge for edge in size]
        return SEMStates(
            features=task_hidden_states,
            points={
                task: tuple((points + 1) * points.new_tensor(padding) - 1 for points in state.points)
                for task, state in intra_task_states.items()
            },
            stage_weights={task: state.stage_weights for task, state in intra_task_states.items()},
            intra_task_attentions={task: state.attention for task, state in intra_task_states.items()},
            responsibilities=tuple(
                {
                    task: cover(state.responsibilities[:, index], size, stride)
                    for index, task in enumerate(self.config.tasks)
                }
                for stride, state in zip(self.decoder_strides, inter_task_states, strict=False)
            ),
            bases=tuple(state.bases for state in inter_task_states),
        )

    @torch.no_grad()
    def update_initial_bases(self, stage_bases: list[Tensor]) -> None:
        """Moves mu^(0) of every stage towards the consensus of this batch, once per training forward.

        It happens here and not in the inter-task module, so that gradient checkpointing cannot repeat it.
        """
        # the deepest stages hold the modules
        for stage, bases in zip(self.decoder.stages, stage_bases, strict=False):
            initial_bases = stage.inter_task.initial_bases
            initial_bases.copy_(moving_average(initial_bases, mean_over_images(bases), self.bases_momentum))

    def _check_pixel_values(self, pixel_values: Tensor) -> None:
        if pixel_values.ndim != 4:
            raise ValueError(
                f"`pixel_values` has the shape (batch_size, num_channels, height, width); got "
                f"{tuple(pixel_values.shape)}. Use the image processor, or add a batch dimension."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"`pixel_values` are normalised floats; got {pixel_values.dtype}. Use the image processor."
            )
        num_channels, height, width = pixel_values.shape[1:]
        if num_channels != self.config.backbone_config.num_channels:
            raise ValueError(
                f"The model was built for images of {self.config.backbone_config.num_channels} channels; got {num_channels}."
            )
        if min(height, width) < self.min_size:
            raise ValueError(
                f"An image must be at least one patch ({self.min_size} x {self.min_size} pixels) large; got "
                f"{height} x {width}. Enlarge it first, for example with the image processor's `size`."
            )

    def _pad(self, pixel_values: Tensor) -> Tensor:
        """Zeros at the right and bottom up to a multiple of `size_divisor`, so that every stage has its exact stride."""
        height, width = pixel_values.shape[-2:]
        return F.pad(pixel_values, (0, -width % self.size_divisor, 0, -height % self.size_divisor))


def invalid_labels(task: str, logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels without a valid pixel: on a rank that has no others, its share in the loss that all ranks have in common."""
    spec = get_task(task)
    shape = spec.label_shape(len(logits), size)
    return torch.full(shape, spec.kind.invalid_value, dtype=spec.dtype, device=logits.device)


class SEMForMultiTaskDensePrediction(SEMPreTrainedModel):
    """SEM with one head per task: one forward pass gives every dense prediction.

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
        super().__init__(config)
        self.sem = SEMModel(config)
        in_channels = self.sem.output_channels
        hidden_channels = in_channels if config.use_decoder else config.hidden_size
        self.heads = nn.ModuleDict(
            {task: SEMTaskHead(in_channels, hidden_channels, width) for task, width in config.task_num_labels.items()}
        )
        self.auxiliary_heads = None
        if config.use_decoder and config.use_auxiliary_heads:
            self.auxiliary_heads = nn.ModuleDict(
                {task: nn.Conv2d(config.hidden_size, width, 1) for task, width in config.task_num_labels.items()}
            )
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
                Normalised images of any size not below one patch.
            labels (`dict[str, torch.Tensor]`, *optional*):
                Labels of any subset of the tasks, each in the task's format: `(batch_size, height, width)` ids with 255
                invalid, or `(batch_size, channels, height, width)` measurements with NaN invalid. In distributed
                training losses and bases are means over all ranks, so every rank gives labels or none does; of which
                tasks is up to it.
            output_sem_states (`bool`, *optional*, defaults to `False`):
                Whether to return [`SEMStates`]: where the tasks look and how they meet.
            **kwargs:
                `output_hidden_states`, `output_attentions` and `return_dict`, as in every transformers model.

        Raises:
            ValueError: If a task is not the model's, or a label has the wrong shape or ids beyond the head.
        """
        outputs = self.sem(pixel_values, output_sem_states, **{**kwargs, "return_dict": True})
        logits = {task: head(outputs.task_hidden_states[task]) for task, head in self.heads.items()}
        auxiliary_logits = None
        if self.auxiliary_heads is not None and (self.training or labels is not None):
            auxiliary_logits = {
                task: head(outputs.intra_task_hidden_states[task]) for task, head in self.auxiliary_heads.items()
            }
        loss, losses = None, None
        if labels is not None:
            size = tuple(pixel_values.shape[-2:])
            self._check_labels(logits, labels, size)
            if self.training and dist.is_available() and dist.is_initialized():
                missing = [task for task in logits if task not in labels]
                labels = {**labels, **{task: invalid_labels(task, logits[task], size) for task in missing}}
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

    def compute_loss(
        self, logits: dict[str, Tensor], auxiliary_logits: dict[str, Tensor] | None, labels: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum over the tasks, on logits upsampled to the label size, and each task's own loss."""
        losses = {task: self.task_loss(task, logits[task], labels[task]) for task in logits if task in labels}
        total = sum(self.config.task_loss_weights[task] * loss for task, loss in losses.items())
        if auxiliary_logits is not None:
            total = total + self.config.auxiliary_loss_weight * sum(
                self.config.task_loss_weights[task] * self.task_loss(task, auxiliary_logits[task], labels[task])
                for task in losses
            )
        return total, losses

    def task_loss(self, task: str, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of one task at the size of its labels."""
        logits = resize(logits.float(), labels.shape[-2:])
        return get_task(task).loss(logits, labels, **self.config.task_loss_kwargs.get(task, {}))

    def _check_labels(self, logits: dict[str, Tensor], labels: dict[str, Tensor], size: tuple[int, int]) -> None:
        if not isinstance(labels, Mapping) or not labels:
            raise ValueError(f"`labels` is {{task: tensor}} of at least one of the tasks {list(logits)}, or None.")
        for task, label in labels.items():
            if task not in logits:
                raise ValueError(f"`labels` names the task {task!r}, which this model lacks; it has {list(logits)}.")
            if not isinstance(label, Tensor):
                raise ValueError(
                    f"Labels of {task} are a tensor; got {type(label).__name__}. Use the image processor."
                )
            spec = get_task(task)
            expected = spec.label_shape(len(logits[task]), size)
            if label.shape != expected:
                raise ValueError(
                    f"Labels of {task} have the batch and the size of the images, {expected}; got {tuple(label.shape)}."
                )
            both_float = label.dtype.is_floating_point and spec.dtype.is_floating_point
            if label.dtype != spec.dtype and not both_float:
                raise ValueError(f"Labels of {task} are {spec.dtype}; got {label.dtype}.")
            if not label.dtype.is_floating_point and not torch.compiler.is_compiling():
                self._check_ids(task, label, num_labels=logits[task].shape[1])

    @staticmethod
    def _check_ids(task: str, label: Tensor, num_labels: int) -> None:
        stray = label[(label != INVALID_ID) & ((label < 0) | (label >= num_labels))]
        if stray.numel():
            raise ValueError(
                f"Labels of {task} are ids 0 to {num_labels - 1}, or {INVALID_ID} where invalid; got {stray[0].item()}. Map "
                f"the ids of your data, or give `task_num_labels[{task!r}]` the width they need."
            )


AutoBackbone.register(SEMTimmBackboneConfig, SEMTimmBackbone, exist_ok=True)
AutoModel.register(SEMConfig, SEMModel, exist_ok=True)
AutoModelForSemanticSegmentation.register(SEMConfig, SEMForMultiTaskDensePrediction, exist_ok=True)


__all__ = ["SEMForMultiTaskDensePrediction", "SEMModel", "SEMPreTrainedModel"]
