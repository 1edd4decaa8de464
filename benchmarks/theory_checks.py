"""The checks that ``theory_scan.py`` runs on one set of sizes."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import re
import traceback
from collections import Counter
from functools import lru_cache

import numpy as np
import torch
from theory_sizes import SMALL, Case

from headcount import bounds, constructions, tasks
from headcount.bounds import Sizes
from headcount.bounds.built import Built, LimbPolytope, built_match3, built_qsa
from headcount.bounds.statements.qsa_bits import EMBEDDING
from headcount.constructions import Construction
from headcount.constructions.matching.any_order import Levels
from headcount.constructions.qsa.wide import polytope_outputs
from headcount.core.errors import HeadcountError
from headcount.pbit.examples import histogram_layer, match3_from_histogram, match3_from_thresholds, threshold_layer
from headcount.pbit.widths import VALUE_WIDTH

FLOAT64 = 53
SIMULATED = 20
"""One in this many constructions is also run with every operation rounded to the bits of its certificate."""
ROUNDING = 1e-9
"""Tolerance for float64 in place of exact numbers: logits of up to 1e6, each with a relative error of 1e-16."""
SUMS = 1e-14
"""Tolerance for sums of at most a few dozen weights, each at most 1 with an error of 1e-16."""


class Scan:
    """Runs cases; ``problems`` lists the failures, and ``counts`` the checks that were done."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []

    def run(self, case: Case, command_line: bool = False) -> None:
        """Check one case."""
        self.counts[f"{case.group} {case.name}"] += 1
        try:
            if command_line:
                self._command(case)
            elif case.group == "bound":
                self._bound(case)
            else:
                built = constructions.build(case.name, **case.options)
                self._built(built)
        except HeadcountError as error:
            self.counts[
                "refused: " + re.sub(r"[-+]?(\d[\d.,]*(e[-+]?\d+)?|inf|nan)", "#", str(error).split(";")[0])
            ] += 1
        except Exception:
            self._wrong("traceback: " + " / ".join(traceback.format_exc().strip().splitlines()[-3:]))
        self.problems = [
            p if p.startswith("[") else f"[{case.group} {case.name} {case.options}] {p}" for p in self.problems
        ]

    def _wrong(self, problem: str) -> None:
        self.problems.append(problem)

    def _bound(self, case: Case) -> None:
        sizes = Sizes(**case.options)
        task = "any" if case.name == "head" else case.name
        for bound in bounds.of_task(task):
            value = bound.evaluate(sizes).value
            self.counts["bounds evaluated"] += 1
            if value is not None and not (isinstance(value, int) and value >= 0):
                self._wrong(f"{bound.id} is {value}")
        if task == "qsa":
            self._qsa_bound(sizes)
        elif task == "match3":
            self._match3_bound(sizes)
        elif task == "composition" and sizes.need("domain") <= 1000 and sizes.precision_bits is None:
            bits, things = (
                bounds.get("composition-one-layer").evaluate(sizes).value,
                sizes.need("domain") ** sizes.need("domain"),
            )
            if bits is None or not (2**bits >= things > 2 ** (bits - 1) if bits else things == 1):
                self._wrong(f"composition needs {bits} bits for {things} functions")

    def _compare(self, task: str, sizes: Sizes, built: Built) -> None:
        """Check that no construction is below a bound that applies at the precision it needs."""
        known = {EMBEDDING: built.embedding_dim, VALUE_WIDTH: built.value_width}
        needed = Sizes(**{**sizes.given(), "precision_bits": built.needs_bits})
        for bound in bounds.of_task(task):
            answer = bound.evaluate(needed)
            size = known.get(answer.unit or "")
            if answer.value is not None and size is not None:
                self.counts["built sizes against bounds"] += 1
                if size < answer.value and built.guarantee == "all inputs":
                    self._wrong(f"{built.id} has {size}, {bound.id} asks for {answer.value} ({answer.unit})")

    def _qsa_bound(self, sizes: Sizes) -> None:
        n, q, dim = (sizes.need(name) for name in ("tokens", "sparsity", "dim"))
        rows = built_qsa(sizes)
        for built in rows:
            self._compare("qsa", sizes, built)
        if n <= 60:
            for id, count in (("qsa-bits", math.comb(n - 1, q)), ("qsa-bits-all", math.comb(n, q))):
                value = bounds.get(id).evaluate(tokens=n, sparsity=q).value
                if value != math.ceil(math.log2(max(1, count))):  # exact: counts below 2^57, and powers of 2 are exact
                    self._wrong(f"{id} is {value} for {count} subsets")
        p, epsilon = sizes.precision_bits, sizes.epsilon or 1 / (4 * q)
        if n <= SMALL and p is not None and p >= 2:
            limb = LimbPolytope(n, q, dim, p, epsilon)
            off = _limb_gaps(n, q, min(p, 64))
            attention = np.exp(np.maximum(-limb.alpha * off, -750))
            attention /= attention.sum(1, keepdims=True)
            error = _worst_error(attention, off == 0) + math.sqrt(dim) * 2.0 ** -(limb.fraction + 1)
            self._certified("digits of the polytope", float(error), epsilon + SUMS)
            members = np.arange(n) < q
            one_hot = np.exp(np.maximum(-limb.alpha, -750) * ~members)[None]
            self._certified("one-hot keys", _worst_error(one_hot / one_hot.sum(), members[None]), epsilon / 2 + SUMS)

    def _match3_bound(self, sizes: Sizes) -> None:
        n, modulus = sizes.need("tokens"), sizes.need("modulus")
        rows = built_match3(sizes)
        for built in rows:
            self._compare("match3", sizes, built)
        if n > SMALL or modulus > 64:
            return
        task = tasks.get("match3", tokens=n, modulus=modulus)
        for built in rows:
            build = histogram_layer if built.id == "histogram" else threshold_layer
            layer = build(n, modulus, built.needs_bits)
            for kind in ("uniform", "adversarial"):
                batch = task.sample(n + modulus, 2, kind)  # type: ignore[arg-type]
                for x, target in zip(batch.inputs["x"], batch.targets, strict=True):
                    codes = layer({"x": x, "position": np.arange(n)})
                    labels = [
                        match3_from_histogram(row, int(symbol))
                        if built.id == "histogram"
                        else match3_from_thresholds(row, int(symbol), n, built.needs_bits)
                        for row, symbol in zip(codes, x, strict=True)
                    ]
                    self._certified(f"{built.id} of Match3", float((np.array(labels) != (target == 1)).sum()), 0)

    # -- constructions ------------------------------------------------------------------------------------

    def _certified(self, what: str, error: float, allowed: float) -> None:
        self.counts["certificates run"] += 1
        self.counts[f"certificates run: {what}"] += 1
        if not error <= allowed:
            self._wrong(f"{what} is off by {error:.3g}, not {allowed:.3g}")

    def _built(self, built: Construction) -> None:
        certificate = built.certificate
        if built.task.name == "qsa":
            sizes = Sizes(**built.task.parameters(), epsilon=certificate.epsilon)
            row = Built(certificate.name, certificate.embedding_dim, certificate.bits, "", certificate.guarantee)
            self._compare("qsa", sizes, row)
            n, q, dim = (sizes.need(name) for name in ("tokens", "sparsity", "dim"))
            if certificate.guarantee == "all inputs" and n >= 3 * q and certificate.epsilon < 1 / (2 * q):
                least = dim + 4 * q - 1  # qsa-radon, where one embedding carries queries, keys and values
                if certificate.single_map_dim < least:
                    self._wrong(f"one map of {certificate.single_map_dim} dimensions, qsa-radon asks for {least}")
            self._qsa(built)
        else:
            self._match(built)
        if (
            built.task.tokens <= SMALL
            and 2 <= certificate.bits < FLOAT64
            and self.counts["constructions"] % SIMULATED == 0
        ):
            self._simulated(built)
        self.counts["constructions"] += 1

    def _simulated(self, built: Construction) -> None:
        """Check the construction with every operation rounded to the sufficient bits of its certificate."""
        precision = f"float:{built.certificate.bits}"
        for kind in ("uniform", "adversarial"):
            with contextlib.suppress(HeadcountError):  # some sizes have no adversarial sequences
                batch = built.task.sample(built.certificate.bits, 1, kind)  # type: ignore[arg-type]
                if built.task.name == "qsa":
                    promised = self._promised(built, torch.from_numpy(batch.inputs["y"]))
                    if not promised.all():
                        continue
                score = built.task.score(built.outputs(batch, precision, "each"), batch, built.certificate.epsilon)
                self._certified(f"{built.certificate.name}, arithmetic of its bits", score.wrong, 0)

    def _qsa(self, built: Construction) -> None:
        certificate, module = built.certificate, built.module
        n, q = (built.task.parameters()[name] for name in ("tokens", "sparsity"))
        sets = _sets(n, q)
        self.counts["qSA sets run"] += len(sets)
        y = torch.from_numpy(np.resize(sets, (-(-len(sets) // n) * n, q)).reshape(-1, n, q))
        rng = np.random.default_rng(len(sets))
        z = rng.standard_normal((len(y), n, built.task.parameters()["dim"]))
        z /= np.linalg.norm(z, axis=-1, keepdims=True)
        with torch.no_grad():
            (w,) = module.queries(y)
            attention = torch.softmax(w @ module.queries.keys.T, dim=-1)
            outputs = module(torch.from_numpy(z), y).numpy()
        weights = attention.numpy()
        inside = np.zeros((y.shape[0] * n, n), dtype=bool)
        np.put_along_axis(inside, y.reshape(-1, q).numpy(), True, axis=1)
        promised = self._promised(built, y)
        differ = np.abs(weights @ z - outputs).max(-1).reshape(-1)[promised]  # other sets may depend on rounding
        if differ.max(initial=0.0) > ROUNDING or np.isnan(differ).any():
            self._wrong("the module is not the attention of its queries and keys")
        worst = _worst_error(weights.reshape(-1, n)[promised], inside[promised])
        epsilon, bits = certificate.epsilon, certificate.bits
        if bits <= FLOAT64:
            self._certified(f"{certificate.name}, {certificate.guarantee}", worst, epsilon)
        elif certificate.name == "qsa-polytope" and (n <= SMALL or n * q * bits <= 50_000):
            chosen = _up_to_rotation(n, q) if n <= SMALL else sets
            rows = np.resize(chosen, (-(-len(chosen) // n) * n, q)).reshape(-1, n, q)
            inside = np.zeros((rows.shape[0] * n, n), dtype=bool)
            np.put_along_axis(inside, rows.reshape(-1, q), True, axis=1)
            wide = [polytope_outputs(np.eye(n), sequence, module.settings["depth"], bits + 4) for sequence in rows]
            error = _worst_error(np.concatenate(wide), inside)
            self._certified("qsa-polytope, in its own bits", error, epsilon + ROUNDING)  # its softmax is float64
        elif certificate.name == "qsa-polytope":
            self.counts["beyond float64, too long in its own bits, not run"] += 1
        elif (allowed := epsilon / 2 + math.ldexp(epsilon, bits - FLOAT64 - 1)) < 0.25:
            self._certified(f"{certificate.name}, more than float64", worst, allowed)
        else:
            self.counts["beyond float64, not run"] += 1

    def _promised(self, built: Construction, y: torch.Tensor) -> np.ndarray:
        """The sets covered by the certificate: all, or those with at least the certificate's gap."""
        if built.certificate.guarantee == "all inputs":
            return np.ones(y.shape[0] * y.shape[1], dtype=bool)
        gaps = built.module.queries.separators(y.flatten(0, 1))[1].numpy()
        return np.asarray((gaps > 0) & (gaps >= built.certificate.gap))

    def _match(self, built: Construction) -> None:
        certificate, task = built.certificate, built.task
        assert isinstance(task, tasks.Matching)
        n, m, order = task.tokens, task.residues, task.arity
        batches = []
        if m**n <= 256:
            batches.append(task.batch(x=np.array(list(itertools.product(range(m), repeat=n)))))
        else:
            for kind in ("uniform", "adversarial", "balanced"):
                with contextlib.suppress(HeadcountError):  # some sizes have no balanced sequences
                    batches.append(task.sample(n, 1, kind))  # type: ignore[arg-type]
        self.counts["matching sequences run"] += sum(map(len, batches))
        for batch in batches:
            if certificate.bits <= FLOAT64:
                outputs = built.outputs(batch, "fp64", "each")
                score = task.score(outputs, batch)
                self._certified(certificate.name, score.wrong, 0)
                if certificate.bits <= FLOAT64 - 11:  # logits are then off by less than ln 2: margins are below 1500
                    self._certified(f"{certificate.name}, outputs", score.max_error, certificate.epsilon + SUMS)
            elif certificate.name in ("match2", "match-s") and n**order <= 2**16:
                error = max(
                    float(np.abs(_shares(x, m, order, certificate.epsilon) - target).max())
                    for x, target in zip(batch.inputs["x"], batch.targets, strict=True)
                )
                self._certified(f"{certificate.name}, from its levels", error, certificate.epsilon / 2 + ROUNDING)
            else:
                self.counts["beyond float64, not run"] += 1

    # -- the command line ---------------------------------------------------------------------------------

    def _command(self, case: Case) -> None:
        from headcount.cli import main

        self.counts["command lines"] += 1
        options = dict(case.options)
        if "guarantee" in options:
            options["guarantee"] = "all"
        if case.name in ("match2", "match3-bigram") or case.group == "construct":
            options["count"] = 2
        words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main([case.group, case.name, *words, "--json"])
            except SystemExit as stop:
                code = int(stop.code or 0)
        message = err.getvalue()
        if code == 2 and (not message.startswith("headcount: ") or message.count("\n") != 1 or out.getvalue()):
            self._wrong(f"exit 2 with {message!r}")
        if code in (0, 1):
            answer = json.loads(out.getvalue())
            if case.group == "construct":
                solid = (
                    answer["guarantee"] == "all inputs" and answer["bits"] <= FLOAT64 - 11 and answer["epsilon"] > SUMS
                )
                if code == 1 and solid:
                    self._wrong(f"exit 1: {message!r}")
                below, precise = answer["lower_bound_embedding_dim"], answer["guarantee"] == "all inputs"
                if below is not None and answer["embedding_dim"] < below and precise:
                    self._wrong(f"built with {answer['embedding_dim']}, bounded by {below}")
            else:
                below, size = answer["impossible_below_embedding_dim"], answer["built_embedding_dim"]
                if below is not None and size is not None and size < below:
                    self._wrong(f"built with {size}, impossible below {below}")
        if code not in (0, 1, 2):
            self._wrong(f"exit {code}: {message!r}")


@lru_cache(maxsize=1000)
def _sets(tokens: int, sparsity: int) -> np.ndarray:
    """All sets for small N; else 16 random sets and 4 of neighbours, which have the smallest gaps: (sets, q)."""
    if tokens <= SMALL:
        return np.array(list(itertools.combinations(range(tokens), sparsity)), dtype=np.int64)
    rng = np.random.default_rng(tokens)
    drawn = [np.sort(rng.permutation(tokens)[:sparsity]) for _ in range(16)]
    near = [np.sort((start + np.arange(sparsity)) % tokens) for start in rng.integers(0, tokens, 4)]
    return np.array(drawn + near, dtype=np.int64)


@lru_cache(maxsize=1000)
def _up_to_rotation(tokens: int, sparsity: int) -> np.ndarray:
    """The first set of each equivalence class under rotation of the circle of keys: (sets, q)."""
    firsts = [
        subset
        for subset in itertools.combinations(range(tokens), sparsity)
        if all(tuple(sorted((j + turn) % tokens for j in subset)) >= subset for turn in range(tokens))
    ]
    return np.array(firsts, dtype=np.int64)


def _worst_error(attention: np.ndarray, inside: np.ndarray) -> float:
    """The largest error over all vectors of norm at most 1: max over rows of sum_j |a_j - t_j|."""
    target = inside / inside.sum(1, keepdims=True)
    error = np.abs(attention - target).sum(1)
    return float(np.where(np.isfinite(error), error, np.inf).max(initial=0.0))


@lru_cache(maxsize=4000)
def _limb_gaps(tokens: int, sparsity: int, bits: int) -> np.ndarray:
    """Distances of the exact logits below those of the set, computed from the digits, for every set: (sets, N)."""
    built = LimbPolytope(tokens, sparsity, 1, bits, 0.1)
    rows = []
    for subset in itertools.combinations(range(tokens), sparsity):
        logits = built.logits(subset)
        rows.append([float(max(logits) - logit) for logit in logits])
        assert [rows[-1][j] for j in subset] == [0] * sparsity and sorted(rows[-1])[sparsity : sparsity + 1] != [0]
    return np.array(rows)


def _shares(x: np.ndarray, modulus: int, order: int, epsilon: float) -> np.ndarray:
    """The output of the match constructions in exact arithmetic: the attention share of the real tuples, (N,).

    Tuples of J = N^(s-1) at logits h - c (1 - cos), c and h of ``Levels``, and (N+1)^(s-1) - J blanks at 0.
    """
    n = len(x)
    real = float(n ** (order - 1))
    blanks = float((n + 1) ** (order - 1)) - real
    gap = 2 * math.sin(math.pi / modulus) ** 2
    levels = Levels.of(real, blanks, gap, epsilon)
    sums = np.array([sum(part) % modulus for part in itertools.product(x.tolist(), repeat=order - 1)])
    shares = []
    for symbol in x.tolist():
        residue = (sums + symbol) % modulus
        residue = np.minimum(residue, modulus - residue)
        logits = levels.above - levels.scale * 2 * np.sin(np.pi * residue / modulus) ** 2
        top = max(0.0, float(logits.max()))
        total = float(np.exp(logits - top).sum())
        shares.append(total / (total + blanks * math.exp(-top)))
    return np.array(shares)
