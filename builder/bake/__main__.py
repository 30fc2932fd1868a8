"""`python -m builder.bake`: fetch what serving needs.

A module of its own, with its own parser: what it imports decides which changes build an image's weight layers anew.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from builder.bake.errors import BakeError, UsageError
from builder.bake.models_option import add_models, models_of
from builder.bake.parts import CHECKPOINT_NAMES, COMPONENTS, Kind, select
from builder.bake.printed import amount, printable

DONE, FAILED, USAGE, STOPPED = 0, 1, 2, 130
"""Exit statuses: all is well; a part failed and the rest can be used; the command cannot be understood; Ctrl-C."""


def main(words: Sequence[str] | None = None, program: str = "python -m builder.bake") -> int:
    """Bake as the command line says.

    Args:
        words: the arguments; those of the process where left out.
        program: what the help calls the command.

    Returns:
        The exit status.
    """
    options = _parser(program).parse_args(words)
    try:
        return _bake(options)
    except UsageError as error:
        _say(f"error: {error}")
        return USAGE
    except BakeError as error:
        _say(f"error: {error}")
        return FAILED
    except KeyboardInterrupt:
        _say("stopped; the same command goes on where this one was")
        return STOPPED


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        epilog="exit status: 0 all is whole, 1 a part failed and the rest can be used, 2 the command is mistaken",
    )
    add_models(parser)
    names = ",".join(CHECKPOINT_NAMES)
    parser.add_argument("--checkpoints", metavar="NAMES", help=f"which of {names} (default all)")
    parser.add_argument(
        "--components",
        metavar="NAMES",
        help=f"only these of {','.join(COMPONENTS)}, so that each can be an image layer (default all; a checkpoint "
        "that --checkpoints leaves out is left out here too)",
    )
    parser.add_argument(
        "--revision",
        action="append",
        default=[],
        metavar="KIND=REV",
        help="pin a repository to a commit, branch or tag: base=REV, checkpoints=REV (default main)",
    )
    parser.add_argument("--hash", action="store_true", help="read every byte that is there instead of trusting sizes")
    return parser


def _names(option: str, text: str | None, default: Sequence[str]) -> Sequence[str]:
    """The names of a list that is left out, or has at least one."""
    if text is None:
        return default
    names = [name for name in (part.strip() for part in text.split(",")) if name]
    if not names:
        raise UsageError(f"{option} is {text!r}, expected at least one name, or no {option} at all")
    return names


def _revisions(values: Sequence[str]) -> dict[Kind, str]:
    revisions: dict[Kind, str] = {}
    for value in values:
        match value.partition("="):
            case ("base" | "checkpoints" as kind, "=", revision) if revision:
                if kind in revisions:
                    raise UsageError(f"--revision has {kind} twice, {revisions[kind]!r} and {revision!r}, expected one")
                revisions[kind] = revision
            case _:
                raise UsageError(f"--revision is {value!r}, expected base=REV or checkpoints=REV")
    return revisions


def _bake(options: argparse.Namespace) -> int:
    from builder.bake.hub import Hub
    from builder.bake.order import Order, bake

    models = models_of(options, os.environ)
    components = _names("--components", options.components, ())
    parts = select(components, _names("--checkpoints", options.checkpoints, CHECKPOINT_NAMES))
    if not parts:
        print(printable(f"nothing to bake: {','.join(components)} is not among the --checkpoints chosen"))
        return DONE
    order = Order(models, parts, _revisions(options.revision), reread=options.hash)
    outcome = bake(order, Hub(), _say)
    for sentence in dict.fromkeys(sentence for sentences in outcome.failures.values() for sentence in sentences):
        _say(f"error: {sentence}")
    whole = [part.name for part in parts if part.name not in outcome.failures]
    if outcome.failures:
        _say(f"failed: {', '.join(outcome.failures)}; whole: {', '.join(whole) or 'nothing'}")
        return FAILED
    commits = ", ".join(f"{repository} at {commit[:12]}" for repository, commit in outcome.commits.items())
    whole_of_it = f"{models} has {outcome.files} files, {amount(outcome.bytes)}, of {commits}"
    print(printable(f"{whole_of_it}; fetched {amount(outcome.fetched)}"))
    return DONE


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
