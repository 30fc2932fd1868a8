from pathlib import Path

import pytest

from qwen_edit.errors import ModelUnavailable
from qwen_edit.machine.compiler import require_compiler


def test_compiling_for_a_gpu_without_a_c_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ModelUnavailable, match=r"QWEN_EDIT_COMPILE is 1, but there is no C compiler; install gcc"):
        require_compiler("cuda")

    monkeypatch.setenv("CC", "cc")
    require_compiler("cuda")
