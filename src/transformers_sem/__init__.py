"""Synergy Embedding Models (SEM): one forward pass of one image, every dense prediction."""

import importlib
import pkgutil

from . import auto_registration


__version__ = "0.1.0"

_EXPORTS = {
    "SEMConfig": "configuration_sem",
    "SEMTimmBackboneConfig": "configuration_sem",
    "SEMTimmBackbone": "backbone_timm",
    "SEMModel": "modeling_sem",
    "SEMForMultiTaskDensePrediction": "modeling_sem",
    "SEMImageProcessor": "image_processing_sem",
    "MultiTaskDensePredictionPipeline": "pipeline_sem",
    "TASKS": "tasks",
    "LabelFormat": "tasks",
    "Metric": "tasks",
    "TaskSpec": "tasks",
    "get_task": "tasks",
    "register_task": "tasks",
    "MultiTaskMetric": "evaluation",
    "multi_task_gain": "scoring",
}
_MODULES = {module.name for module in pkgutil.iter_modules(__path__)}

__all__ = list(_EXPORTS)


def __getattr__(name: str):
    """Imports what is asked for (PEP 562): model classes cost seconds, a task table does not."""
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])


auto_registration.register()
