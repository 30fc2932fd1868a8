import subprocess
import sys
from pathlib import Path


def run(program: str, *arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_is_imported_already_is_left_as_it_is() -> None:
    program = """
import transformers, transformers.models, diffusers.models.transformers, torch.distributed.tensor, sys
from qwen_edit.loading.imports.lean import lean_imports
there = [sys.modules[name] for name in ("transformers", "diffusers.models.transformers", "torch._dynamo")]
before = [type(module) for module in there], torch.distributed.is_available, list(sys.meta_path)
with lean_imports("qwen_edit.loading.assembly", enabled=True, compiled=False):
    print(torch._dynamo is there[2], torch.distributed.is_available())
after = [type(module) for module in there], torch.distributed.is_available, list(sys.meta_path)
print(before == after, torch._dynamo is there[2], sys.modules["transformers"] is there[0])
"""
    assert run(program) == ["True True", "True True True"]


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
    assert run(program) == ["2.0 True"]


HALFWAY = """
import sys, threading, torch
import transformers.masking_utils
from diffusers.utils.torch_utils import maybe_allow_in_graph

def import_other_packages():
    import fastapi, runpod.serverless, uvicorn
    print("others", torch.distributed.is_available(), type(sys.modules["torch._dynamo"]).__module__)

def import_the_compiler():
    import torch._dynamo.config as config
    print("parts are imported once", torch._dynamo.bytecode_transformation.config is config)
    print("as ever", config.__spec__.loader is config.__loader__)
    print("compiler", type(sys.modules["torch._dynamo"]).__name__, torch._dynamo.disable.__module__)
    print("compiled", torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())

for work in (import_other_packages, import_the_compiler):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    print("here", torch._dynamo.disable.__module__)
import qwen_edit.loading.assembly
"""


def test_another_thread_imports_torch_as_it_is_and_leaves_the_lean_imports_alone_with_all_else(tmp_path: Path) -> None:
    (tmp_path / "halfway.py").write_text(HALFWAY)
    program = """
import sys
from qwen_edit.loading.imports.lean import lean_imports
sys.path.insert(0, sys.argv[1])
with lean_imports("halfway", enabled=True, compiled=False):
    print("done", "qwen_edit.loading.assembly" in sys.modules)
"""
    assert run(program, str(tmp_path)) == [
        "others True qwen_edit.loading.imports.torch_parts",
        "here qwen_edit.loading.imports.torch_parts",
        "parts are imported once True",
        "as ever True",
        "compiler module torch._dynamo.decorators",
        "compiled 2.0",
        "here torch._dynamo.decorators",
        "done True",
    ]
