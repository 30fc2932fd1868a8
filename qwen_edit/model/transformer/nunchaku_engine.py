"""What is used of Nunchaku's engine, in one place, and the check that the installed one still has it.

| used | as |
|---|---|
| `nunchaku.models.transformers.transformer_qwenimage` | the module that is imported; its `torch` is replaced |
| `NunchakuQwenImageTransformer2DModel(**config)` | a subclass of diffusers' model, built on the meta device |
| `._patch_model(precision="int4", rank=R)` | puts the quantized layers in the place of the stock ones |
| `.forward(..., txt_seq_lens=[n] * batch)` | which diffusers' pipeline no longer passes |
| `.pos_embed(img_shapes, txt_seq_lens, device=device)` | what forward calls for the rotary table |
| `.set_offload(True, num_blocks_on_gpu=1)` | the blocks wait in the host's memory |
| `nunchaku.ops.fused` | with `QWEN_EDIT_FUSED_QKV=1` alone, as all below |
| `fused_qkv_norm_rottary(x, proj, norm_q, norm_k, rotary_emb, output=...)` | the product of `fused_attention.py` |
| `NunchakuQwenAttention.processor` | what attends; it is replaced |

Not used: `from_pretrained`, which reads serially and ignores the file's config, and `patch_scale_key`, which completes
the scales of fp4 files and has nothing to do for an int4 file that is whole.
"""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, cast

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

from qwen_edit.errors import ModelUnavailable
from qwen_edit.machine.engine import FUSED_PRODUCT, HOW_TO_INSTALL, find_engine
from qwen_edit.model.transformer.fused_attention import FusedProduct

MODULE = "nunchaku.models.transformers.transformer_qwenimage"
MODEL = "NunchakuQwenImageTransformer2DModel"
OPERATIONS = "nunchaku.ops.fused"
ARGUMENTS = ("x", "proj", "norm_q", "norm_k", "rotary_emb", "output")


def engine_class() -> type[Any]:
    """Import the engine and hand out its transformer class, once all of it that is used has been seen.

    From then on the class calls no `torch.cuda.empty_cache`, which release 1.2.1 does at the end of every forward and
    which makes the host wait for the device.

    Raises:
        ModelUnavailable: the engine is not there, cannot be imported, or lacks something.
    """
    engine = find_engine()
    if engine.fault:
        raise ModelUnavailable(f"{engine.fault}; {HOW_TO_INSTALL}")
    try:
        with _root_logger_as_it_is():
            module = import_module(MODULE)
    except (ImportError, OSError) as error:
        of = f" of {error.name}" if isinstance(error, ImportError) and error.name else ""
        raise ModelUnavailable(
            f"nunchaku {engine.version} cannot be imported: {type(error).__name__}{of}; {HOW_TO_INSTALL}"
        ) from error
    if missing := list(_missing(module)):
        raise ModelUnavailable(
            f"nunchaku {engine.version} has no {', '.join(missing)}, which this worker calls; install release 1.2.1"
        )
    module.torch = _Quiet(torch)  # type: ignore[attr-defined]
    return cast(type[Any], getattr(module, MODEL))


def fused_product() -> FusedProduct:
    """Hand out the engine's fused operation. To be called after `engine_class`.

    Raises:
        ModelUnavailable: the engine lacks it, or one of the arguments that are used.
    """
    try:
        product = getattr(import_module(OPERATIONS), FUSED_PRODUCT, None)
    except ImportError:
        product = None
    if product is None or not {*ARGUMENTS} <= {*inspect.signature(product).parameters}:
        raise ModelUnavailable(
            f"nunchaku {find_engine().version} has no {OPERATIONS}.{FUSED_PRODUCT}({', '.join(ARGUMENTS)}), "
            "which QWEN_EDIT_FUSED_QKV=1 calls; leave that out or install release 1.2.1"
        )
    return cast(FusedProduct, product)


@contextmanager
def _root_logger_as_it_is() -> Iterator[None]:
    """Release 1.2.1 gives the root logger a handler and the level INFO, and so every library's lines to our log."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _missing(module: ModuleType) -> Iterator[str]:
    model = getattr(module, MODEL, None)
    if not (inspect.isclass(model) and issubclass(model, QwenImageTransformer2DModel)):
        yield f"{MODEL} that is a QwenImageTransformer2DModel"
        return
    for method, argument in (("_patch_model", None), ("set_offload", "offload"), ("forward", "txt_seq_lens")):
        function = getattr(model, method, None)
        if function is None:
            yield f"{MODEL}.{method}"
        elif argument and argument not in inspect.signature(function).parameters:
            yield f"{argument} in {MODEL}.{method}"


class _Quiet:
    """A module as it is but for one call: `empty_cache` of it, or of its `cuda`, does nothing."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the module has
        return _Quiet(self._module.cuda) if name == "cuda" else getattr(self._module, name)

    def empty_cache(self) -> None:
        """Keep what PyTorch's allocator has."""
