"""Small trainable models that answer at every token: attention of order two and three, recurrent, state-space, MLP.

``config(name, **options)`` describes a model, ``sized`` scales it to a number of parameters, ``build`` creates it.
"""

from headcount.lab.models.base import ModelConfig, TokenModel, build, count, parameters
from headcount.lab.models.reading import Reading
from headcount.lab.models.registry import config, config_class, declared_options, names, register
from headcount.lab.models.sizing import sized

__all__ = [
    "ModelConfig",
    "Reading",
    "TokenModel",
    "build",
    "config",
    "config_class",
    "count",
    "declared_options",
    "names",
    "parameters",
    "register",
    "sized",
]
