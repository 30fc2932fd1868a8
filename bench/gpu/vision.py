"""What it saves to attend to all windows of the vision tower at once, beside transformers' own tower.

    python -m bench.gpu.vision [--layers 8] [--rounds 3] [--device cuda] [--clock work]

Both have the same random weights of the published width, and take turns. Every eighth layer attends to the whole
picture, so 8 layers are a quarter of the published 32 and the same mix. The attention that is timed by itself is one
windowed layer's, from its projections to its output. `--clock work` counts the seconds that a single thread of the CPU
computes, which other programs on the machine do not stretch.

Operations are counted with all 32 layers and a small width, which they do not depend on: those that compute, and no
views. Each is at least one kernel on a GPU.
"""

import argparse
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel as Tower

from bench.gpu.figures import settle
from bench.predict.arithmetic import VISION
from qwen_edit.model.vision_windows import WindowAttention, batch_windows, window_inputs

PICTURES = {
    "1024 × 1024": (74, 74),
    "1248 × 832": (60, 90),
    "1008 × 1008, equal windows": (72, 72),
}
"""Rows and columns of patches: sides of 14 pixels, an even number of them."""

WHOLE = "1024 × 1024"
"""The picture that goes through all layers."""

CLOCKS = {"wall": time.perf_counter, "work": time.thread_time}

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}


class Operations(TorchDispatchMode):
    """Counts the operations that make new numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        function: torch._ops.OpOverload,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        if not function.is_view:
            self.names[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def towers(config: Mapping[str, Any]) -> dict[str, Tower]:
    """The stock tower and ours, with the same random weights."""
    stock = Tower(Qwen2_5_VLVisionConfig(**config)).eval()
    ours = deepcopy(stock)
    batch_windows(ours)
    return {"stock": stock, "ours": ours}


def inputs(rows: int, columns: int, tower: Tower) -> dict[str, Tensor]:
    """Random patches, and their grid."""
    patches = torch.randn(rows * columns, 3 * 2 * 14**2, device=tower.device, dtype=tower.dtype)
    return {"hidden_states": patches, "grid_thw": torch.tensor([[1, rows, columns]], device=tower.device)}


def count() -> None:
    """Print how many operations a picture takes in all 32 layers."""
    print("| picture | calls of attention, stock | ours | operations, stock | ours |\n|---|---|---|---|---|")
    both = towers({**VISION, **SMALL})
    for picture, grid in PICTURES.items():
        stock, ours = (operations(tower, inputs(*grid, tower)) for tower in both.values())
        cells = (*(attentions(each) for each in (stock, ours)), stock.total(), ours.total())
        print(f"| {picture} | {' | '.join(f'{cell:,}' for cell in cells)} |", flush=True)


def run(tower: Tower, given: Mapping[str, Tensor]) -> object:
    """As an edit runs it: ours is told of the windows beforehand."""
    told = window_inputs(tower, given["grid_thw"]) if isinstance(tower.blocks[0].attn, WindowAttention) else {}
    return tower(**given, **told)


def operations(tower: Tower, given: Mapping[str, Tensor]) -> Counter[str]:
    counted = Operations()
    with counted:
        run(tower, given)
    return counted.names


def attentions(names: Counter[str]) -> int:
    return sum(number for name, number in names.items() if "scaled_dot_product" in name)


def medians(actions: Mapping[str, Callable[[], object]], options: argparse.Namespace, rounds: int) -> list[float]:
    """Seconds of each, in turns, after one that is not counted."""
    clock = CLOCKS[options.clock]
    samples: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds + 1):
        for name, action in actions.items():
            settle(options.device)
            started = clock()
            action()
            settle(options.device)
            samples[name].append(clock() - started)
    return [statistics.median(seconds[1:]) for seconds in samples.values()]


def attention_of(tower: Tower, given: Mapping[str, Tensor]) -> Callable[[], object]:
    """The first layer's attention by itself, with what the tower calls it with."""
    call: list[tuple[Any, dict[str, Any]]] = []
    attention = tower.blocks[0].attn
    hook = attention.register_forward_pre_hook(lambda _, args, kwargs: call.append((args, kwargs)), with_kwargs=True)
    run(tower, given)
    hook.remove()
    ((args, kwargs),) = call
    return partial(attention, *args, **kwargs)


def measure(dtype: torch.dtype, options: argparse.Namespace) -> None:
    """Print the seconds of one windowed layer's attention, and of the tower with the first picture."""
    kind = str(dtype).removeprefix("torch.")
    both = {name: tower.to(options.device, dtype) for name, tower in towers({**VISION, "depth": 1}).items()}
    for picture, grid in PICTURES.items():
        given = inputs(*grid, both["stock"])
        alone = {name: attention_of(tower, given) for name, tower in both.items()}
        show(f"attention, {picture}", kind, medians(alone, options, 4 * options.rounds))
    config = {**VISION, "depth": options.layers}
    both = {name: tower.to(options.device, dtype) for name, tower in towers(config).items()}
    given = inputs(*PICTURES[WHOLE], both["stock"])
    whole = {name: partial(run, tower, given) for name, tower in both.items()}
    show(f"{options.layers} layers, {WHOLE}", kind, medians(whole, options, options.rounds))


def show(what: str, dtype: str, seconds: Sequence[float]) -> None:
    stock, ours = seconds
    print(f"| {what} | {dtype} | {stock:.4g} | {ours:.4g} | {ours / stock:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    if options.clock == "work":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        count()
        print(f"\n{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
        print("\n| | dtype | stock, s | ours, s | ours ÷ stock |\n|---|---|---|---|---|")
        for dtype in (torch.float32, torch.bfloat16):
            measure(dtype, options)


if __name__ == "__main__":
    main()
