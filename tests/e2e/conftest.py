import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder import tiny
from qwen_edit.catalog import BASE_FOLDER, BASE_REPOSITORY, CHECKPOINT_FOLDER, CHECKPOINT_REPOSITORY
from tests.builder.loopback_hub import LoopbackHub, Repository

ROOT = Path(__file__).parents[2]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model exactly as `python -m builder tiny` writes it."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.write(folder)
    return folder


@pytest.fixture
def run(tmp_path: Path, tiny_models: Path) -> Run:
    """Run Python in the repository, on the tiny model, saving to `tmp_path / "saved"`."""

    def start(*arguments: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
        settings = {"MODEL_CACHE_DIR": str(tiny_models), "QWEN_EDIT_SAVE_DIR": str(tmp_path / "saved")}
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

    return start


def events(output: str) -> list[dict[str, Any]]:
    """The events that a program logged among its other lines."""
    return [json.loads(line) for line in output.splitlines() if line.startswith('{"time"')]


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def hub_of(models: Path) -> LoopbackHub:
    """A hub that publishes the tiny model as the real one is published."""
    return LoopbackHub(
        {
            BASE_REPOSITORY: Repository(files_below(models / BASE_FOLDER), "a" * 40),
            CHECKPOINT_REPOSITORY: Repository(files_below(models / CHECKPOINT_FOLDER), "b" * 40),
        }
    )
