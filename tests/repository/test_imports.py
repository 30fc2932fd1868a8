import subprocess
import sys
from collections.abc import Iterator

from tests.support.places import ROOT

ROOMS = ("contract", "edit", "machine", "pictures", "serving", "store")
TOP = ("editor", "errors", "https", "log", "public_addresses", "settings")
HEAVY = ("torch", "transformers", "diffusers", "runpod")


def modules() -> Iterator[str]:
    """Every module that a request passes before the device, or that decides what runs on it."""
    yield from (f"qwen_edit.{name}" for name in TOP)
    for room in ROOMS:
        for file in sorted((ROOT / "qwen_edit" / room).rglob("*.py")):
            if file.name != "__init__.py" and (room, file.name) != ("machine", "device.py"):
                yield ".".join(file.relative_to(ROOT).with_suffix("").parts)


def test_a_request_is_checked_without_the_libraries_that_take_seconds_to_import() -> None:
    imports = "; ".join(f"import {module}" for module in modules())
    code = f"import sys; {imports}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
