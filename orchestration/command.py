"""What every program of this folder shares at the terminal.

Decisions: a mistake the user can mend is one line and a hint with exit code 2; a job that failed is
one line with where to look and exit code 1; Ctrl-C is 130; a defect of this software is one line with
its kind and the places in our code, and exit code 1, since a traceback quotes what was read. What a
program writes is for its user alone, and it leaves no core dump.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from typing import Any

import typer

from mpma.errors import JobError, UserError
from orchestration import defects


def program(help_text: str) -> typer.Typer:
    """A typer application with this project's habits; the single command is its callback."""
    return typer.Typer(
        help=help_text,
        add_completion=False,
        no_args_is_help=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run(main: Callable[..., Any]) -> None:
    """Run a typer application and turn its failures into lines and exit codes."""
    # Datasets, runs, exports and what Ray writes beside them are made of confidential pairs.
    os.umask(0o077)
    # So is the memory of this process and of those that it starts.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    defects.hook_program()
    # A typer application that is called puts a hook of its own in the place of ours.
    command = typer.main.get_command(main) if isinstance(main, typer.Typer) else main
    try:
        command()
    except UserError as error:
        report(error)
        sys.exit(1 if isinstance(error, JobError) else 2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        defects.report(error)
        sys.exit(1)


def report(error: UserError) -> None:
    """Print the one line of an error, and its hint."""
    print(f"error: {' '.join(error.message.split())}", file=sys.stderr)
    if error.hint:
        print(f"hint: {' '.join(error.hint.split())}", file=sys.stderr)
