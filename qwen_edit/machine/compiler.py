"""Whether torch.compile would find the compiler that it needs. No torch here."""

import os
import shutil

from qwen_edit.errors import ModelUnavailable


def require_compiler(device: str) -> None:
    """torch.compile builds its kernels for a CPU, or their launchers for a GPU, and fails in the first edit without.

    Args:
        device: `cpu` or `cuda`.

    Raises:
        ModelUnavailable: there is no compiler that it would find.
    """
    if device == "cpu":
        language, package, found = "C++", "g++", shutil.which(os.environ.get("CXX", "g++"))
    else:
        language, package, found = "C", "gcc", os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if not found:
        raise ModelUnavailable(
            f"QWEN_EDIT_COMPILE is 1, but there is no {language} compiler; install {package} or leave it out"
        )
