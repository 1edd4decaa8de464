"""Making trimmed models known to transformers' auto classes.

``AutoModelForCausalLM.from_pretrained`` then loads a trimmed folder with the code of the installed headcount,
so that no code of the folder is run. It only adds model types of our own (``headcount_*``).
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

AUTO = "transformers.models.auto.modeling_auto"
MODELING = "headcount.pretrained.modeling_headcount"


def register_trimmed() -> None:
    """Add the trimmed model types to transformers' auto classes; doing it again changes nothing."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from headcount.pretrained.modeling_headcount import CLASSES

    for model_type, (config_class, model_class) in CLASSES.items():
        AutoConfig.register(model_type, config_class, exist_ok=True)
        AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)


class _AfterImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Registers once transformers' auto classes are imported, so that importing headcount need not import torch."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        self.own = spec.loader
        spec.loader = self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.own
        self.own.exec_module(module)
        # Inside the import of the modeling file itself there is nothing to register yet: who imports it, does.
        if MODELING not in sys.modules:
            register_trimmed()


def register_with_transformers() -> None:
    """Register now if transformers is imported, else as soon as it is."""
    if AUTO in sys.modules:
        register_trimmed()
    else:
        sys.meta_path.insert(0, _AfterImport())
