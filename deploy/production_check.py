"""Installs what the production image installs, without the engine, and tries it: `make production-check`.

Needs Python 3.11, a C compiler and 12 GB below build/; no GPU, no container engine. The packages are those of
torch.lock and serve.lock, installed by the Dockerfile's own commands. Then, as the image has them: the set fits
together, the model's modules are imported, Triton's kernels are compiled, and what the imports cost is measured. With
pytest on top, which may change no version of the locks: the tests of the model, of its weights and of the int4 format.

Each step's seconds are printed. The first that fails ends the check.
"""

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
ROOM = REPOSITORY / "build" / "production-check"
PYTHON = ROOM / "venv" / "bin" / "python"

INSTALL = re.compile(r"pip (install [^\\&|{}]*-r (requirements/(?:torch|serve)\.lock))")
"""The Dockerfile's commands for the two locks, without `pip` itself."""

MODULES = (
    "qwen_edit.loading.assembly",
    "qwen_edit.editor",
    "qwen_edit.serving.queue.worker",
    "qwen_edit.serving.http.app",
    "builder",
    "handler",
)

TEST_PACKAGES = ("hypothesis", "pytest")
"""Of the extra `dev`: what the tests below import."""

TESTS = ("tests/model", "tests/weights", "tests/svdq")

COMPILING = ("tests/model/transformer/test_compile.py", "tests/model/transformer/test_compiled_editor.py")
"""Of these, what wants a process of its own: one that imported diffusers without the compiler does not compile later,
and most of the other tests do that, as a worker does."""

ITS_OWN = {"PYTHONUNBUFFERED": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_QUIET": "1"}
"""Variables of every step."""

VERSIONS = """
import json
from importlib.metadata import distributions
print(json.dumps({one.name: one.version for one in distributions()}))
"""

NO_DRIVER = """
import torch
assert torch.version.cuda, "this is not PyTorch's build for CUDA"
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
"""


def main() -> None:
    """Install, check, import, compile, measure, test."""
    if sys.version_info[:2] != (3, 11):
        sys.exit(
            f"production-check: this is Python {sys.version.split()[0]}, the image has 3.11; run it with python3.11"
        )
    started = time.monotonic()
    _step("a venv", sys.executable, "-m", "venv", "--clear", str(ROOM / "venv"))
    for arguments in installs((REPOSITORY / "Dockerfile").read_text("utf-8")):
        _step(f"pip {arguments}", *_python("-m", "pip", *arguments.split()))
    locked = _versions()
    _say(f"{len(locked)} packages, pip among them")
    _try_as_the_image_has_it()
    _add_tests(locked)
    pytest = _python("-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs")
    for file in COMPILING:
        _step(file, *pytest, file)
    _step("tests", *pytest, *TESTS, *(f"--ignore={file}" for file in COMPILING))
    _say(f"green after {time.monotonic() - started:.0f} s")


def installs(dockerfile: str) -> Iterator[str]:
    """The arguments of pip for each lock, torch.lock first as in the Dockerfile.

    Raises:
        ValueError: the Dockerfile does not install each of the two once.
    """
    found = INSTALL.findall(dockerfile)
    if [lock for _, lock in found] != ["requirements/torch.lock", "requirements/serve.lock"]:
        raise ValueError(f"the Dockerfile installs {[lock for _, lock in found]}, expected torch.lock, then serve.lock")
    for arguments, _ in found:
        yield arguments


def _try_as_the_image_has_it() -> None:
    _step("the set fits together", *_python("requirements/check.py"))
    _step("PyTorch without a driver", *_python("-c", NO_DRIVER))
    _step("imports", *_python("-c", f"import {', '.join(MODULES)}"))
    kernels = ("-m", "qwen_edit.model.transformer.fused.build", "--folder", str(ROOM / "kernels"))
    _step("Triton's kernels", *_python(*kernels))
    _step("what the imports cost", *_python("-m", "bench.start.imports"))


def _add_tests(locked: dict[str, str]) -> None:
    """Add what the tests import; pip is told to keep what is there, and whether it did is looked at."""
    constraints = ROOM / "locked.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in locked.items()))
    wanted = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"][
        "dev"
    ]
    packages = [need for need in wanted if re.split(r"\W", need)[0] in TEST_PACKAGES]
    _step("pytest on top", *_python("-m", "pip", "install", "--constraint", str(constraints), *packages))
    found = _versions()
    changed = sorted(name for name, version in locked.items() if found.get(name) != version)
    if changed:
        sys.exit(f"production-check: the tests' packages changed {', '.join(changed)}, which the locks pin")


def _versions() -> dict[str, str]:
    done = subprocess.run(_python("-c", VERSIONS), check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def _python(*arguments: str) -> list[str]:
    return [str(PYTHON), *arguments]


def _step(what: str, *command: str) -> None:
    _say(f"{what} …")
    started = time.monotonic()
    # Neither packages from elsewhere nor settings of a worker.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "QWEN_EDIT_"))}
    result = subprocess.run(command, cwd=REPOSITORY, env={**environment, **ITS_OWN})  # noqa: S603
    if result.returncode:
        sys.exit(f"production-check: {what}: ended with {result.returncode}")
    _say(f"{what}: {time.monotonic() - started:.1f} s")


def _say(line: str) -> None:
    print(f"production-check: {line}", flush=True)


if __name__ == "__main__":
    main()
