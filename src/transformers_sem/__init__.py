"""Synergy Embedding Models (SEM): one forward pass of one image, every dense prediction."""

from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation

from .backbone_timm import SEMTimmBackbone
from .configuration_sem import SEMConfig, SEMTimmBackboneConfig
from .evaluation import MultiTaskMetric
from .image_processing_sem import SEMImageProcessor
from .modeling_sem import SEMForMultiTaskDensePrediction, SEMModel
from .tasks import TASKS, LabelFormat, Metric, TaskSpec, register_task


AutoConfig.register(SEMConfig.model_type, SEMConfig, exist_ok=True)
AutoBackbone.register(SEMTimmBackboneConfig, SEMTimmBackbone, exist_ok=True)
AutoModel.register(SEMConfig, SEMModel, exist_ok=True)
AutoModelForSemanticSegmentation.register(SEMConfig, SEMForMultiTaskDensePrediction, exist_ok=True)
AutoImageProcessor.register(SEMConfig, image_processor_classes={"torchvision": SEMImageProcessor}, exist_ok=True)


__all__ = [
    "TASKS",
    "LabelFormat",
    "Metric",
    "MultiTaskMetric",
    "SEMConfig",
    "SEMForMultiTaskDensePrediction",
    "SEMImageProcessor",
    "SEMModel",
    "SEMTimmBackbone",
    "SEMTimmBackboneConfig",
    "TaskSpec",
    "register_task",
]
