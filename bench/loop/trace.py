"""How an edit runs through the code: the files and functions of `qwen_edit` that it enters, and who calls them.

Run from the checkout: `python -m bench.loop.trace [--models models/demo] [--verbose]`. A call-back is a function of
ours that a library calls. The second edit is counted, of another prompt than the first, because nothing is loaded then.
"""

import argparse
import base64
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from qwen_edit import Editor, EditRequest
from qwen_edit.settings import Settings

ROOT = Path(__file__).parents[2]
OURS = str(ROOT / "qwen_edit")
PHOTO = ROOT / "tests" / "photos" / "chelsea.png"

Function = tuple[str, str]
"""A file and the qualified name of a function in it."""


class Trace:
    """Which functions of ours were entered, and how often a library called each."""

    def __init__(self) -> None:
        self.entered: set[Function] = set()
        self.called_back: Counter[Function] = Counter()

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(OURS):
            return
        function = (code.co_filename.removeprefix(f"{OURS}/"), code.co_qualname)
        self.entered.add(function)
        if frame.f_back is not None and "site-packages" in frame.f_back.f_code.co_filename:
            self.called_back[function] += 1

    def of(self, action: Callable[[], object]) -> "Trace":
        """Trace one call."""
        sys.setprofile(self)
        try:
            action()
        finally:
            sys.setprofile(None)
        return self


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models" / "demo")
    parser.add_argument("--verbose", action="store_true", help="name them")
    options = parser.parse_args()
    editor = Editor.load(Settings(models=options.models, device="cpu"))
    image = base64.b64encode(PHOTO.read_bytes()).decode("ascii")
    first, second = (
        EditRequest(image=image, prompt=prompt, width=256, height=256, seed=42)
        for prompt in ("invert the colors", "make it sepia")
    )
    editor.edit(first)
    trace = Trace().of(lambda: editor.edit(second))
    files = sorted({file for file, _ in trace.entered})
    print(f"{len(files)} files, {len(trace.entered)} functions, {len(trace.called_back)} of them call-backs")
    if options.verbose:
        print(*files, sep="\n")
        for (file, name), count in trace.called_back.items():
            print(f"{count:4} × {file} {name}")


if __name__ == "__main__":
    main()
