"""Which modules do without the libraries that take seconds to import: two programs, with a list of modules each."""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator

from tests.support.places import ROOT

ROOMS = ("contract", "edit", "machine", "pictures", "serving", "store")
TOP = ("editor", "errors", "https", "log", "public_addresses", "settings")
READING = ("disk", "header", "placement")
HEAVY = ("torch", "transformers", "diffusers", "runpod", "requests")

PROGRAM = """
import importlib, json, sys
modules, heavy = json.loads(sys.argv[1])
for module in modules:
    before = set(sys.modules)
    importlib.import_module(module)
    if came := sorted(set(heavy) & set(sys.modules) - before):
        print(module, *came)
"""


def imported_by(modules: Iterable[str], heavy: Iterable[str]) -> list[str]:
    """Each module that brought some of the heavy ones, with their names, where they are imported in this order."""
    asked = json.dumps([list(modules), list(heavy)])
    done = subprocess.run([sys.executable, "-c", PROGRAM, asked], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def before_the_device() -> Iterator[str]:
    """Every module that a request passes before the device, or that decides what runs on it."""
    yield from (f"qwen_edit.{name}" for name in TOP)
    for room in ROOMS:
        for file in sorted((ROOT / "qwen_edit" / room).rglob("*.py")):
            if file.name != "__init__.py" and (room, file.name) != ("machine", "device.py"):
                yield ".".join(file.relative_to(ROOT).with_suffix("").parts)


def test_a_request_is_checked_and_a_header_read_without_the_libraries_that_take_seconds_to_import() -> None:
    reading = (f"qwen_edit.weights.{name}" for name in READING)

    assert imported_by([*before_the_device(), *reading], HEAVY) == []


def test_a_checkpoint_is_expanded_before_diffusers_and_transformers_are_imported() -> None:
    assert imported_by(["qwen_edit.model.transformer.expansion"], ("diffusers", "transformers")) == []
