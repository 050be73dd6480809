"""Synergy Embedding Models (SEM): one forward pass of one image gives every dense prediction.

Importing the package registers its classes with transformers' Auto classes and its pipeline.
"""

import transformers
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor

from .backbone_timm import SEMTimmBackbone
from .configuration_sem import SEMConfig, SEMTimmBackboneConfig
from .data.collation import collate_rows
from .evaluation.boundary import boundary_counts, boundary_scores
from .evaluation.evaluate_metric import MultiTaskMetric
from .evaluation.metrics import METRICS, Metric, register_metric
from .evaluation.sums import multi_task_gain
from .image_processing_sem import SEMImageProcessor
from .modeling_sem import (
    AUTO_MODELS,
    SEMForDepthEstimation,
    SEMForMultiTaskDensePrediction,
    SEMForNormalEstimation,
    SEMForSemanticSegmentation,
    SEMModel,
)
from .pipeline_sem import MultiTaskDensePredictionPipeline
from .task_kinds import CLASS_IDS, METRES, PROBABILITY, UNIT_VECTORS, TaskKind
from .tasks import TASKS, TaskSpec, get_task, register_task


__version__ = "0.2.0"

# Here and not in the modules, which travel with a checkpoint: its code must not replace that of the package
AutoConfig.register(SEMConfig.model_type, SEMConfig, exist_ok=True)
AutoConfig.register(SEMTimmBackboneConfig.model_type, SEMTimmBackboneConfig, exist_ok=True)
AutoBackbone.register(SEMTimmBackboneConfig, SEMTimmBackbone, exist_ok=True)
AutoImageProcessor.register(SEMConfig, image_processor_classes={"torchvision": SEMImageProcessor}, exist_ok=True)
for auto_class, model_class in AUTO_MODELS.items():
    getattr(transformers, auto_class).register(SEMConfig, model_class, exist_ok=True)


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
    "SEMForDepthEstimation",
    "SEMForMultiTaskDensePrediction",
    "SEMForNormalEstimation",
    "SEMForSemanticSegmentation",
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
