import subprocess
import sys
from pathlib import Path

from tests.support.places import PHOTOS

PHOTO = PHOTOS / "chelsea.png"
PARTS = "('torch._dynamo', 'torch._inductor', 'torch.distributed.tensor', 'torch.distributed.fsdp')"


def run(program: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_edit_needs_neither_the_compiler_nor_the_distributed_parts_of_torch(models: Path) -> None:
    program = f"""
import base64, pathlib, sys
image = base64.b64encode(pathlib.Path(sys.argv[2]).read_bytes()).decode()
from qwen_edit import Editor, EditRequest
from qwen_edit.settings import Settings
editor = Editor.load(Settings.from_environ({{"MODEL_CACHE_DIR": sys.argv[1]}}))
editor.edit(EditRequest(image=image, prompt="make it snow", width=256, height=256))
print([part for part in {PARTS} if part in sys.modules])
"""
    assert run(program, str(models), str(PHOTO)) == "[]\n"


def test_the_real_packages_are_there_for_whoever_asks_later() -> None:
    program = """
import sys, torch
from qwen_edit.loading.imports.torch_parts import lean_torch
with lean_torch():
    from qwen_edit.model.pipeline import EditPipeline
compiled = torch.compile(lambda x: x + 1, backend="eager")
print(compiled(torch.ones(1)).item(), torch.distributed.is_available(), torch._dynamo.__file__ is not None)
"""
    assert run(program) == "2.0 True True\n"


def test_what_is_imported_already_is_left_as_it_is() -> None:
    program = """
import torch._dynamo, torch.distributed.tensor
from qwen_edit.loading.imports.torch_parts import lean_torch
before = torch._dynamo
with lean_torch():
    print(torch._dynamo is before, torch.distributed.is_available())
print(torch._dynamo is before)
"""
    assert run(program) == "True True\nTrue\n"


def test_a_package_that_imports_parts_of_the_compiler_does_not_keep_the_rest_out() -> None:
    program = """
import torch
from qwen_edit.loading.imports.torch_parts import lean_torch
with lean_torch():
    from torch._dynamo.utils import counters  # as torchvision does
    import transformers.masking_utils
import torch._dynamo
compiled = torch.compile(lambda x: x + 1, backend="eager")
print(compiled(torch.ones(1)).item(), torch._dynamo.utils.counters is not None)
"""
    assert run(program) == "2.0 True\n"
