"""The verbs in a row, on models that are opened by name: what the command line runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headcount.audit.record import RECORD, Audit, Metric
from headcount.audit.run import check_inputs, resolve_matmul_dtype, run_audit
from headcount.errors import HeadcountError
from headcount.pretrained.calibration import KEPT_WINDOWS, calibration_tokens, counted_windows
from headcount.pretrained.loading import OpenModel
from headcount.pretrained.texts import read_file
from headcount.progress import Progress, silent
from headcount.store import digest, open_run_folder


def audit_model(
    opened: OpenModel,
    *,
    metric: Metric = "fisher",
    tokens: int = 36_864,
    context: int = 512,
    texts: Sequence[Path] = (),
    out: Path,
    overwrite: bool = False,
    seed: int = 0,
    matmul_dtype: str = "auto",
    progress: Progress = silent,
) -> Audit:
    """Audit an opened model on the default mixture of text, or on ``texts``, into the run folder ``out``.

    The folder keeps the text that was sampled from the model, and all windows that the repair will use.
    """
    if tokens < context:
        raise HeadcountError(f"{tokens} tokens are less than one window of {context}", fix="ask for more --tokens")
    inputs = {
        "fingerprint": opened.fingerprint,
        "metric": metric,
        "tokens": tokens,
        "context": context,
        "seed": seed,
        "matmul_dtype": str(resolve_matmul_dtype(opened.model, matmul_dtype)),
        "texts": [digest(read_file(path).text) for path in texts],
    }
    folder = open_run_folder(out, "audit", inputs, overwrite)
    if (folder / RECORD).is_file():
        return Audit.open(folder)
    kept = folder / "self-text"
    share = tokens / (sum(KEPT_WINDOWS.values()) * 512)
    windows = calibration_tokens(
        opened, context=context, scale=max(1.0, share), texts=texts, seed=seed, folder=kept, progress=progress
    )
    counted = counted_windows(windows, tokens // context)
    spec = check_inputs(opened.model, windows, metric)
    return run_audit(opened.model, spec, windows, counted, metric, seed, matmul_dtype, opened.name, folder, progress)
