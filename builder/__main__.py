"""`python -m builder`: bake, verify, sizes, tiny."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from builder.errors import UsageError
from builder.place import models_from
from qwen_edit.errors import SettingsError

DONE, FAILED, USAGE = 0, 1, 2
"""Exit statuses: all well; a part failed and the rest can be used; the command cannot be understood."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (UsageError, SettingsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m builder", description="Put weights on disk and prove them whole.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_bake(commands.add_parser("bake", help="fetch what serving needs; goes on where an earlier run stopped"))
    _add_verify(commands.add_parser("verify", help="what is there, and whether it is whole"))
    commands.add_parser("sizes", help="what a bake weighs, before anything is fetched").set_defaults(run=_sizes)
    tiny = commands.add_parser("tiny", help="write the tiny random model in the production layout")
    _add_models(tiny)
    tiny.set_defaults(run=_tiny)
    return parser


def _add_bake(parser: argparse.ArgumentParser) -> None:
    from builder.bake import JOBS
    from builder.source import CHECKPOINT_NAMES, COMPONENTS

    _add_models(parser)
    parser.add_argument(
        "--checkpoints",
        type=_names,
        default=CHECKPOINT_NAMES,
        metavar="NAMES",
        help=f"which checkpoints to bake (default {','.join(CHECKPOINT_NAMES)})",
    )
