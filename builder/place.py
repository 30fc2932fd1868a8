"""Where the model directory is: `--models`, else `MODEL_CACHE_DIR`, else the place inside the container image."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from builder.errors import UsageError
from qwen_edit.catalog import MODELS

VARIABLE = "MODEL_CACHE_DIR"

INCOMPLETE = ".incomplete"
"""How the name of a file ends that is not whole yet: no reader looks for such a name."""


def add_models(parser: argparse.ArgumentParser) -> None:
    """Give a command the option `--models DIR`."""
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help=f"the model directory (default ${VARIABLE}, else {MODELS})"
    )


def models_of(options: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    """The model directory that the command line or the environment names.

    Read here and not by the server's settings: those change often, and each change would bake the image's weights anew.

    Raises:
        UsageError: it is something else than a folder.
    """
    models = Path(options.models or environ.get(VARIABLE, "").strip() or MODELS)
    if models.exists() and not models.is_dir():
        raise UsageError(f"{models} is not a folder, expected the model directory")
    return models
