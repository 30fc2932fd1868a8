"""`python -m builder`: bake, verify, sizes, demo, tiny."""

import argparse
import sys
from collections.abc import Sequence

from builder.bake.__main__ import main as bake
from builder.made.__main__ import COMMANDS as MADE
from builder.made.__main__ import main as make
from builder.verify.command import main as verify

DONE, STOPPED = 0, 130
"""Exit statuses: all is well; Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        match words:
            case ["bake", *rest]:
                return bake(rest, "python -m builder bake")
            case ["verify", *rest]:
                return verify(rest, "python -m builder verify")
            case [command, *_] if command in MADE:
                return make(words, "python -m builder")
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one was", file=sys.stderr)
        return STOPPED
    _parser().parse_args(words)
    return _sizes()


def _parser() -> argparse.ArgumentParser:
    """Of `sizes`, and of the help that lists all."""
    parser = argparse.ArgumentParser(prog="python -m builder", description="Put weights on disk and prove them whole.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("bake", help="fetch what serving needs; goes on where an earlier run stopped")
    commands.add_parser("verify", help="what is there, and whether it is whole; --help for its options")
    commands.add_parser("sizes", help="what a bake weighs, before anything is fetched")
    for command, text in MADE.items():
        commands.add_parser(command, help=text)
    return parser


def _sizes() -> int:
    from builder.sizes import table

    print(table())
    return DONE


if __name__ == "__main__":
    sys.exit(main())
