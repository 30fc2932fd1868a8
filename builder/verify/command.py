"""`python3 verify_models.py` and `python -m builder verify`."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from builder.bake.errors import UsageError
from builder.bake.models_option import add_models, models_of
from builder.bake.printed import printable
from builder.verify.directory import verify
from builder.verify.report import PLAIN, Marks, document, lines, listing


def main(words: Sequence[str] | None = None, program: str | None = None) -> int:
    """The command that operators type.

    Args:
        words: the arguments; those of the process where left out.
        program: what the help calls the command; the process's own name where left out.

    Returns:
        0 only if everything is whole.
    """
    parser = argparse.ArgumentParser(
        prog=program, description="What the model directory holds, and whether it is whole."
    )
    add_arguments(parser)
    try:
        return run(parser.parse_args(words), os.environ)
    except UsageError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_models(parser)
    parser.add_argument(
        "--hash", action="store_true", help="read every byte; without it sizes, headers and small files"
    )
    parser.add_argument("--list", action="store_true", help="list every file with its size and source")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Verify and print; the exit status.

    Raises:
        UsageError: the model directory is something else than a folder.
    """
    report = verify(models_of(options, environ), every_byte=options.hash)
    if options.json:
        _print([document(report)], sys.stdout)
    else:
        texts = [*(listing(report) if options.list else ()), *lines(report, _marks(sys.stdout))]
        _print(list(map(printable, texts)), sys.stdout)
    return 0 if report.ok else 1


def _marks(stream: TextIO) -> Marks:
    marks = Marks()
    try:
        (marks.good + marks.bad).encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return PLAIN
    return marks


def _print(texts: Sequence[str], stream: TextIO) -> None:
    encoding = stream.encoding or "ascii"
    # In one write, so that a reader that wants only the first lines breaks no pipe.
    stream.write("\n".join([*texts, ""]).encode(encoding, "backslashreplace").decode(encoding))
