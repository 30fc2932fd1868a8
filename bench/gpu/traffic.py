"""What one block moves through memory between its matrix products, and in how many operations: counted, not timed.

    python -m bench.gpu.traffic

The stock block and ours at the published width in bfloat16, for 1024 × 1024 pixels, on PyTorch's meta device, which
computes shapes and no numbers. Of each operation that is no view, no linear layer and no attention, the bytes of its
inputs and of its result are added up: values, not the cache lines that they lie in. They are given in units of T, what
one of the picture's activations takes: 8,192 × 3,072 values.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qwen_edit.model.transformer.block import Block
from qwen_edit.model.transformer.fused.choose import PLAIN, Kernels
from qwen_edit.model.transformer.rotary import Positions

HEADS, CHANNELS = 24, 128
WIDTH = HEADS * CHANNELS
PICTURE, TEXT = 8192, 1395
"""Tokens: 4,096 of noise and 4,096 of the picture; the prompt with the picture, as the text encoder sees it."""

T = PICTURE * WIDTH * 2
"""Bytes."""

ATTENTION = "aten.scaled_dot_product_attention"
"""Its kernels on a GPU give a result that lies in memory as the queries do; on the meta device it does not."""

PRODUCTS = {"aten.linear", ATTENTION}
"""What is not between the products."""

NEEDS_NO_GAPS = {"aten.rms_norm", "aten.layer_norm"}
"""Whose CUDA kernels copy an input that is a part of something larger; these two more passes are counted as well."""

KERNELS = ("norm_rotate", "modulate", "gated")
"""Of `qwen_edit.model.transformer.fused.twins`."""


class Traffic(TorchDispatchMode):
    """Adds up what operations read and write: bytes and calls by the operation's name."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.products = 0
        self._inside = False

    def __torch_dispatch__(
        self,
        function: Any,  # noqa: ANN401 - an operator, which torch does not name
        types: object,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        name = str(function.overloadpacket)
        result = torch.empty_like(args[0]) if name == ATTENTION else function(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name in PRODUCTS:
            self.products += 1
        elif not self._inside and not _is_view(function, inputs, result):
            self.add(name, inputs, result)
            if name in NEEDS_NO_GAPS and not inputs[0].is_contiguous():
                self.add(f"{name}, copy", inputs[:1], torch.empty_like(inputs[0]))
        return result

    def add(self, name: str, inputs: Sequence[Tensor], result: object) -> None:
        """Count one operation."""
        written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        read = [one for one in inputs if not any(one is other for other in written)]  # not what is given as `out`
        self.calls[name] += 1
        self.bytes[name] += sum(tensor.nbytes for tensor in (*read, *written))

    def as_one(self, name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function, counted as one operation."""

        def counted(*args: Tensor | float) -> Tensor:
            self._inside = True
            result = function(*args)
            self._inside = False
            self.add(name, [one for one in args if isinstance(one, Tensor)], result)
            return result

        return counted

    def minus(self, other: Self) -> dict[str, int]:
        """By operation, the bytes that the other does not move."""
        return {name: self.bytes[name] - other.bytes[name] for name in self.bytes}


def _is_view(function: Any, inputs: Sequence[Tensor], result: object) -> bool:  # noqa: ANN401 - see above
    """Whether an operation moves nothing: its result lies in an input, or is memory that something else will fill."""
    if function._schema.is_mutable:
        return False
    held = {tensor.untyped_storage()._cdata for tensor in inputs}
    made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    return not made or "empty" in str(function) or all(one.untyped_storage()._cdata in held for one in made)


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def one_kernel_each(traffic: Traffic) -> Kernels:
    """Each function of `KERNELS` counted as one operation, as which a kernel written for it would run."""
    functions: dict[str, Any] = {name: traffic.as_one(name, getattr(PLAIN, name)) for name in KERNELS}
    return replace(PLAIN, **functions)


def _stock() -> nn.Module:
    stock: nn.Module = QwenImageTransformerBlock(WIDTH, HEADS, CHANNELS)
    return stock


def block_of(kind: str, kernels: Kernels) -> nn.Module:
    with torch.device("meta"):
        block = _stock() if kind == "stock" else Block(HEADS, CHANNELS, kernels)
        # Modulations that are looked up are not computed; here they are given as the conditioning.
        block.img_mod, block.txt_mod = nn.Identity(), nn.Identity()
    return block.to(torch.bfloat16).eval().requires_grad_(requires_grad=False)


@torch.inference_mode()
def traffic_of(kind: str, picture: int = PICTURE, text: int = TEXT) -> Traffic:
    """What a block moves: `stock`, `ours`, or `kernels`, ours with one kernel for each function of `KERNELS`."""
    traffic = Traffic()
    block = block_of(kind, one_kernel_each(traffic) if kind == "kernels" else PLAIN)
    if kind == "stock":
        at: Any = tuple(empty(tokens, CHANNELS // 2, dtype=torch.complex64) for tokens in (picture, text))
    else:
        of_picture, of_text = (empty(tokens, CHANNELS // 2, 2, dtype=torch.float32) for tokens in (picture, text))
        at = Positions(of_picture, of_text, picture)
    given = {
        "hidden_states": empty(1, picture, WIDTH),
        "encoder_hidden_states": empty(1, text, WIDTH),
        "encoder_hidden_states_mask": None,
        "temb": empty(1, 6 * WIDTH),
        "image_rotary_emb": at,
    }
    with traffic:
        block(**given)
    return traffic


def shares(kind: str) -> tuple[float, float]:
    """What is moved for the picture and for the text, in T: each is linear in its tokens."""
    both = traffic_of(kind)
    text = sum(traffic_of(kind, text=2 * TEXT).minus(both).values())
    return (both.bytes.total() - text) / T, text / T


def main() -> None:
    print("| block | picture, T | text, T | GB | operations | and products |\n|---|---|---|---|---|---|")
    for kind in ("stock", "ours", "kernels"):
        traffic, (picture, text) = traffic_of(kind), shares(kind)
        figures = f"{picture:.1f} | {text:.1f} | {traffic.bytes.total() / 1e9:.2f}"
        print(f"| {kind} | {figures} | {traffic.calls.total()} | {traffic.products} |")
    for kind in ("stock", "ours", "kernels"):
        print(f"\n{kind}, picture and text:\n\n| operation | calls | T |\n|---|---|---|")
        traffic = traffic_of(kind)
        for name, size in traffic.bytes.most_common():
            print(f"| {name.removeprefix('aten.')} | {traffic.calls[name]} | {size / T:.2f} |")


if __name__ == "__main__":
    main()
