"""`python -m builder.made`: demo, tiny.

A module of its own: what it imports decides which changes build the weight layer of the tiny image anew.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from builder.bake.errors import BakeError, UsageError
from builder.bake.models_option import add_models, models_of
from builder.bake.printed import printable

DONE, FAILED, USAGE = 0, 1, 2
"""Exit statuses: the model is there; it could not be put there; the command cannot be understood."""

COMMANDS = {
    "demo": "lay out the demo model, which follows a handful of instructions",
    "tiny": "write the tiny random model in the production layout",
}


def main(words: Sequence[str] | None = None, program: str = "python -m builder.made") -> int:
    """Make a model as the command line says.

    Args:
        words: the arguments; those of the process where left out.
        program: what the help calls the command.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog=program)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for command, text in COMMANDS.items():
        add_models(commands.add_parser(command, help=text))
    options = parser.parse_args(words)
    try:
        _write(options)
    except UsageError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return USAGE
    except BakeError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return FAILED
    return DONE


def _write(options: argparse.Namespace) -> None:
    models = models_of(options, os.environ)
    if options.command == "demo":
        from builder.made.demo.files import write

        write(models)
    else:
        from builder.made import tiny

        tiny.write(models)


if __name__ == "__main__":
    sys.exit(main())
