"""Which models there are, by name."""

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
    """Add a kind of model of your own: ``headcount learn`` and sweeps then take it and the options that it declares.

    Raises ``ValueError`` where the name is taken, or an option is another model's by name alone. Usable as a decorator.
    """
    merged(*declared_options(), *options_of(config))
    return _MODELS.register(config.name, config)


def declared_options() -> tuple[Option, ...]:
    """Every option that a model takes from commands and sweeps, once.

    >>> [option.name for option in declared_options()][:4]
    ['width', 'inner', 'depth', 'heads']
    """
    return _declared(tuple(_MODELS))


@lru_cache(maxsize=8)
def _declared(known: tuple[type[ModelConfig], ...]) -> tuple[Option, ...]:
    return merged(*(option for config in known for option in options_of(config)))


def names() -> tuple[str, ...]:
    """The names that ``config`` takes."""
    return _MODELS.names()


def config_class(name: str) -> type[ModelConfig]:
    """The config of one kind of model; its fields are the options that it takes."""
    return _MODELS.get(name)


def config(name: str, **options: Any) -> ModelConfig:
    """The config of the model ``name``; what is left out takes its default.

    Raises HeadcountError for an unknown name, an option that the model lacks, or a value out of range.

    >>> config("lstm", width=20).finer
    20
    """
    chosen = config_class(name)
    known = [field.name for field in dataclasses.fields(chosen)]
    for option in options:
        if option not in known:
            raise HeadcountError(f"the model {name} has no option {option!r}", fix=f"its own are {', '.join(known)}")
    return chosen(**options)
