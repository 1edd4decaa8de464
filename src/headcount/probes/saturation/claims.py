"""The saturation claims of the source paper, each with a rule that turns measurements into a verdict.

Every claim concerns one number with a 95% bootstrap interval from ``RESAMPLES`` resamples: the heads of each layer and
the measured windows (blocks of tokens for losses) are resampled with replacement. The claim *holds* if the whole
interval is on the claimed side of the threshold, does *not hold* if it is entirely on the other side, and is *not
decided* otherwise. Layers are not resampled: a verdict applies to this model on this kind of text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headcount.probes.saturation.changepoint import Boundary
from headcount.probes.saturation.ranks import TOLERANCES, relative, saturation_ranks
from headcount.probes.saturation.record import ClaimRecord, Verdict

RESAMPLES = 200
BLOCK_TOKENS = 128
LEAST_BLOCKS = 8
"""Minimum number of blocks for a reliable interval of the loss."""
FIVE = TOLERANCES.index(0.05)


@dataclass(frozen=True)
class Measured:
    """Measurements at one context, by window; arrays (L layers, W windows, H heads[, d + 1 ranks])."""

    context: int
    squares: np.ndarray
    lengths: np.ndarray
    ranges: np.ndarray
    queries: int = 1
    """Sampled queries per window; ``squares`` and ``lengths`` are sums over them."""

    def draw(self, generator: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(relative errors by layer and rank, ranks by layer and tolerance, ranges by layer, absolute errors by layer
        and rank), averaged over the heads.

        With a generator, windows and heads are resampled; without one, all are used as measured.
        """
        layers, windows, heads = self.lengths.shape
        weights = np.ones(windows)
        if generator is not None:
            weights = np.bincount(generator.integers(windows, size=windows), minlength=windows).astype(float)
        squares, lengths = (
            np.einsum("w,lwhr->lhr", weights, self.squares),
            np.einsum("w,lwh->lh", weights, self.lengths),
        )
        errors = relative(squares, lengths)
        absolute = np.sqrt(squares / (weights.sum() * self.queries))
        ranges = np.einsum("w,lwh->lh", weights / weights.sum(), self.ranges)
        chosen = np.arange(heads)[None].repeat(layers, 0)
        if generator is not None:
            chosen = generator.integers(heads, size=(layers, heads))
        row = np.arange(layers)[:, None]
        ranks = np.stack([saturation_ranks(errors, tolerance) for tolerance in TOLERANCES], -1)
        parts = (errors, ranks, ranges, absolute)
        errors, ranks, ranges, absolute = (part[row, chosen].mean(1) for part in parts)
        return errors, ranks, ranges, absolute


@dataclass(frozen=True)
class Draws:
    """The measurement (index 0 of the first axis) and its resamples at one context; see ``Measured.draw``."""

    context: int
    errors: np.ndarray
    ranks: np.ndarray
    ranges: np.ndarray
    absolute: np.ndarray


def draws_of(measured: Measured, generator: np.random.Generator) -> Draws:
    """The measurement and its resamples."""
    samples = [measured.draw(None), *(measured.draw(generator) for _ in range(RESAMPLES))]
    return Draws(measured.context, *(np.stack(parts) for parts in zip(*samples, strict=True)))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95%."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def verdict(low: float, high: float, threshold: float, direction: str) -> Verdict:
    """Whether an interval is ``above`` or ``below`` a threshold.

    >>> verdict(-0.2, -0.1, 0.0, "below"), verdict(-0.2, 0.1, 0.0, "below"), verdict(0.1, 0.2, 0.0, "below")
    ('holds', 'not decided', 'does not hold')
    """
    above, below = low > threshold, high < threshold
    if direction == "above":
        return "holds" if above else "does not hold" if below else "not decided"
    return "holds" if below else "does not hold" if above else "not decided"


def slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least-squares slopes of y (..., n) on x (n,)."""
    centred = x - x.mean()
    return np.asarray((y - y.mean(-1, keepdims=True)) @ centred / (centred @ centred))


def block_sums(losses: np.ndarray) -> np.ndarray:
    """Sums over consecutive blocks of ``BLOCK_TOKENS`` tokens; a shorter remainder joins the last block."""
    starts = np.arange(0, max(len(losses) - BLOCK_TOKENS, 0) + 1, BLOCK_TOKENS)
    return np.add.reduceat(losses, starts)


def loss_draws(difference: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Mean loss difference per token, as measured and from the block bootstrap: (1 + RESAMPLES,)."""
    sums, counts = block_sums(difference), block_sums(np.ones_like(difference))
    chosen = generator.integers(len(sums), size=(RESAMPLES, len(sums)))
    drawn = sums[chosen].sum(1) / counts[chosen].sum(1)
    return np.concatenate([[difference.mean()], drawn])


def _claim(name: str, claim: str, measured: str, values: np.ndarray, threshold: float, direction: str) -> ClaimRecord:
    low, high = interval(values[1:])
    needed = f"all of the interval {direction} {threshold:g}"
    return ClaimRecord(
        name=name,
        claim=claim,
        measured=measured,
        estimate=float(values[0]),
        low=low,
        high=high,
        needed=needed,
        verdict=verdict(low, high, threshold, direction),
    )


def _undecided(name: str, claim: str, measured: str, needed: str) -> ClaimRecord:
    return ClaimRecord(
        name=name,
        claim=claim,
        measured=measured,
        estimate=None,
        low=None,
        high=None,
        needed=needed,
        verdict="not decided",
    )


