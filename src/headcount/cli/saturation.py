"""Implementation of ``headcount audit`` with ``--saturation`` and ``--selection``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headcount.cli.common import emit_json, progress_bars, show
from headcount.core.errors import HeadcountError

if TYPE_CHECKING:
    from headcount.pretrained.opening.loading import OpenModel

CONTEXTS = "128,256,512,1024,2048"
TOKENS = 8_192
"""Default tokens per context without --tokens."""


def check_options(
    saturation: bool, contexts: str | None, selection: bool, context: int | None, figure: Path | None
) -> list[int]:
    """The requested contexts; incompatible options are rejected before the model is opened."""
    from headcount.probes.windows import check_contexts, parse_contexts

    if saturation and selection:
        raise HeadcountError("--saturation and --selection are two measurements", fix="ask for one at a time")
    if contexts is not None and not saturation:
        raise HeadcountError("--contexts belongs to --saturation", fix="add --saturation, or use --context")
    if figure is not None and not saturation:
        raise HeadcountError("--figure belongs to --saturation", fix="add --saturation, or leave --figure out")
    if saturation and context is not None:
        raise HeadcountError("--context is for one length", fix=f"with --saturation write --contexts {context}")
    lengths = parse_contexts(contexts if contexts is not None else CONTEXTS)
    check_contexts(lengths)
    return lengths


def run_saturation(
    model: OpenModel,
    contexts: Sequence[int],
    out: Path,
    texts: Sequence[Path],
    tokens: int | None,
    seed: int,
    matmul_dtype: str,
    overwrite: bool,
    as_json: bool,
    figure: Path | None,
) -> None:
    """``headcount audit --saturation``: measures unless the folder is complete; always draws the figure."""
    from headcount.core.extras import require
    from headcount.lab.figures.saturation import FIGURE
    from headcount.probes.saturation.record import summary_json
    from headcount.probes.saturation.run import saturation
    from headcount.probes.windows import measured_windows
    from headcount.report.terminal.saturation import saturation_tables

    require("matplotlib")
    each = TOKENS if tokens is None else tokens
    windows = {context: measured_windows(model, context, each, texts, seed) for context in contexts}
    with progress_bars() as progress:
        result = saturation(
            model,
            windows,
            out=out,
            seed=seed,
            matmul_dtype=matmul_dtype,
            overwrite=overwrite,
            progress=progress,
        )
    places = [result.folder, *([figure] if figure is not None else [])]
    files = [FIGURE.write(result, place) for place in places][-1]
    if as_json:
        emit_json(summary_json(result) | {"files": {suffix: str(path) for suffix, path in files.items()}})
        return
    show(*saturation_tables(result))
    if figure is not None:
        show(f"Figure: {', '.join(str(path) for path in files.values())}")


def run_selection(
    model: OpenModel,
    context: int,
    out: Path,
    texts: Sequence[Path],
    tokens: int | None,
    seed: int,
    matmul_dtype: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """``headcount audit --selection``."""
    from headcount.probes.selection.run import selection, summary_json
    from headcount.probes.windows import measured_windows
    from headcount.report.terminal.saturation import selection_tables

    windows = measured_windows(model, context, 2 * context if tokens is None else tokens, texts, seed)
    with progress_bars() as progress:
        result = selection(
            model, windows, out=out, seed=seed, matmul_dtype=matmul_dtype, overwrite=overwrite, progress=progress
        )
    if as_json:
        emit_json(summary_json(result))
        return
    show(*selection_tables(result))
