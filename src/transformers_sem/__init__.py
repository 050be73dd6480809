"""Synergy Embedding Models (SEM): one forward pass of one image gives every dense prediction.

Importing the package registers its classes with transformers' Auto classes and its pipeline.
"""

from .backbone_timm import SEMTimmBackbone
from .configuration_sem import SEMConfig, SEMTimmBackboneConfig
from .data.collation import collate_rows
from .evaluation.boundary import boundary_counts, boundary_scores
from .evaluation.evaluate_metric import MultiTaskMetric
from .evaluation.metrics import METRICS, Metric, register_metric
from .evaluation.sums import multi_task_gain
from .image_processing_sem import SEMImageProcessor
from .modeling_sem import SEMForMultiTaskDensePrediction, SEMModel
from .pipeline_sem import MultiTaskDensePredictionPipeline
from .task_kinds import CLASS_IDS, METRES, PROBABILITY, UNIT_VECTORS, TaskKind
from .tasks import TASKS, TaskSpec, get_task, register_task


__version__ = "0.2.0"

__all__ = [
    "TASKS",
    "CLASS_IDS",
    "METRES",
    "METRICS",
    "Metric",
    "PROBABILITY",
    "TaskKind",
    "UNIT_VECTORS",
    "register_metric",
    "MultiTaskDensePredictionPipeline",
    "MultiTaskMetric",
    "SEMConfig",
    "SEMForMultiTaskDensePrediction",
    "SEMImageProcessor",
    "SEMModel",
    "SEMTimmBackbone",
    "SEMTimmBackboneConfig",
    "TaskSpec",
    "boundary_counts",
    "boundary_scores",
    "collate_rows",
    "get_task",
    "multi_task_gain",
    "register_task",
]
