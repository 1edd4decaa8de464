"""The report: one self-contained page and tables for the terminal, from the records of a run."""

from headcount.report.collect import from_records, from_run, made_by
from headcount.report.page.document import write_report

__all__ = ["from_records", "from_run", "made_by", "write_report"]
