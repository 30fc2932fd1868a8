"""Lays the demo model out: its files are part of this package."""

import shutil
from pathlib import Path

from builder.bake.errors import UsageError
from builder.made.publish import publishing

MODEL = Path(__file__).parent / "model"
"""The committed files, in the production layout and without a manifest."""

REPOSITORY = "demo"
REVISION = "1"


def write(models: Path) -> None:
    """Copy the demo model below `models` and list it in `manifest.json`.

    Raises:
        UsageError: this copy of the package has no model in it.
        BakeError: as for `publishing`.
    """
    if not MODEL.is_dir():
        raise UsageError("this copy of the package has no demo model in it; run the command in a checkout")
    with publishing(models, REPOSITORY, REVISION) as folder:
        shutil.copytree(MODEL, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
