"""Errors that a user can act on: each states what is wrong and how to fix it."""

from __future__ import annotations


class HeadcountError(Exception):
    """The input or the usage is wrong.

    ``fix`` states how to correct it. The command line prints both on one line and exits with ``exit_code``.

    >>> str(HeadcountError("rank 300 is larger than the key width 192", fix="choose a rank up to 192"))
    'rank 300 is larger than the key width 192; choose a rank up to 192'
    """

    exit_code = 2

    def __init__(self, message: str, fix: str | None = None) -> None:
        self.message = message
        self.fix = fix
        super().__init__(f"{message}; {fix}" if fix else message)


class CheckFailedError(HeadcountError):
    """A requested check failed: this is a result, not a usage error (exit code 1)."""

    exit_code = 1
