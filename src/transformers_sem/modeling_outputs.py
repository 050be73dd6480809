"""Outputs of the SEM models."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class SEMStates(ModelOutput):
    """Intermediate states of SEM, returned with `output_sem_states=True`.

    Args:
        features (`dict[str, torch.FloatTensor]`):
            Input of each head, `(batch_size, channels, height / 4, width / 4)`.
        points (`dict[str, tuple[torch.FloatTensor]]`):
            Deformed points of Eq. (1), for each task and encoder stage `(batch_size, num_points, 2)`, as (y, x), from -1
            to 1 over the image; points above 1 lie in the padding.
        stage_weights (`dict[str, torch.FloatTensor]`):
            Weights of Eq. (3), `(batch_size, num_points of all stages, num_stages)`. They sum to 1 over the stages.
        intra_task_attentions (`dict[str, torch.FloatTensor]`):
            Attention weights of the pixels of the deepest map over the points,
            `(batch_size, num_heads, height * width / 32^2, num_points of all stages)`.
            `None` unless the attention implementation is `"eager"`.
        responsibilities (`tuple[dict[str, torch.FloatTensor]]`):
            A of Eq. (8), for each decoder stage with an inter-task module and each task `(batch_size, num_bases, height,
            width)` at the size of that stage. They sum to 1 over the bases.
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
            Deepest feature map of the encoder, for the padded image.
        task_hidden_states (`dict[str, torch.FloatTensor]`):
            Decoded features of each task, `(batch_size, decoder_hidden_sizes[-1], height / 4, width / 4)`.
        intra_task_hidden_states (`dict[str, torch.FloatTensor]`, *optional*):
            Features of each task before the decoder, `(batch_size, hidden_size, height / 32, width / 32)`.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            Hidden states of the encoder, with `output_hidden_states=True`.
        attentions (`tuple[torch.FloatTensor]`, *optional*):
            Attentions of the encoder, with `output_attentions=True`, if the encoder returns them.
        sem_states ([`SEMStates`], *optional*):
            Points, stage weights and responsibilities, with `output_sem_states=True`.
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
            Weighted sum of the losses of the tasks that have labels, with intermediate supervision.
        losses (`dict[str, torch.FloatTensor]`, *optional*):
            Unweighted loss of each task on its final logits.
        logits (`dict[str, torch.FloatTensor]`):
            Raw predictions of each task, `(batch_size, num_labels, height / 4, width / 4)`.
        auxiliary_logits (`dict[str, torch.FloatTensor]`, *optional*):
            Predictions from the intra-task features, returned in training and where labels are given.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            Hidden states of the encoder, with `output_hidden_states=True`.
        attentions (`tuple[torch.FloatTensor]`, *optional*):
            Attentions of the encoder, with `output_attentions=True`, if the encoder returns them.
        sem_states ([`SEMStates`], *optional*):
            Points, stage weights and responsibilities, with `output_sem_states=True`.
    """

    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    logits: dict[str, torch.FloatTensor] | None = None
    auxiliary_logits: dict[str, torch.FloatTensor] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    sem_states: SEMStates | None = None


@dataclass
class SEMNormalEstimatorOutput(ModelOutput):
    """Output of [`SEMForNormalEstimation`], with the fields of transformers' models of normals.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*):
            Loss, where labels are given, as the multi-task model weights it.
        normals (`torch.FloatTensor` of shape `(batch_size, 3, height / 4, width / 4)`):
            Normals (x right, y down, z forward) before they are brought to unit length.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            Hidden states of the encoder, with `output_hidden_states=True`.
        attentions (`tuple[torch.FloatTensor]`, *optional*):
            Attentions of the encoder, with `output_attentions=True`, if the encoder returns them.
    """

    loss: torch.FloatTensor | None = None
    normals: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


__all__ = ["SEMModelOutput", "SEMMultiTaskOutput", "SEMNormalEstimatorOutput", "SEMStates"]
