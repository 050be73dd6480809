"""Brings our classes to transformers' Auto classes at the moment when transformers loads those.

Model and image processor need torchvision and torch's compiler: seconds that `import transformers_sem` should not cost
whoever only wants a configuration. Each of our modules registers its classes at its end; here it is imported right after
the module that holds the Auto class, which is before anybody can ask that class for anything.
"""

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


# Module of the Auto class -> our module that registers with it
REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": "transformers_sem.configuration_sem",
    "transformers.models.auto.modeling_auto": "transformers_sem.modeling_sem",
    "transformers.models.auto.image_processing_auto": "transformers_sem.image_processing_sem",
    "transformers.pipelines": "transformers_sem.pipeline_sem",
}


class _RegisterAfterImport(MetaPathFinder):
    """Lets Python find the modules of `REGISTRATIONS` as ever, and imports ours once they have been executed."""

    def find_spec(self, name: str, path=None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in REGISTRATIONS:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            importlib.import_module(REGISTRATIONS[name])

        spec.loader.exec_module = execute_and_register
        return spec


def register() -> None:
    """Registers with the Auto classes that are loaded already, and sees to the others."""
    for auto_module, module in REGISTRATIONS.items():
        if sys.modules.get(auto_module) is not None:  # None keeps a module from being imported
            importlib.import_module(module)
    sys.meta_path.insert(0, _RegisterAfterImport())
