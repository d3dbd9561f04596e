"""The command line, `thermocline`: stdout is data, stderr is talk; exit 0 is done, 1 failed, 2 wrong usage, 3 partly done.

One file per group of commands. They import what they need when they run, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit. What goes wrong is one line on stderr, never a stack trace."""
    logging.getLogger("pyiceberg").setLevel(logging.ERROR)  # it warns of every column we keep no bounds of
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        code = 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has nobody to read it
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    import typer

    from thermocline.errors import ThermoclineError

    from .app import app, hoisted

    for number, argument in enumerate(arguments, 1):
        if not argument.isprintable() and any("\ud800" <= character <= "\udfff" for character in argument):
            return _failed(f"argument {number} is not UTF-8: {argument!r}", 2)
    try:
        return app(hoisted(arguments), prog_name="thermocline", standalone_mode=False) or 0
    except typer.TyperException as exc:
        context = getattr(exc, "ctx", None)
        if context is not None and exc.format_message() == context.get_help():  # no command was named: that is no line
            sys.stderr.write(f"{exc.format_message().rstrip()}\n")
            return exc.exit_code
        place = getattr(context, "command_path", "thermocline")
        text = exc.format_message().rstrip(".")
        return _failed(f"{text}{'' if text.endswith('?') else '.'} See `{place} --help`.", exc.exit_code)
    except typer.Abort:
        return 130
    except ThermoclineError as exc:
        return _failed(str(exc), 1)
    except OSError as exc:
        if exc.errno == errno.EPIPE:
            raise
        place = f"{exc.filename}: " if exc.filename else ""
        return _failed(f"{place}{exc.strerror or exc}", 1)


def _failed(message: str, code: int) -> int:
    sys.stderr.write(f"thermocline: {' '.join(message.split())}\n")
    return code