def claims_of(
    draws: Sequence[Draws],
    boundary: Boundary | None,
    losses: Mapping[str, np.ndarray],
    generator: np.random.Generator,
) -> list[ClaimRecord]:
    """The table of claims. ``losses``: nats per token of each variant at the longest context; may be empty."""
    return [*_curve_claims(draws), _boundary_claim(draws[-1].context, boundary), *_loss_claims(losses, generator)]


def _curve_claims(draws: Sequence[Draws]) -> list[ClaimRecord]:
    longest = draws[-1]
    curve = longest.errors.mean(1)
    d = curve.shape[-1] - 1
    at = [curve[:, d // 8], curve[:, d // 4], curve[:, d // 2], curve[:, d]]
    widths = [d // 4 - d // 8, d // 2 - d // 4, d - d // 2]
    gains = [(before - after) / width for before, after, width in zip(at, at[1:], widths, strict=False)]
    bend = np.minimum(gains[0] - gains[1], gains[1] - gains[2])
    layers = np.arange(longest.ranks.shape[1], dtype=float)
    claims = [
        _claim(
            "diminishing returns",
            "more dimensions of queries and keys bring less and less",
            f"least fall of the gain per dimension from one doubling to the next (d/8 to d) at {longest.context}",
            bend,
            0.0,
            "above",
        ),
        _claim(
            "later is narrower",
            "later layers need fewer dimensions",
            f"slope of the rank at 5% over the layers, dimensions a layer, at {longest.context}",
            slopes(layers, longest.ranks[:, :, FIVE]) if len(layers) > 1 else np.zeros(len(longest.ranks)),
            0.0,
            "below",
        ),
    ]
    texts = (
        ("longer saturates more", "the longer the sequence, the fewer dimensions matter"),
        ("logits are bounded", "the range of a head's logits does not grow with the context"),
        ("the long-context bound falls", "e^(2b)/L falls as the context L grows (2b: range of the logits)"),
        ("the absolute error falls", "at a fixed rank, a head's output moves less the longer the sequence"),
    )
    if len(draws) < 2:
        return claims + [_undecided(*text, "one context only", "two contexts or more") for text in texts]
    logs = np.log([draw.context for draw in draws])
    ranks = np.stack([draw.ranks[:, :, FIVE].mean(1) for draw in draws], -1)
    # If all outputs are zero, the error is zero: clamp it so that the slope is 0 rather than NaN.
    errors = np.stack([draw.absolute[:, :, d // 4].mean(1) for draw in draws], -1)
    fall = slopes(logs, np.log(np.maximum(errors, np.finfo(float).tiny)))
    growth = slopes(logs, np.stack([draw.ranges.mean(1) for draw in draws], -1))
    return [
        *claims,
        _claim(*texts[0], "slope of the mean rank at 5% per doubling", slopes(logs, ranks) * np.log(2), 0.0, "below"),
        _claim(*texts[1], "slope of the mean range of logits over ln L (not above 0)", growth, 0.0, "below"),
        _claim(*texts[2], "slope of the mean range of logits over ln L", growth, 1.0, "below"),
        _claim(
            *texts[3],
            f"slope over ln L of ln(absolute output error at rank d/4 = {d // 4}, mean over heads)",
            fall,
            0.0,
            "below",
        ),
    ]


def _boundary_claim(context: int, boundary: Boundary | None) -> ClaimRecord:
    text = ("a boundary layer", "there is a layer from which on heads can be narrower")
    measured = f"step in the rank at 5% over the layers at {context}, see changepoint"
    needed = "a boundary by the rule, and a lower level behind it"
    if boundary is None:
        return _undecided(*text, measured, needed)
    holds = boundary.layer is not None and boundary.after < boundary.before
    return ClaimRecord(
        name=text[0],
        claim=text[1],
        measured=measured,
        estimate=float(boundary.candidate),
        low=float(boundary.low),
        high=float(boundary.high),
        needed=needed,
        verdict="holds" if holds else "does not hold",
    )


def _loss_claims(losses: Mapping[str, np.ndarray], generator: np.random.Generator) -> list[ClaimRecord]:
    texts = (
        ("cutting later costs less", "the second half of the layers loses less by the same cut than the first half"),
        ("all at once", "ranks found head by head hold when all heads and layers are cut together"),
        ("unequal beats uniform", "ranks by head are better than one rank for all with the same sum"),
    )
    if not losses:
        return [_undecided(*text, "no language-model head", "losses") for text in texts]

    if len(block_sums(losses["dense"])) < LEAST_BLOCKS:
        needed = f"{LEAST_BLOCKS} blocks of {BLOCK_TOKENS} tokens"
        return [_undecided(*text, "too few tokens", needed) for text in texts]

    def difference(one: str, other: str) -> np.ndarray:
        return loss_draws(losses[one] - losses[other], generator)

    return [
        _claim(
            *texts[0],
            "loss with the second half of the layers at d/4 less that with the first half, nats",
            difference("second half d/4", "first half d/4"),
            0.0,
            "below",
        ),
        _claim(
            *texts[1],
            "loss increase over the dense loss, every head at its rank at 5%",
            difference("own 5%", "dense") / float(losses["dense"].mean()),
            0.05,
            "below",
        ),
        _claim(
            *texts[2],
            "loss at every head's own rank at 5% less that at their mean rank, nats",
            difference("own 5%", "uniform 5%"),
            0.0,
            "below",
        ),
    ]
