"""Programs of the checkout, run as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from qwen_edit.store.catalog import BASE_FOLDER, BASE_REPOSITORY, CHECKPOINT_FOLDER, CHECKPOINT_REPOSITORY
from tests.support.loopback_hub import LoopbackHub, Repository
from tests.support.places import ROOT


class Run(Protocol):
    """Runs Python in the repository."""

    def __call__(self, *arguments: str, cwd: Path = ROOT, **environ: str) -> "subprocess.CompletedProcess[str]": ...


def running(settings: dict[str, str]) -> Run:
    """A `Run` with these variables, and none of the caller's that would change what the programs do."""

    def run(*arguments: str, cwd: Path = ROOT, **environ: str) -> "subprocess.CompletedProcess[str]":
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("QWEN_EDIT_", "RUNPOD_"))
        }
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env={**inherited, **settings, **environ},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def events(output: str) -> list[dict[str, Any]]:
    """The events that a program logged among its other lines."""
    return [json.loads(line) for line in output.splitlines() if line.startswith('{"time"')]


def files_below(folder: Path) -> dict[str, bytes]:
    """The content of every file by its path, with forward slashes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def hub_of(models: Path) -> LoopbackHub:
    """A hub that publishes the tiny model as the real one is published."""
    return LoopbackHub(
        {
            BASE_REPOSITORY: Repository(files_below(models / BASE_FOLDER), "a" * 40),
            CHECKPOINT_REPOSITORY: Repository(files_below(models / CHECKPOINT_FOLDER), "b" * 40),
        }
    )
