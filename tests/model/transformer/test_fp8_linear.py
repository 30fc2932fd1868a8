from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from PIL import Image

from qwen_edit import Editor
from qwen_edit.edit.plan import Plan
from qwen_edit.model.blank import assign_tensors
from qwen_edit.model.transformer.dense import blank_dense
from qwen_edit.model.transformer.fp8_linear import Fp8Linear
from qwen_edit.model.transformer.fused.choose import PLAIN, Kernels
from qwen_edit.store.catalog import LIGHTNING
from qwen_edit.svdq.checkpoint import read_header
from qwen_edit.svdq.dense import dense_top_level
from qwen_edit.svdq.fp8 import FP8_MODULES, fp8_block, quantize_rows
from qwen_edit.svdq.modules import top_level_tensors
from qwen_edit.weights.reader import Weights
from tests.support.blocks import Blocks
from tests.support.dense import modulations
from tests.support.edits import render
from tests.support.stock import stock_transformer


def layer(inputs: int, outputs: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Fp8Linear, torch.nn.Linear]:
    torch.manual_seed(2)
    plain = torch.nn.Linear(inputs, outputs).requires_grad_(requires_grad=False)
    linear = Fp8Linear(inputs, outputs)
    weight, scale = quantize_rows(plain.weight)
    linear.load_state_dict({"weight": weight, "weight_scale": scale, "bias": plain.bias.to(dtype)}, assign=True)
    return linear, plain


@pytest.mark.parametrize("shape", [(7, 256), (2, 5, 256)])
def test_it_is_near_the_plain_layer(shape: tuple[int, ...]) -> None:
    linear, plain = layer(256, 128, torch.float32)
    x = torch.randn(*shape)

    assert linear(x).shape == (*shape[:-1], 128)
    assert (linear(x) - plain(x)).norm() < 0.05 * plain(x).norm()


def test_rows_do_not_share_a_scale() -> None:
    linear, plain = layer(256, 128, torch.float32)
    x = torch.randn(4, 256) * torch.tensor([1e-4, 1.0, 1e4, 1e8])[:, None]

    ours, right = (function(x) - plain.bias for function in (linear, plain))
    assert ((ours - right).norm(dim=1) < 0.05 * right.norm(dim=1)).all()


def test_it_multiplies_what_it_says_it_does() -> None:
    linear, _ = layer(256, 128, torch.float32)
    x = torch.randn(9, 256)
    values, scales = quantize_rows(x)

    exact = (values.double() * scales.double()) @ (linear.weight.double() * linear.weight_scale.double()).t()
    assert torch.allclose(linear(x).double(), exact + linear.bias.double(), atol=1e-5)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
    reason="the CPU takes a scale for each row from PyTorch 2.13 on",
)
def test_the_product_of_the_tensor_cores_is_asked_for_in_a_form_that_torch_takes() -> None:
    linear, _ = layer(256, 128)
    x = torch.randn(33, 256).bfloat16()

    ours, emulated = (
        product(*quantize_rows(x), torch.bfloat16) for product in (linear._on_tensor_cores, linear._emulated)
    )

    assert ours.dtype == torch.bfloat16
    assert (ours.float() - emulated.float()).norm() < 0.005 * emulated.float().norm()


def load_fp8(path: Path, dtype: torch.dtype, kernels: Kernels = PLAIN) -> QwenImageTransformer2DModel:
    info = read_header(path)
    with Weights([path], torch.device("cpu")) as weights:
        packed = weights.tensors(path)
    transformer = blank_dense(info.config, kernels, fp8=True)
    tensors = dense_top_level({name: packed[name] for name in top_level_tensors(info.config)}, info.file, dtype)
    for block in range(info.num_layers):
        tensors |= fp8_block(packed, block, info.file, dtype) | modulations(packed, block, dtype)
    return assign_tensors(transformer, tensors, info.file)


def test_the_layers_of_the_blocks_are_replaced_and_nothing_else(models: Path) -> None:
    transformer = load_fp8(models / LIGHTNING.path, torch.float32)

    found = {name for name, module in transformer.named_modules() if isinstance(module, Fp8Linear)}
    assert found == {f"transformer_blocks.0.{name}" for name in FP8_MODULES}
    assert not any(parameter.is_meta for parameter in transformer.parameters())


def test_a_block_quantizes_what_each_of_its_layers_is_given_once(models: Path) -> None:
    widths: list[int] = []

    def noted(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        widths.append(x.shape[1])
        return quantize_rows(x)

    transformer = load_fp8(models / LIGHTNING.path, torch.float32, replace(PLAIN, quantize_rows=noted))

    with torch.inference_mode():
        transformer(
            hidden_states=torch.randn(1, 48, 64),
            encoder_hidden_states=torch.randn(1, 7, 128),
            timestep=torch.tensor([0.5]),
            img_shapes=[[(1, 8, 6)]],
        )

    width = transformer.inner_dim  # queries, keys and values together, the output, the MLP's two; and of the text
    assert sorted(widths) == sorted([width, width, width, 4 * width] * 2)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_block_in_fp8_computes_what_the_stock_block_with_layers_in_fp8_computes(batch: int) -> None:
    blocks = Blocks(heads=2, channels=64, fp8=True)

    for ours, stock in zip(*blocks.outputs(blocks.inputs(batch=batch)), strict=True):
        assert (ours - stock).norm() < 1e-3 * stock.norm()  # a value in between may be rounded to its neighbour in fp8


def test_an_edit_is_close_to_that_of_the_dense_backend(models: Path, editor: Editor, photo: Image.Image) -> None:
    path, pipeline = models / LIGHTNING.path, editor.pipeline
    dense = stock_transformer(path)
    plan = Plan(
        LIGHTNING, steps=2, true_cfg_scale=1.0, negative_prompt=None, seed=4, width=256, height=256, num_images=1
    )
    pictures = []
    for pipeline.transformer in (dense, load_fp8(path, torch.float32)):
        pictures.append(np.asarray(render(pipeline, photo, plan)).astype(float))

    error = np.square(pictures[0] - pictures[1]).mean()
    assert error > 0
    assert 10 * np.log10(255**2 / error) > 30


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(8192, 3072, 12288), (1421, 12288, 3072), (1, 3072, 3072)])
def test_the_tensor_cores_compute_what_is_emulated(rows: int, inputs: int, outputs: int) -> None:
    linear, _ = layer(inputs, outputs)
    x = torch.randn(rows, inputs).bfloat16()
    emulated = linear(x).float()

    ours = linear.cuda()(x.cuda()).float().cpu()

    # The accumulators of the tensor cores keep 14 bits or so: the more inputs, the more is lost.
    assert (ours - emulated).norm() < 0.03 * emulated.norm()
