"""A program: starts of the editor, each in a process of its own, with names of foreign packages that were renamed.

`python -m tests.loading.imports.starts MODELS PHOTO` prints a JSON object: for each start by its name, the picture that
it made, by its hash, the log, the modules that were imported then, and the families of transformers that were read.
"""

import base64
import hashlib
import importlib
import io
import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

import torch
import torch.distributed

from qwen_edit import Editor, EditRequest
from qwen_edit.edit.prepare import prepare
from qwen_edit.loading import loader  # noqa: F401 - shared by all starts, with torch
from qwen_edit.settings import Settings

FOREIGN = ("diffusers", "transformers", "torch")
AUTOENCODER = "diffusers.models.autoencoders.autoencoder_kl_qwenimage"

Rewrite = Callable[[str, str], str]
"""The source of a module, by its name, as another version of the package could have it."""


def main(models: str, photo: str) -> None:
    """Start one after the other, and print what each gave."""
    image = base64.b64encode(Path(photo).read_bytes()).decode()
    print(json.dumps({name: forked(change, Path(models), image) for name, change in STARTS.items()}))


def forked(change: Callable[[], None], models: Path, image: str) -> dict[str, object]:
    """What a start gave, or why it failed."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            result = start_and_edit(change, models, image)
        except BaseException:
            result = {"failure": traceback.format_exc()}
        with os.fdopen(writing, "w") as answer:
            json.dump(result, answer)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        given: dict[str, object] = json.load(answer)
    os.wait()
    return given


def start_and_edit(change: Callable[[], None], models: Path, image: str) -> dict[str, object]:
    families: set[str] = set()
    sys.addaudithook(partial(note, families))
    change()
    settings = Settings(models=models, device="cpu", lean_imports=change is not in_the_ordinary_way)
    with redirect_stdout(io.StringIO()) as logged:
        editor = Editor.load(settings)
        prepared = prepare(EditRequest(image=image, prompt="make it snow", width=256, height=256, seed=1), settings)
        one_step = replace(prepared, plan=replace(prepared.plan, steps=1))
        (edited,) = editor.render(one_step).pictures
    picture = hashlib.sha256(edited.tobytes()).hexdigest()
    log = [json.loads(line) for line in logged.getvalue().splitlines()]
    return {"picture": picture, "log": log, "modules": list(sys.modules), "families": sorted(families)}


def note(families: set[str], event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook that notes the folder of a model of transformers when a file in it is opened."""
    if event == "open" and "/transformers/models/" in str(arguments[0]):
        folder, _, file = str(arguments[0]).partition("/transformers/models/")[2].partition("/")
        if file and folder != "__pycache__":
            families.add(folder)


def rewritten(rewrite: Rewrite) -> None:
    """Have the modules of the foreign packages that are still to be imported come from other sources."""
    usual = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, name: str) -> CodeType | None:
        if name.split(".")[0] not in FOREIGN:
            return usual(self, name)
        source = Path(self.path).read_text(encoding="utf-8")
        changed = rewrite(name, source)
        return usual(self, name) if changed == source else compile(changed, self.path, "exec", dont_inherit=True)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign, assignment]


def renamed(*names: str) -> None:
    def rewrite(_module: str, source: str) -> str:
        for name in names:
            source = source.replace(name, f"{name}_as_it_is_called_now")
        return source

    rewritten(rewrite)


def in_the_ordinary_way() -> None:
    pass


def lean() -> None:
    pass


def with_renamed_tables() -> None:
    renamed("define_import_structure")


def with_a_renamed_class_of_lazy_packages() -> None:
    renamed("_LazyModule")


def with_a_renamed_marker() -> None:
    renamed("allow_in_graph")
    importlib.reload(torch.compiler)  # it hands the decorators on


def with_a_renamed_question_for_distributed() -> None:
    renamed("distributed.is_available", "dist.is_available")
    names = vars(torch.distributed)
    names["is_available_as_it_is_called_now"] = names.pop("is_available")


def with_modules_that_take_a_name_from_their_eager_package() -> None:
    def rewrite(name: str, source: str) -> str:
        if name == "diffusers.models.autoencoders":
            return f"SHARED = 1\n{source}"
        return f"from . import SHARED\n{source}" if name == AUTOENCODER else source

    rewritten(rewrite)


STARTS = {
    start.__name__: start
    for start in (
        in_the_ordinary_way,
        lean,
        with_renamed_tables,
        with_a_renamed_class_of_lazy_packages,
        with_a_renamed_marker,
        with_a_renamed_question_for_distributed,
        with_modules_that_take_a_name_from_their_eager_package,
    )
}

if __name__ == "__main__":
    main(*sys.argv[1:])
