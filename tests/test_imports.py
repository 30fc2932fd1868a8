import subprocess
import sys

PURE = (
    *("backend", "catalog", "colour", "editor", "errors", "fitness", "images", "manifest", "memory_plan", "schema"),
    *("selection", "settings", "worker"),
)
HEAVY = ("torch", "transformers", "diffusers", "runpod")


def test_a_request_is_checked_without_the_libraries_that_take_seconds_to_import() -> None:
    imports = "; ".join(f"import qwen_edit.{module}" for module in PURE)
    code = f"import sys; {imports}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
