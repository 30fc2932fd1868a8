"""Where the model directory is: `--models`, else `MODEL_CACHE_DIR`, else the place inside the container image."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from qwen_edit.settings import Settings

VARIABLE = "MODEL_CACHE_DIR"

INCOMPLETE = ".incomplete"
"""How the name of a file ends that is not whole yet: no reader looks for such a name."""


def add_models(parser: argparse.ArgumentParser) -> None:
    """Give a command the option `--models DIR`."""
    default = Settings().models
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help=f"the model directory (default ${VARIABLE}, else {default})"
    )


def models_of(options: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    """The model directory that the command line or the environment names.

    Raises:
        SettingsError: the variable names something that is not a folder.
    """
    if options.models is not None:
        return Path(options.models)
    # Only this variable: a mistake in another one is the server's to report.
    return Settings.from_environ({VARIABLE: environ.get(VARIABLE, "")}).models
