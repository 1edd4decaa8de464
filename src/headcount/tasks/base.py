"""The base class of all tasks: a sampler of three kinds, an exact solver and a score.

A task is a frozen dataclass whose fields are its sizes, each declared as an ``Option`` (in ``headcount.tasks.sizes``
or the task's own file). ``sample`` draws a ``Batch`` (NumPy arrays whose first axis counts sequences), ``solve``
returns the exact answer at every token, ``score`` compares outputs with it. Nothing here needs torch;
``headcount.tasks.dataset`` wraps a task for training.

Letters: N = ``tokens``, q = ``sparsity``, d' = ``dim``, M = ``modulus``, s = ``order``, K = ``window``.
Tokens and residues count from 0.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from headcount.core.errors import HeadcountError
from headcount.core.options import options_of
from headcount.core.payload import JsonObject
from headcount.core.seeds import numpy_generator
from headcount.tasks.sizes import TOKENS

Kind = Literal["uniform", "balanced", "adversarial"]
"""``uniform``: independent draws. ``balanced``: 40 to 60% of the tokens are positive. ``adversarial``: near
misses, which differ as little as possible from an input with another answer."""

Answer = Literal["binary", "class", "vector"]
"""``binary``: 0 or 1 at each token. ``class``: an integer, or ``NO_ANSWER``. ``vector``: a point of R^d'."""

KINDS: tuple[Kind, ...] = get_args(Kind)
NO_ANSWER = -100
"""The target of tokens without a question, in tasks whose answer is a class; such tokens are not scored. It is the
default ``ignore_index`` of torch's losses, which therefore skip them."""


@dataclass(frozen=True)
class Batch:
    """Sequences and their exact answers.

    ``inputs`` maps names to arrays of shape (count, ...); ``targets`` has shape (count, N) or (count, N, d').
    """

    inputs: Mapping[str, NDArray[Any]]
    targets: NDArray[Any]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, rows: slice) -> Batch:
        """The sequences ``rows`` (a slice)."""
        return Batch({name: array[rows] for name, array in self.inputs.items()}, self.targets[rows])


@dataclass(frozen=True)
class Score:
    """The result of comparing outputs with the exact answers.

    ``checked`` answers were compared and ``wrong`` of them were wrong; ``max_error`` is the largest distance of
    an output from its target: absolute for binary answers, Euclidean for vectors, 0 or 1 for classes.
    """

    checked: int
    wrong: int
    max_error: float

    @property
    def accuracy(self) -> float:
        """Fraction of correct answers (1 if nothing was compared)."""
        return 1.0 if self.checked == 0 else 1.0 - self.wrong / self.checked


