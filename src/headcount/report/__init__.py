"""The report: one self-contained page and tables for the terminal, from the records of a run."""

from typing import TYPE_CHECKING

from headcount.core.lazy import submodules
from headcount.report.collect import from_records, from_run, made_by
from headcount.report.page.document import write_report

__all__ = ["from_records", "from_run", "made_by", "write_report"]

if TYPE_CHECKING:
    from headcount.report import charts as charts
    from headcount.report import page as page
    from headcount.report import terminal as terminal
else:
    __getattr__, __dir__ = submodules(__name__)
