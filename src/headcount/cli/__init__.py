"""The command line: one file per command group; heavy imports happen only when a command runs."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> None:
    """Run ``headcount``; exit 0 (done), 1 (a check failed) or 2 (the input or the usage is wrong)."""
    import typer

    from headcount.cli.app import app
    from headcount.core.errors import HeadcountError

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    try:
        sys.exit(app(arguments, standalone_mode=False) or 0)
    except HeadcountError as error:
        if debug:
            raise
        _say(f"{error.message}; {error.fix}" if error.fix else error.message)
        sys.exit(error.exit_code)
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            sys.stdout.write(error.format_message() + "\n")
            sys.exit(0)
        _say(f"{error.format_message().rstrip('.')}; see headcount --help")
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        _say("stopped; the same command goes on where it was")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)


def _say(line: str) -> None:
    sys.stderr.write("headcount: " + " ".join(line.split()) + "\n")
