import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from qwen_edit import Editor
from qwen_edit.edit.hooks import NO_HOOKS
from qwen_edit.edit.plan import Plan
from qwen_edit.model.sampling import denoise
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import LIGHTNING

ONE_STEP = Plan(LIGHTNING, 1, 1.0, None, 7, 256, 256, 1)


def denoised(editor: Editor, photo: Image.Image) -> Tensor:
    return denoise(editor.pipeline, photo, "snow", ONE_STEP, NO_HOOKS)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # of the compiler's own import
def test_an_editor_that_compiles_computes_what_one_that_does_not_computes(
    models: Path, editor: Editor, photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # in this process: others take seconds to start
    compiled = Editor.load(Settings(models=models, device="cpu", compiled=True))

    latents = denoised(compiled, photo)

    assert any(tmp_path.rglob("*.so"))  # what was built
    assert torch.allclose(latents, denoised(editor, photo), atol=1e-3)
