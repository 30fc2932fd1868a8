"""Where the model directory is: `--models`, else `MODEL_CACHE_DIR`, else the place inside the container image."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from builder.bake.errors import UsageError
from qwen_edit.store.catalog import MODELS

VARIABLE = "MODEL_CACHE_DIR"

INCOMPLETE = ".incomplete"
"""How the name of a file ends that is not whole yet: no reader looks for such a name."""


def add_models(parser: argparse.ArgumentParser) -> None:
    """Give a command the option `--models DIR`."""
    parser.add_argument("--models", metavar="DIR", help=f"the model directory (default ${VARIABLE}, else {MODELS})")


def models_of(options: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    """The model directory that the command line or the environment names.

    Read here and not by the server's settings: those change often, and each change would bake the image's weights anew.

    Raises:
        UsageError: it is something else than a folder.
    """
    if options.models is not None and not options.models.strip():
        raise UsageError(f"--models is {options.models!r}, expected the model directory: is a variable there unset?")
    models = Path(options.models or environ.get(VARIABLE, "").strip() or MODELS)
    try:
        usable = models.is_dir() or not models.exists()
    except OSError as error:
        raise UsageError(f"{models} cannot be the model directory: {error.strerror}") from error
    if not usable:
        raise UsageError(f"{models} is not a folder, expected the model directory")
    return models
