"""How each documented command line is run in seconds.

A line is run as it stands when ``AS_IT_STANDS`` names it, else by the first of ``RULES`` that fits. A line that neither
knows fails the tests, and so does a word in capitals that is not in ``VALUES``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

VALUES = {
    "MODEL": "MODEL",  # a folder of this name, with a tiny model, lies in every test's folder
    "PLAN": "runs/plan",
    "AUDIT": "runs/audit",
    "FOLDERS": "runs/audit",
    "TASK": "qsa",
    "ID": "qsa-radon",
    "FORM": "small",
    "SHARE": "0.75",
    "build FOLDER": "planned",
    "--out FOLDER": "out",
    "--out MODEL": "new-model",
    "--out FILE": "errors.json",
    "--figure FOLDER": "figures",
    "--work FOLDER": "work",
    "--input FILE": "residues.json",
    "--table FILE": "rope.json",
    "--text mine=FILE": "mine=text.txt",
    "--model NAME": "lstm",
    "--position NAME": "t5",
    "--scheme NAME": "planned",
    "figure NAME": "qsa-samples",
    "sweep FILE.toml": "grid.toml",
    "--tokens N": "64",
    "--precision-bits p": "8",
    "--heads H": "2",
    "--modulus M": "65",
    "--vocab N": "300",
    "--cache-bytes B": "8e3",
    "--flops F": "8e6",
    "--head-dim D": "32",
    "--group G": "2",
}
"""What a word in capitals stands for: behind an option, behind a command, or anywhere."""

Marker = Literal["slow", "real"]


@dataclass(frozen=True)
class Rule:
    """The short form of the lines whose command (with "headcount ") matches ``pattern``.

    options: are put in the place of the documented ones, or added; "" for a flag. words: single words replaced, or
    completed by what a piece of inline code leaves out. needs: the tests with this marker run the line, the fast ones
    do not. exact: the tests with this marker run the line as it stands, too; None: that takes longer than tests should.
    codes: the exit codes that are right. shown: how the page shows the output: "whole"; "lines", some of them, each
    number within the share ``within`` (or a unit of the page's last digit times five); "words", what is long cut out.
    ``within`` stands for how far products summed in another order (threads, bfloat16) move what is measured: where a
    head saturates hardly, but a subset more that can be separated moves the size at which half can by a step.
    """

    pattern: str
    options: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    needs: Marker | None = None
    exact: Marker | None = None
    codes: tuple[int, ...] = (0,)
    shown: Literal["whole", "lines", "words"] = "whole"
    within: float = 0.0

    def fits(self, command: str) -> bool:
        return re.match(self.pattern, command) is not None

    def short(self, words: list[str]) -> list[str]:
        """The short form of a command's words."""
        out, left = [], dict(self.options)
        rest = iter(" ".join(self.words.get(word, word) for word in words).split())
        for word in rest:
            out.append(word)
            if word in left:
                value = left.pop(word)
                if value:
                    next(rest)
                    out.append(value)
        for option, value in left.items():
            out += [option, value] if value else [option]
        return out


AS_IT_STANDS = (
    r"headcount \S+( \S+)* --help$",
    r"headcount bound (list|show|qsa|match3|protocol)\b",
    r"headcount construct (list|scan)\b",
    r"headcount construct match-s .*--modulus (101|100003)\b",
    r"headcount construct match-s( --help)?$",
    r"headcount task (list|sample|solve)\b",
    r"headcount refute\b",
    r"headcount operator list$",
    r"headcount plan ",
    r"headcount trim \S+ ",
    r"headcount report\b",
    r"headcount build\b",
    r"headcount allocate (?!--table)",
    r"headcount kernels(?!.*(--out|--seed))",
    r"headcount kernels --position t5 --out\b",
    r"python benchmarks/tasks.py$",
)
"""Lines that take seconds at most."""

AUDIT = {"--tokens": "192", "--context": "32"}
SATURATION = {"--contexts": "16,32", "--tokens": "128"}
SELECTION = {"--context": "32", "--tokens": "64"}
EVALUATION = {"--windows": "1", "--context": "32", "--decode": "2x16"}
BENCH = {"--seconds": "0.01", "--no-memory": ""}
TABLE = {"--position": "rope", "--context": "128", "--logit-budget": "12"}
TEXT = {"--text": "text.txt"}
TINY = {"demo": "MODEL"}

RULES = (
    Rule(r"headcount audit --saturation$", SATURATION | TEXT, {"audit": "audit MODEL"}),
    Rule(
        r"headcount audit demo --saturation --contexts 128,256,512,1024,2048$",
        SATURATION | TEXT,
        TINY,
        exact="real",
        shown="lines",
        within=0.05,
    ),
    Rule(r"headcount audit .*--saturation", SATURATION | TEXT, TINY),
    Rule(
        r"headcount audit demo --selection --context 128$",
        SELECTION | TEXT,
        TINY,
        exact="real",
        shown="lines",
        within=0.15,
    ),
    Rule(r"headcount audit .*--selection", SELECTION | TEXT, TINY),
    Rule(r"headcount audit demo --out runs/audit$", AUDIT | TEXT, TINY, exact="real"),
    Rule(r"headcount audit ", AUDIT | TEXT, TINY),
    Rule(r"headcount trim MODEL$", words={"MODEL": "MODEL runs/plan"}),
    Rule(r"headcount plan --multiple 64$", {"--cache": "1"}, {"plan": "plan runs/audit"}),
    Rule(r"headcount plan$", words={"plan": "plan runs/audit"}),
    Rule(r"headcount plan --scratch .*--from runs/audit$", exact="real", shown="words"),
    Rule(r"headcount evaluate( --|$)", EVALUATION, {"evaluate": "evaluate MODEL"}),
    Rule(r"headcount evaluate", EVALUATION),
    Rule(r"headcount demo", {"--model": "MODEL", "--quick": "", "--decode": "2x16"}),
    Rule(r"headcount learn match3", {"--steps": "2", "--params": "2000"}),
    Rule(r"headcount learn", {"--steps": "2"}),
    Rule(r"headcount sweep grid.toml", {"--workers": "1"}),
    Rule(r"headcount figure saturation --work"),
    Rule(r"headcount figure", {"--workers": "1"}),
    Rule(r"headcount operator bench .*--window", {"--tokens": "64", "--window": "16x8"} | BENCH),
    Rule(r"headcount operator bench", {"--tokens": "8"} | BENCH),
    Rule(r"headcount kernels --position rope --context", {"--dims": "2", "--lags": "1"}, exact="slow"),
    Rule(r"headcount allocate .* --table rope.json", {"--lags": "1"}, exact="slow"),
    Rule(r"headcount kernels --position rope --lags 3 --dims 64 --seed", {"--dims": "2", "--lags": "0"}, exact="slow"),
    Rule(r"headcount allocate --table", {"--lags": "1", "--budget": "8"} | TABLE),
    Rule(r"headcount bound protocol qsa", {"--count": "2"}, exact="slow"),
    Rule(r"headcount construct match-s .*--modulus 4001", {"--count": "1"}, exact="slow"),
    Rule(r"headcount construct qsa-certificate --tokens 1024", {"--tokens": "128", "--count": "1"}, exact="slow"),
    Rule(r"headcount construct qsa-certificate --tokens 4096", {"--tokens": "256", "--count": "1"}, exact="slow"),
    Rule(r"headcount construct check", {"--count": "1"}, exact="slow"),
    Rule(r"headcount construct (cliff|dimensions)", needs="slow", exact="slow"),
    Rule(r"headcount --install-completion", words={"--install-completion": "--show-completion bash"}),
    Rule(r"python benchmarks/theory_scan.py", {"--sets": "5"}, needs="slow"),
    Rule(r"python benchmarks/learning.py", {"--steps": "2"}),
    Rule(r"python benchmarks/operators.py decoding", {"--quick": "", "--seconds": "0.1"}, codes=(0, 1)),
    Rule(r"python benchmarks/operators.py", needs="slow", exact="slow", codes=(0, 1)),
    Rule(r"python benchmarks/trimming.py", {"--windows": "1", "--decode": "2x256", "--rows": "speed"}, needs="real"),
    Rule(r"python benchmarks/large_audit.py", {"--tokens": "512", "--layers": "1"}, {"32": ""}, needs="real"),
    Rule(r"python benchmarks/client_matrix.py", {"sliding": ""}, exact="slow"),
)

MACHINE = (
    (r"headcount refute mlp", r"\d+(\.\d+)?e-\d+", "what rounding leaves of equal outputs"),
    (r"python benchmarks/tasks.py", r"[\d.]+(?= (s\b|million floats))", "seconds and rates"),
    (r"headcount operator", r"\(.*\)$", "the processor"),
)
"""Numbers of an output that are the machine's: command, pattern, what they are. They may differ from the page's."""

EXAMPLES = (
    ('open_model("demo")', 'open_model("MODEL")'),
    ("calibration_tokens(opened)", 'calibration_tokens(opened, context=32, texts=["text.txt"])'),
    ("headcount.audit(opened,", 'headcount.audit(opened, tokens=256, context=32, texts=["text.txt"],'),
    ("opened.tokenizer)])", "opened.tokenizer)], windows=1, context=32, decode=None)"),
    ("2, 8, 512, 64, requires_grad", "2, 8, 8, 64, requires_grad"),
)
"""What is replaced in the pages' Python examples, to run them in seconds."""

BEFORE = {
    "docs/report.md": """
import headcount
opened = headcount.open_model("MODEL")
audit = headcount.audit(opened.model, headcount.calibration_tokens(opened))
plan = headcount.plan(audit, cache=0.5)
smaller = headcount.trim(opened.model, plan)
evaluation = headcount.evaluate([opened, ("half", smaller, opened.tokenizer)])
"""
}
"""What a page's examples take from the reader."""
