"""What fp8 costs in exactness: on the layers of one block of the real size, and on a whole edit of the tiny model.

    python -m bench.gpu.fp8                     # layers; takes a minute on two cores
    python -m bench.gpu.fp8 --models DIR        # and an edit with the model of that directory

Random weights and inputs with outliers: a few channels of the input are many times larger than the others, as they are
in the real model. Each figure is the norm of the difference from the product in float64, over the norm of that.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from qwen_edit import Editor
from qwen_edit.edit.hooks import NO_HOOKS
from qwen_edit.edit.plan import Plan
from qwen_edit.model.blank import assign_tensors
from qwen_edit.model.render import render
from qwen_edit.model.transformer.dense import blank_dense
from qwen_edit.model.transformer.fp8_linear import Fp8Linear
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import LIGHTNING
from qwen_edit.svdq.checkpoint import read_header
from qwen_edit.svdq.dense import dense_top_level
from qwen_edit.svdq.fp8 import fp8_block, quantize_rows
from qwen_edit.svdq.modules import top_level_tensors
from tests.support.dense import dense_state_dict, modulations

WIDTH = 3072
LAYERS = {
    "the attention's, for each of their 3,072 outputs": (WIDTH, WIDTH),
    "img_mlp.net.0.proj, txt_mlp.net.0.proj": (WIDTH, 4 * WIDTH),
    "img_mlp.net.2, txt_mlp.net.2": (4 * WIDTH, WIDTH),
}
TOKENS = 256
OUTLIERS = 0.005
"""Share of the channels that are 20 times larger."""


def weight_of(inputs: int, outputs: int) -> Tensor:
    """Rows of different sizes, and in each some larger weights."""
    weight = torch.randn(outputs, inputs) / math.sqrt(inputs)
    weight *= torch.empty(outputs, 1).log_normal_(std=0.5)
    return torch.where(torch.rand_like(weight) < OUTLIERS, 5 * weight, weight)


def input_of(width: int) -> Tensor:
    channels = torch.where(torch.rand(width) < OUTLIERS, 20.0, 1.0)
    return (torch.randn(TOKENS, width) * channels).bfloat16()


def relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm())


def errors(inputs: int, outputs: int) -> Iterator[float]:
    """Of the dense product in bfloat16, of fp8 weights alone, and of fp8 weights and inputs."""
    weight, x = weight_of(inputs, outputs), input_of(inputs)
    exact = x.double() @ weight.double().t()
    yield relative(x @ weight.bfloat16().t(), exact)
    values, scales = quantize_rows(weight)
    yield relative(x.double() @ (values.double() * scales.double()).t(), exact)
    linear = Fp8Linear(inputs, outputs)
    state = {"weight": values, "weight_scale": scales, "bias": torch.zeros(outputs).bfloat16()}
    linear.load_state_dict(state, assign=True)
    yield relative(linear(x), exact)


def layers() -> None:
    print("| layer | dense bf16 | fp8 weights | fp8 weights and inputs |\n|---|---|---|---|")
    for name, (inputs, outputs) in LAYERS.items():
        print(f"| {name} | {' | '.join(f'{100 * error:.2f} %' for error in errors(inputs, outputs))} |", flush=True)


def load_fp8(path: Path) -> QwenImageTransformer2DModel:
    """The transformer of a checkpoint, in fp8 on the CPU."""
    info, packed = read_header(path), load_file(path)
    transformer = blank_dense(info.config, fp8=True)
    tensors = dense_top_level({name: packed[name] for name in top_level_tensors(info.config)}, info.file, torch.float32)
    for block in range(info.num_layers):
        tensors |= fp8_block(packed, block, info.file, torch.float32) | modulations(packed, block, torch.float32)
    return assign_tensors(transformer, tensors, info.file)


def load_plain(path: Path) -> QwenImageTransformer2DModel:
    """The same in float32."""
    transformer = QwenImageTransformer2DModel(**read_header(path).config)
    transformer.load_state_dict(dense_state_dict(path, torch.float32))
    return transformer.eval()


def edit(models: Path) -> None:
    """The same edit, dense in float32 and in fp8 emulated, from the same seed."""

    pipeline = Editor.load(Settings(models=models, device="cpu")).pipeline
    plan = Plan(LIGHTNING, 8, true_cfg_scale=1.0, negative_prompt=None, seed=4, width=512, height=512, num_images=1)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)).resize((512, 512))
    pictures = []
    for load in (load_plain, load_fp8):
        pipeline.transformer = load(models / LIGHTNING.path)
        (made,), _ = render(pipeline, picture, "make it snow", plan, NO_HOOKS)
        pictures.append(np.asarray(made).astype(float))
    error = np.square(pictures[0] - pictures[1]).mean()
    print(f"\nedit of 512 × 512 pixels, 8 steps: {10 * math.log10(255**2 / error):.1f} dB PSNR against dense float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(6)
    layers()
    if arguments.models:
        edit(arguments.models)


if __name__ == "__main__":
    main()
