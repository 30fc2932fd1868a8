"""A worker for bench.loop, which logs when each edit has the device.

`python -m bench.loop.program {async,sync} {real,fake}`: `async` is handler.py; `sync` is the same editor behind a plain
function, as the SDK's own examples have it. `fake` is the tests' device, which sleeps as long as the prompt says.
"""

import os
import runpy
import sys
import time
from collections.abc import Mapping
from typing import Any

from qwen_edit.contract.request import EditRequest
from qwen_edit.edit.hooks import NO_HOOKS, Hooks
from qwen_edit.edit.prepare import Prepared
from qwen_edit.edit.respond import Rendered
from qwen_edit.editor import Editor
from qwen_edit.log import log
from tests.support import fake_device

_render = Editor.render


def timed(self: Editor, prepared: Prepared, hooks: Hooks = NO_HOOKS) -> Rendered:
    """`Editor.render`, which logs its two moments on the clock of `time.monotonic` however it ends."""
    started = time.monotonic()
    try:
        return _render(self, prepared, hooks)
    finally:
        log("rendered", started=started, ended=time.monotonic())


def serve_synchronously() -> None:
    """The plain loop: load, then one blocking function."""
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
    import runpod.serverless

    editor = Editor.load()

    def handler(job: Mapping[str, Any]) -> dict[str, Any]:
        return editor.edit(EditRequest.parse(job["input"])).to_json()

    runpod.serverless.start({"handler": handler})


if __name__ == "__main__":
    kind, device = sys.argv[1:]
    Editor.render = timed  # type: ignore[method-assign]
    if device == "fake":
        fake_device.install()
    if kind == "sync":
        serve_synchronously()
    else:
        runpy.run_path(str(fake_device.HANDLER), run_name="__main__")
