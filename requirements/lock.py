"""Pin every package of the image to a version and the sha256 of its wheel.

make lock              serve.lock and torch.lock, from pyproject.toml and engine.in, with the overrides of overrides.in
make lock LOCK=bake    bake.lock, from bake.in; apart, because changing it bakes the weights again

The newest versions that are allowed, for CPython 3.11 on x86-64 Linux with glibc 2.28 or later. Needs `uv` on the path.
"""

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOM = Path(__file__).parent
PYPROJECT = ROOM.parent / "pyproject.toml"

PLATFORM = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28")

CUDA = ("torch", "torchvision", "triton", "nvidia-", "cuda-")
"""How the names begin that come with a CUDA build of PyTorch: the tiny image has a CPU build in their place."""


def main(arguments: list[str]) -> None:
    """Write the locks that are asked for."""
    if arguments == ["bake"]:
        _write("bake.lock", _resolve(ROOM / "bake.in"))
        return
    packages = _resolve(PYPROJECT, ROOM / "engine.in", "--overrides", ROOM / "overrides.in")
    _write("serve.lock", _those(packages, lambda name: not name.startswith(CUDA)))
    _write("torch.lock", _those(packages, lambda name: name.startswith(CUDA)))


def _resolve(*sources: Path | str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pylock.toml"
        command = ["uv", "pip", "compile", "--quiet", "--no-config", "--upgrade", "--only-binary", ":all:"]
        subprocess.run([*command, *PLATFORM, "--output-file", output, *sources], check=True)  # noqa: S603
        packages: list[dict[str, Any]] = tomllib.loads(output.read_text())["packages"]
        return packages


def _those(packages: Iterable[dict[str, Any]], wanted: Callable[[str], bool]) -> list[dict[str, Any]]:
    return [package for package in packages if wanted(package["name"])]


def _write(name: str, packages: Iterable[dict[str, Any]]) -> None:
    text = "# Written by `make lock`.\n" + "".join(map(_pin, packages))
    (ROOM / name).write_text(text)


def _pin(package: dict[str, Any]) -> str:
    hashes = sorted(f"--hash=sha256:{wheel['hashes']['sha256']}" for wheel in package["wheels"])
    return " \\\n    ".join([f"{package['name']}=={package['version']}", *hashes]) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
