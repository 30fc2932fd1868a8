"""An editor that many tests share, put back as it was after each."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from qwen_edit import Editor
from qwen_edit.store.catalog import LIGHTNING

PARTS = ("transformer", "modulations", "scheduler", "backend")
HOOKS = ("_forward_pre_hooks", "_forward_hooks")
OPTIONS = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
"""Where torch notes how a hook wants to be called, under the hook's own number."""


@contextmanager
def restored(editor: Editor) -> Iterator[Editor]:
    """Hand an editor out on the lightning checkpoint, and undo afterwards what was exchanged, attached or switched on.

    What it keeps of earlier edits stays: it changes no picture, and to compute it anew takes time.
    """
    pipeline = editor.pipeline
    parts = {name: getattr(pipeline, name) for name in PARTS}
    tiling = pipeline.vae.use_tiling
    modules = [
        module
        for part in (pipeline.transformer, pipeline.vae, pipeline.prompts.text_encoder)
        for module in part.modules()
    ]
    try:
        yield editor
    finally:
        if pipeline.transformer is not parts["transformer"] and parts["modulations"] is not None:
            parts["modulations"].forget()  # of the other transformer
        for name, part in parts.items():
            setattr(pipeline, name, part)
        for module in modules:
            _detach(module)
        if pipeline.vae.use_tiling and not tiling:
            pipeline.vae.disable_tiling()
        editor.change_to(LIGHTNING)


def _detach(module: nn.Module) -> None:
    """Remove what tests hooked on. The model libraries have hooks of their own, which they attach once."""
    for place in HOOKS:
        hooks = getattr(module, place)
        ours = [number for number, hook in hooks.items() if str(getattr(hook, "__module__", "")).startswith("tests.")]
        for number in ours:
            del hooks[number]
            for options in OPTIONS:
                getattr(module, options).pop(number, None)
