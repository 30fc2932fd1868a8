import os
import subprocess
import sys

import pytest

from tests.support.places import ROOT

pytest.importorskip("triton", reason="triton is not installed, which has the interpreter")


def test_the_kernels_compute_what_their_twins_do() -> None:
    # Triton looks at the variable as it is imported, so that the interpreter wants a process of its own.
    pytest_alone = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--noconftest"]
    done = subprocess.run(
        [*pytest_alone, "tests/model/transformer/fused/interpreted.py"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