@dataclass(frozen=True)
class Task(ABC):
    """A task with fixed sizes.

    A subclass declares its sizes and implements ``_uniform``, ``_balanced``, ``_adversarial`` (arrays from a
    generator), ``_check`` (reject invalid inputs) and ``_solve``. Integers outside the declared range of their size
    raise ``HeadcountError``.

    >>> from headcount import tasks
    >>> match2 = tasks.get("match2", tokens=4, modulus=10)
    >>> match2.batch(x=[[1, 2, 9, 4]]).targets
    array([[1, 0, 1, 0]], dtype=int8)
    """

    name: ClassVar[str]
    answer: ClassVar[Answer]
    summary: ClassVar[str]
    """One line: the question at token i."""
    input_names: ClassVar[tuple[str, ...]] = ("x",)
    """Names of the input arrays of a batch."""

    tokens: int = TOKENS.field(64)

    def __post_init__(self) -> None:
        for option in options_of(type(self)):
            value = getattr(self, option.name)
            if option.kind is int and value is not None:
                option.check(value)

    # -- public interface -----------------------------------------------------------------------------

    def sample(self, seed: int | np.random.Generator, count: int = 1, kind: Kind = "uniform") -> Batch:
        """Draw ``count`` sequences of one kind with their answers; the same seed gives the same bytes."""
        if kind not in KINDS:
            raise HeadcountError(f"kind {kind!r} is unknown", fix=f"choose one of {', '.join(KINDS)}")
        if count < 1:
            raise HeadcountError(f"count must be at least 1, not {count}", fix="ask for one sequence or more")
        rng = seed if isinstance(seed, np.random.Generator) else numpy_generator(seed, "task", self.name, kind)
        draw = {"uniform": self._uniform, "balanced": self._balanced, "adversarial": self._adversarial}[kind]
        inputs = draw(rng, count)
        return Batch(inputs, self._solve(inputs))

    def batch(self, **arrays: Any) -> Batch:
        """The given inputs as a batch, checked and solved; a single sequence may omit the first axis."""
        inputs = self.checked(arrays)
        return Batch(inputs, self._solve(inputs))

    def solve(self, batch: Batch | Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The exact answer at every token, (count, N) or (count, N, d')."""
        return self._solve(self.checked(batch.inputs if isinstance(batch, Batch) else batch))

    def draw(self, **arrays: Any) -> str:
        """One sequence and its exact answers as text, one row per array and one column per token.

        Vectors are written as (a,b), sets as {i,j}, and ``.`` marks tokens without a question.
        """
        batch = self.batch(**arrays)
        rows = {**{name: batch.inputs[name][0] for name in self.input_names}, "target": batch.targets[0]}
        cells = [[name, *(map(_cell, row) if len(row) == self.tokens else [_cell(row)])] for name, row in rows.items()]
        widths = [max(len(row[k]) for row in cells if k < len(row)) for k in range(self.tokens + 1)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)

    def checked(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The inputs converted to the task's types and shapes; invalid inputs raise ``HeadcountError``."""
        return self._check({name: np.asarray(value) for name, value in inputs.items()})

    def score(self, outputs: Any, batch: Batch, epsilon: float | None = None) -> Score:
        """Compare outputs with the answers of ``batch``.

        binary: (count, N) numbers, read as 1 if above 1/2. class: (count, N) integers, or (count, N, classes)
        scores of which the largest is taken. vector: (count, N, d'), wrong if the Euclidean distance exceeds
        ``epsilon`` (1e-6 by default). Non-finite outputs are wrong.
        """
        got, want = np.asarray(outputs), batch.targets
        if self.answer == "class":
            return _score_classes(got, want)
        if got.shape != want.shape:
            raise HeadcountError(
                f"the outputs have shape {got.shape}, the targets {want.shape}",
                fix="give one output for each target",
            )
        if self.answer == "binary":
            error = np.abs(got.astype(np.float64) - want)
            wrong = ~np.isfinite(got) | ((got > 0.5) != (want == 1))
        else:
            limit = 1e-6 if epsilon is None else epsilon
            if not limit > 0:
                raise HeadcountError(f"epsilon must be positive, not {epsilon}", fix="give a distance such as 1e-6")
            error = np.sqrt(np.square(got.astype(np.float64) - want).sum(-1))
            wrong = ~(error <= limit)
        error = np.where(np.isfinite(error), error, np.inf)
        return Score(error.size, int(wrong.sum()), float(error.max(initial=0.0)))

    def positive(self, targets: NDArray[Any]) -> NDArray[np.bool_]:
        """Which tokens count as positive in the balanced kind (see each task for vectors and classes)."""
        if self.answer == "binary":
            return np.asarray(targets == 1)
        if self.answer == "class":
            return np.asarray(targets != NO_ANSWER)
        return np.asarray(targets[..., 0] > 0)

    def model_input(self, batch: Batch) -> NDArray[Any]:
        """The model input: (count, N) symbols below ``vocabulary``, else (count, N, features)."""
        return batch.inputs["x"]

    @property
    def vocabulary(self) -> int | None:
        """Number of input symbols; ``None`` if tokens are vectors."""
        return None

    @property
    def classes(self) -> int | None:
        """Number of classes if the answer is a class; ``None`` otherwise."""
        return None

    def parameters(self) -> JsonObject:
        """The sizes of this task, by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def check_names(cls, names: Iterable[str]) -> None:
        """Raise ``HeadcountError`` if the names are not exactly ``input_names``."""
        if set(names) != set(cls.input_names):
            raise HeadcountError(
                f"{cls.name} takes the inputs {', '.join(cls.input_names)}, not {', '.join(names) or 'none'}",
                fix="name the arrays so, in a JSON object",
            )

    # -- implemented by each task ---------------------------------------------------------------------

    @abstractmethod
    def _uniform(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]: ...

    @abstractmethod
    def _balanced(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]: ...

    @abstractmethod
    def _adversarial(self, rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]: ...

    @abstractmethod
    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]: ...

    @abstractmethod
    def _solve(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]: ...

    # -- shared checks --------------------------------------------------------------------------------

    def _named(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The arrays of ``input_names``, in that order."""
        self.check_names(inputs)
        return [np.asarray(inputs[name]) for name in self.input_names]

    def _symbols(self, name: str, array: NDArray[Any], limit: int) -> NDArray[np.int64]:
        """(count, N) integers in [0, limit), from an array whose first axis may be missing."""
        array = array[None] if array.ndim == 1 else array
        if array.ndim != 2 or array.shape[1] != self.tokens:
            raise HeadcountError(
                f"{name} has shape {array.shape}, not (count, {self.tokens})",
                fix="give sequences of that length, or set tokens",
            )
        if array.dtype.kind not in "iu":
            raise HeadcountError(f"{name} holds {array.dtype} numbers", fix="give integers")
        outside = (array < 0) | (array >= limit)
        if outside.any():
            row, column = np.argwhere(outside)[0]
            raise HeadcountError(
                f"token {column} of sequence {row} is {array[row, column]}, outside [0, {limit})",
                fix=f"give integers from 0 to {limit - 1}",
            )
        return array.astype(np.int64, copy=False)


def _cell(value: NDArray[Any]) -> str:
    """The text of one token in ``Task.draw``."""
    numbers = ["." if number == NO_ANSWER else f"{number:.3g}" for number in np.atleast_1d(value)]
    if value.ndim == 0 or (value.dtype.kind == "f" and len(numbers) == 1):
        return numbers[0]
    return f"({','.join(numbers)})" if value.dtype.kind == "f" else f"{{{','.join(numbers)}}}"


def _score_classes(got: NDArray[Any], want: NDArray[Any]) -> Score:
    if got.ndim == want.ndim + 1:
        finite = np.isfinite(got).all(-1)
        got = np.where(finite, np.where(finite[..., None], got, 0).argmax(-1), NO_ANSWER)
    if got.shape != want.shape:
        raise HeadcountError(
            f"the outputs have shape {got.shape}, the targets {want.shape}",
            fix="give one class, or one score for each class, at each token",
        )
    asked = want != NO_ANSWER
    wrong = int((got[asked] != want[asked]).sum())
    return Score(int(asked.sum()), wrong, float(wrong > 0))
