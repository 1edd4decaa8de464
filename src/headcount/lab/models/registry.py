"""Which models there are, by name."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from headcount.core.errors import HeadcountError
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
_MODELS = {config.name: config for config in _ALL}


def names() -> tuple[str, ...]:
    """The names that ``config`` takes."""
    return tuple(_MODELS)


def config_class(name: str) -> type[ModelConfig]:
    """The config of one kind of model; its fields are the options that it takes."""
    if name not in _MODELS:
        close = difflib.get_close_matches(name, _MODELS, n=1)
        raise HeadcountError(
            f"there is no model {name!r}",
            fix=f"did you mean {close[0]}?" if close else f"choose one of {', '.join(_MODELS)}",
        )
    return _MODELS[name]


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
