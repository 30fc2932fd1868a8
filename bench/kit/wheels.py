"""The packages that a machine with CUDA's PyTorch, transformers and pytest still lacks, as wheels for it."""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]

PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

CARRIED = (
    "diffusers",
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "boto3",
    "botocore",
    "s3transfer",
    "jmespath",
    "httpcore2",
    "truststore",
)
"""What `bench.gpu` and the tests with a GPU import beyond PyTorch, transformers, huggingface_hub, NumPy, Pillow, pytest
and hypothesis, in the versions of the image."""

_TAGS = re.compile(r"(py2\.py3|py3|cp312)-(none|abi3|cp312)-(any|(manylinux\w+x86_64\.?)+)")
_LOCKED = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)


def pinned() -> dict[str, str]:
    """The version of each of `CARRIED`, by the image's lock."""
    locked = dict(_LOCKED.findall((ROOT / "requirements" / "serve.lock").read_text("utf-8")))
    return {name: locked[name] for name in CARRIED}


def download(folder: Path) -> None:
    """Bring them from the package index into a folder.

    Raises:
        subprocess.CalledProcessError: pip could not.
    """
    wanted = [f"{name}=={version}" for name, version in pinned().items()]
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    kind = ["--no-deps", "--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp", *platforms]
    program = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*program, *kind, "--dest", str(folder), *wanted], check=True)


def check(files: Iterable[Path]) -> None:
    """See that each of `CARRIED` is there once, in its version and for that machine.

    Raises:
        ValueError: one is not, or there is another.
    """
    expected = {_plain(name): version for name, version in pinned().items()}
    for path in files:
        name, version, tags = path.name.removesuffix(".whl").split("-", 2)
        if expected.pop(_plain(name), None) != version:
            raise ValueError(f"{path.name} is not one of the wheels, or one too many")
        if not _TAGS.fullmatch(tags):
            raise ValueError(f"{path.name} is for {tags}, expected Python {PYTHON} on x86-64 Linux")
    if expected:
        raise ValueError(f"wheels are missing: {', '.join(expected)}")


def _plain(name: str) -> str:
    """A name as it is compared: `pydantic_core` is `pydantic-core`."""
    return re.sub(r"[-_.]+", "-", name).lower()
