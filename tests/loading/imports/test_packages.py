import subprocess
import sys
from pathlib import Path

import pytest

from qwen_edit.loading.imports import packages
from tests.support.places import PHOTOS

PHOTO = PHOTOS / "chelsea.png"


def run(program: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


COUNT_SOURCES = """
import os, sys
folders = set()

def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and "/transformers/models/" in arguments[0]:
        folders.add(arguments[0].split("/transformers/models/")[1].split("/")[0])

sys.addaudithook(note)
"""


def test_an_edit_reads_no_model_but_its_own(models: Path) -> None:
    program = f"""{COUNT_SOURCES}
import base64, pathlib
image = base64.b64encode(pathlib.Path(sys.argv[2]).read_bytes()).decode()
from qwen_edit import Editor, EditRequest
from qwen_edit.settings import Settings
editor = Editor.load(Settings.from_environ({{"MODEL_CACHE_DIR": sys.argv[1]}}))
editor.edit(EditRequest(image=image, prompt="make it snow", width=256, height=256))
print(sorted(folders - {{"__init__.py", "__pycache__"}}))
print(sorted(name for name in sys.modules if name.startswith("diffusers.models.autoencoders.autoencoder_")))
"""
    families, autoencoders = run(program, str(models), str(PHOTO)).splitlines()

    assert families == "['auto', 'encoder_decoder', 'qwen2', 'qwen2_5_vl', 'qwen2_vl']"
    assert autoencoders.count(",") == 1, autoencoders  # its own, and the one that the loaders of adapters name


def test_everything_else_can_still_be_imported() -> None:
    program = """
from qwen_edit.loading.imports.packages import lean_packages
with lean_packages():
    import qwen_edit.loading.assembly
import diffusers, transformers
from diffusers.models.autoencoders import AutoencoderKLWan
from diffusers.models.transformers import *
from transformers import BertConfig
from transformers.models import LlamaConfig
from transformers.models.llama import LlamaConfig as same
print(diffusers.AutoencoderKL.__name__, AutoencoderKLWan.__name__, FluxTransformer2DModel.__name__)
print(BertConfig.__name__, LlamaConfig is same, hasattr(transformers, "NoSuchModel"), transformers.GPT2Config.__name__)
print(transformers.Qwen2Tokenizer is qwen_edit.loading.assembly.Qwen2Tokenizer)
"""
    assert run(program).splitlines() == [
        "AutoencoderKL AutoencoderKLWan FluxTransformer2DModel",
        "BertConfig True False GPT2Config",
        "True",
    ]


def test_what_is_imported_already_stays_as_it_is() -> None:
    program = """
import transformers, transformers.models, diffusers.models.transformers, sys
from qwen_edit.loading.imports.packages import lean_packages
before = type(transformers), type(diffusers.models.transformers), list(sys.meta_path)
with lean_packages():
    import qwen_edit.loading.assembly
after = type(sys.modules["transformers"]), type(diffusers.models.transformers), list(sys.meta_path)
print(before == after, transformers.GPT2Config.__name__)
"""
    assert run(program) == "True GPT2Config\n"


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
    print(ours, transformers.GPT2Config.__name__)
"""
    assert run(program) == "[] GPT2Config\n"


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
    del sys.modules["eager_and_broken"]
