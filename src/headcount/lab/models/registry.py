"""The registry of models, by name."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

from headcount.core.errors import HeadcountError
from headcount.core.names import Registry
from headcount.core.options import Option, merged, options_of
from headcount.lab.models.attention import AttentionConfig, StrassenConfig, ThirdOrderConfig
from headcount.lab.models.base import ModelConfig
from headcount.lab.models.flat import FlatConfig, TokenwiseConfig
from headcount.lab.models.positional import PositionalConfig
from headcount.lab.models.recurrent import GRUConfig, LSTMConfig, RNNConfig
from headcount.lab.models.state_space import StateSpaceConfig

_ALL: tuple[type[ModelConfig], ...] = (
    AttentionConfig,
    ThirdOrderConfig,
    StrassenConfig,
    LSTMConfig,
    GRUConfig,
    RNNConfig,
    StateSpaceConfig,
    FlatConfig,
    TokenwiseConfig,
    PositionalConfig,
)
_MODELS = Registry("model", ((config.name, config) for config in _ALL))


def register(config: type[ModelConfig]) -> type[ModelConfig]:
    """Register a custom kind of model; ``headcount learn`` and sweeps then accept it and its declared options.

    Raises ``ValueError`` if the name is taken, or if an option differs from another model's option of the same name.
    Usable as a decorator.
    """
    merged(*declared_options(), *options_of(config))
    return _MODELS.register(config.name, config)


def declared_options() -> tuple[Option, ...]:
    """All options that models accept from commands and sweeps, without duplicates.

    >>> [option.name for option in declared_options()][:4]
    ['width', 'inner', 'depth', 'heads']
    """
    return _declared(tuple(_MODELS))


@lru_cache(maxsize=8)
def _declared(known: tuple[type[ModelConfig], ...]) -> tuple[Option, ...]:
    return merged(*(option for config in known for option in options_of(config)))


def names() -> tuple[str, ...]:
    """The names accepted by ``config``."""
    return _MODELS.names()


def config_class(name: str) -> type[ModelConfig]:
    """The config class of one kind of model; its fields are the accepted options."""
    return _MODELS.get(name)


def config(name: str, **options: Any) -> ModelConfig:
    """The config of the model ``name``; omitted options take their defaults.

    Raises HeadcountError for an unknown name, an option that the model does not have, or a value out of range.

    >>> config("lstm", width=20).finer
    20
    """
    chosen = config_class(name)
    known = [field.name for field in dataclasses.fields(chosen)]
    for option in options:
        if option not in known:
            raise HeadcountError(f"the model {name} has no option {option!r}", fix=f"its own are {', '.join(known)}")
    return chosen(**options)
