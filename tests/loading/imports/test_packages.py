import subprocess
import sys
from pathlib import Path

import pytest

from qwen_edit.loading.imports import packages


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_else_can_still_be_imported_and_compiled() -> None:
    program = """
from qwen_edit.loading.imports.lean import lean_imports
with lean_imports("qwen_edit.loading.assembly", enabled=True, compiled=False):
    import qwen_edit.loading.assembly as assembly
import diffusers, torch, transformers
from diffusers.models.autoencoders import AutoencoderKLWan
from diffusers.models.transformers import *
from transformers import BertConfig
from transformers.models import LlamaConfig
from transformers.models.llama import LlamaConfig as same
print(diffusers.AutoencoderKL.__name__, AutoencoderKLWan.__name__, FluxTransformer2DModel.__name__)
print(BertConfig.__name__, LlamaConfig is same, hasattr(transformers, "NoSuchModel"), transformers.GPT2Config.__name__)
print(transformers.Qwen2Tokenizer is assembly.Qwen2Tokenizer)
print(diffusers.QwenImageTransformer2DModel is assembly.QwenImageTransformer2DModel is QwenImageTransformer2DModel)
compiled = torch.compile(lambda x: x + 1, backend="eager")
print(compiled(torch.ones(1)).item(), torch.distributed.is_available(), torch._dynamo.__file__ is not None)
"""
    assert run(program).splitlines() == [
        "AutoencoderKL AutoencoderKLWan FluxTransformer2DModel",
        "BertConfig True False GPT2Config",
        "True",
        "True",
        "2.0 True True",
    ]


def test_a_failed_import_leaves_python_as_it_was() -> None:
    program = """
import sys
from qwen_edit.loading.imports.packages import lean_packages
try:
    with lean_packages():
        import transformers
        raise ImportError
except ImportError:
    ours = [finder for finder in sys.meta_path if type(finder).__module__.startswith("qwen_edit")]
    print(ours, "GPT2Config" in dir(transformers), transformers.GPT2Config.__name__)
"""
    assert run(program) == "[] True GPT2Config\n"


def test_a_deferred_package_that_cannot_be_imported_says_so_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "eager_and_broken").mkdir()
    (tmp_path / "eager_and_broken" / "__init__.py").write_text("raise ImportError('a part is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(packages, "EAGER", ("eager_and_broken",))

    with packages.lean_packages():
        import eager_and_broken

    for _ in range(2):
        with pytest.raises(ImportError, match="a part is missing"):
            _ = eager_and_broken.anything
