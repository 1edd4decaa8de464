"""One layer of attention over lags: position biases, with heads and dimensions independent of the token dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from headcount.core.errors import HeadcountError
from headcount.core.options import Option
from headcount.lab.models.base import HEADS, MLP, ModelConfig
from headcount.lab.models.reading import Reading

if TYPE_CHECKING:
    from jaxtyping import Float

Position = Literal["alibi", "alibi-fixed", "relative", "rope"]
POSITIONS: tuple[Position, ...] = get_args(Position)
POSITION = Option("position", "positional: what the logits are made from at each lag.", kind=Position, rank=2)
CONTEXT = Option("context", "positional: lags that a head sees.", rank=3)
CONTENT = Option("content", "positional: add queries and keys of the tokens.", kind=bool, rank=3)
BASE = 10_000.0
_STEEPEST, _FLATTEST = 40.0, 1e-9
"""Range of slopes whose biases float32 can distinguish from one-token and from uniform attention."""


@dataclass(frozen=True)
class PositionalConfig(ModelConfig):
    """y_t = sum_h O_h sum_{s < L} a_h(s) V_h x_{t-s}, with kernels a_h = softmax of logits over the last L tokens.

    width: H d, the dimensions of all ``heads`` together (each head has d = width / heads). context: L. mlp, inner: an
    MLP with ``inner`` hidden units on the sum, the readout for nonlinear targets. Tokens before the sequence are zero
    vectors that are attended to, so that every token's kernels cover L lags.

    position, the logits at lag s:
    - ``alibi``: -m_h s, with trained slopes initialized to 2^(-8 h / H) as in Press et al. 2021; ``alibi-fixed``:
      the same with fixed slopes. - ``relative``: b_h(s), one trained number per lag.
    - ``rope``: (R_s p_h)' r_h / sqrt(d) with trained p_h, r_h in R^d and rotations of floor(d / 2) pairs at
      base^(-2i/d): the positions that rotary heads can distinguish depend on d (none at d = 1).

    content: whether queries and keys of the tokens, q' k / sqrt(d), are added to the logits. Without them, kernels are
    those of the theory (``headcount.lags``), and the layer is linear in x.

    There is no residual, since it would carry lag 0 past the heads.
    """

    name: ClassVar[str] = "positional"
    summary: ClassVar[str] = "one attention layer with position biases (ALiBi, relative, rotary)"
    always_causal: ClassVar[bool] = True
    own_positions: ClassVar[bool] = True

    heads: int = HEADS.field(1)
    context: int = CONTEXT.field(64)
    position: Position = POSITION.field("alibi")  # noqa: RUF009
    content: bool = CONTENT.field(False)
    mlp: bool = MLP.field(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise HeadcountError(
                f"width {self.width} does not divide into {self.heads} heads", fix="choose a multiple of the heads"
            )
        if self.position not in POSITIONS:
            raise HeadcountError(
                f"there is no position scheme {self.position!r}", fix=f"choose one of {', '.join(POSITIONS)}"
            )

    @property
    def step(self) -> int:
        """The number of heads, which share the width."""
        return self.heads

    @property
    def dim(self) -> int:
        """d: the dimension of one head."""
        return self.width // self.heads

    def default_inner(self, width: int) -> int:
        """MLPs are twice as wide as all heads together."""
        return 2 * width

    def body(self, features: int, reading: Reading) -> nn.Module:
        """The layer."""
        return Positional(self, features, reading.answers)


class Kernels(nn.Module):
    """The position logits, (H, L)."""

    lags: Tensor

    def __init__(self, config: PositionalConfig) -> None:
        super().__init__()
        self.position, self.dim = config.position, config.dim
        heads, context = config.heads, config.context
        self.register_buffer("lags", torch.arange(context, dtype=torch.float32), persistent=False)
        if config.position in ("alibi", "alibi-fixed"):
            exponents = -8.0 * torch.arange(1, heads + 1) / heads
            self.log_slope = nn.Parameter(exponents * math.log(2), requires_grad=config.position == "alibi")
        elif config.position == "relative":
            self.bias = nn.Parameter(torch.randn(heads, context))
        else:
            self.query, self.key = (nn.Parameter(torch.randn(heads, self.dim)) for _ in range(2))

    def forward(self) -> Float[Tensor, "heads context"]:
        """The logit of each head at each lag."""
        if self.position in ("alibi", "alibi-fixed"):
            slopes = self.log_slope.clamp(math.log(_FLATTEST), math.log(_STEEPEST)).exp()
            return -slopes[:, None] * self.lags
        if self.position == "relative":
            return self.bias
        turned = rotated(self.key[:, None, :].expand(-1, len(self.lags), -1), -self.lags)
        return (self.query[:, None, :] * turned).sum(-1) / math.sqrt(self.dim)


class Positional(nn.Module):
    """Values, kernels over lags and outputs, followed by an MLP if configured."""

    def __init__(self, config: PositionalConfig, features: int, answers: int) -> None:
        super().__init__()
        self.config = config
        self.kernels = Kernels(config)
        self.values = nn.Linear(features, config.width, bias=False)
        # The input of the MLP is as wide as the tokens.
        self.outputs = nn.Linear(config.width, features if config.mlp else answers, bias=False)
        self.queries: nn.Linear | None = None
        if config.content:
            self.queries = nn.Linear(features, config.width, bias=False)
            self.keys = nn.Linear(features, config.width, bias=False)
        self.mlp: nn.Module | None = None
        if config.mlp:
            self.mlp = nn.Sequential(nn.Linear(features, config.finer), nn.GELU(), nn.Linear(config.finer, answers))

    def forward(self, features: Float[Tensor, "batch tokens features"]) -> Float[Tensor, "batch tokens answers"]:
        """The answers at all tokens."""
        outputs: Tensor = self.outputs(self._mixed(features))
        if self.mlp is None:
            return outputs
        answers: Tensor = self.mlp(outputs)
        return answers

    def _mixed(self, features: Tensor) -> Tensor:
        """(batch, tokens, features) -> (batch, tokens, H d): the values of each head, weighted by its kernel."""
        tokens, heads = features.shape[1], self.config.heads
        values = self.values(features).unflatten(-1, (heads, -1))
        if self.queries is None:
            weights = self.toeplitz(self.kernels().softmax(-1), tokens)
            return torch.einsum("hts,bshd->bthd", weights, values).flatten(-2)
        return torch.einsum("bhts,bshd->bthd", self._attention(features), values).flatten(-2)

    def toeplitz(self, kernels: Tensor, tokens: int, empty: float = 0.0) -> Tensor:
        """(H, L) over lags -> (H, tokens, tokens): the kernel at lag t - s at [h, t, s], ``empty`` outside."""
        known = kernels[:, :tokens]
        padded = functional.pad(known.flip(-1), (tokens - known.shape[-1], tokens - 1), value=empty)
        return padded.unfold(-1, tokens, 1).flip(-2)

    def _attention(self, features: Tensor) -> Tensor:
        """(batch, H, tokens, tokens), with content logits, which are 0 for tokens before the sequence."""
        tokens, config = features.shape[1], self.config
        assert self.queries is not None
        query, key = (
            part(features).unflatten(-1, (config.heads, -1)).transpose(1, 2) for part in (self.queries, self.keys)
        )
        if config.position == "rope":
            places = torch.arange(tokens, dtype=features.dtype, device=features.device)
            query, key = rotated(query, places), rotated(key, places)
        bias = self.kernels()
        logits = query @ key.transpose(-1, -2) / math.sqrt(config.dim) + self.toeplitz(bias, tokens, -math.inf)
        # The denominator's terms for lags before the sequence, as one additional logit per token.
        missing = bias.flip(-1).logcumsumexp(-1).flip(-1)  # at s: of lags >= s
        before = functional.pad(missing[:, 1:], (0, max(0, tokens - config.context + 1)), value=-math.inf)[:, :tokens]
        joined = torch.cat([before[None, :, :, None].expand(len(features), -1, -1, -1), logits], dim=-1)
        return joined.softmax(-1)[..., 1:]


def rotated(vectors: Tensor, places: Tensor) -> Tensor:
    """Rotate the pairs (i, i + floor(d/2)) of (..., T, d) by place * base^(-2i/d); an odd last entry is unchanged.

    >>> rotated(torch.tensor([[1.0, 0.0]]), torch.tensor([math.pi / 2])).round(decimals=6).abs().tolist()
    [[0.0, 1.0]]
    """
    dim = vectors.shape[-1]
    half = dim // 2
    if half == 0:
        return vectors
    speeds = BASE ** (-2.0 * torch.arange(half, dtype=vectors.dtype, device=vectors.device) / (2 * half))
    angle = places[:, None] * speeds
    first, second, rest = vectors.split([half, half, dim - 2 * half], dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], dim=-1)
