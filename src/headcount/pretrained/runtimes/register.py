"""Making our own models, trimmed and unequal ones, known to transformers' auto classes.

``AutoModelForCausalLM.from_pretrained`` then loads such a folder with the code of the installed headcount,
so that no code of the folder is run. It only adds model types of our own (``headcount_*``, ``unequal_llama``).
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

AUTO = "transformers.models.auto.modeling_auto"
MODELING = ("headcount.pretrained.runtimes.modeling_headcount", "headcount.pretrained.runtimes.modeling_unequal")


def register_trimmed() -> None:
    """Add our own model types to transformers' auto classes; doing it again changes nothing."""
    import transformers

    from headcount.pretrained.runtimes import modeling_headcount, modeling_unequal

    for model_type, (config_class, models) in (modeling_headcount.CLASSES | modeling_unequal.CLASSES).items():
        transformers.AutoConfig.register(model_type, config_class, exist_ok=True)
        for auto, model_class in models.items():
            getattr(transformers, auto).register(config_class, model_class, exist_ok=True)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Registers once transformers' auto classes are imported, so that importing headcount need not import torch.

    It waits for the outermost import of a transformers module to end: the auto classes may be imported on the way
    (``from transformers import LlamaForCausalLM`` does), and our models need what is not finished then.
    """

    def __init__(self) -> None:
        self.searching = self.loading = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith("transformers.") or self.searching or self.loading:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.searching = False
        if spec is None or spec.loader is None:
            return None
        spec.loader = _Outermost(self, spec.loader)
        return spec

    def loaded(self) -> None:
        """An outermost import has ended."""
        if AUTO not in sys.modules or self not in sys.meta_path:
            return
        sys.meta_path.remove(self)
        # Inside the import of a modeling file itself there is nothing to register yet: who imports it, does.
        if not any(name in sys.modules for name in MODELING):
            register_trimmed()


class _Outermost(importlib.abc.Loader):
    """A module's own loader, which tells ``finder`` when it is done."""

    def __init__(self, finder: _AfterImport, own: importlib.abc.Loader) -> None:
        self.finder, self.own = finder, own

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.own
        outermost = not self.finder.loading
        self.finder.loading = True
        try:
            self.own.exec_module(module)
        finally:
            if outermost:
                self.finder.loading = False
        if outermost:
            self.finder.loaded()


def register_with_transformers() -> None:
    """Register now if transformers is imported, else as soon as it is."""
    if AUTO in sys.modules:
        register_trimmed()
    else:
        sys.meta_path.insert(0, _AfterImport())
