from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, fx

from qwen_edit.model.transformer.compile import compile_blocks
from qwen_edit.svdq.quantize import quantize
from tests.support.dense import dense_of
from tests.support.modulations import stored

CONFIG: dict[str, Any] = {
    "num_layers": 2,
    "num_attention_heads": 1,
    "attention_head_dim": 128,
    "joint_attention_dim": 64,
}


@pytest.fixture
def stock() -> QwenImageTransformer2DModel:
    torch.manual_seed(3)
    return QwenImageTransformer2DModel(**CONFIG).eval()


@pytest.fixture
def model(stock: QwenImageTransformer2DModel) -> QwenImageTransformer2DModel:
    return dense_of(stock, CONFIG)


def inputs(text: int = 5, height: int = 3, batch: int = 1, mask: Tensor | None = None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(text + height)
    return {
        "hidden_states": torch.randn(batch, height * 4 + 6, 64, generator=generator),
        "encoder_hidden_states": torch.randn(batch, text, 64, generator=generator),
        "encoder_hidden_states_mask": mask,
        "timestep": torch.full((batch,), 0.5),
        "img_shapes": [[(1, height, 4), (1, 2, 3)]] * batch,
    }


class Graphs:
    """A compiler that runs what it is given as it is, and keeps it."""

    def __init__(self) -> None:
        self.seen: list[fx.GraphModule] = []

    def __call__(self, graph: fx.GraphModule, _inputs: list[Tensor]) -> Any:
        self.seen.append(graph)
        return graph.forward


@pytest.fixture
def graphs() -> Graphs:
    torch._dynamo.reset()
    return Graphs()


@torch.inference_mode()
def run(model: QwenImageTransformer2DModel, given: dict[str, Any]) -> Tensor:
    sample: Tensor = model(**given).sample
    return sample


@pytest.mark.parametrize("masked", [False, True])
def test_it_computes_what_the_stock_blocks_compute(
    stock: QwenImageTransformer2DModel, model: QwenImageTransformer2DModel, graphs: Graphs, masked: bool
) -> None:
    mask = torch.tensor([[True, True, True, False, True]]) if masked else None
    expected = run(stock, inputs(mask=mask))

    compile_blocks(model, backend=graphs)

    assert torch.allclose(run(model, inputs(mask=mask)), expected, atol=1e-5)
    assert len(graphs.seen) == 1


def test_one_code_serves_every_block_length_and_size(model: QwenImageTransformer2DModel, graphs: Graphs) -> None:
    given = [inputs(5, 3), inputs(6, 3), inputs(9, 7), inputs(4, 2)]
    expected = [run(model, one) for one in given]

    compile_blocks(model, backend=graphs)

    for one, stock in zip(given, expected, strict=True):
        assert torch.allclose(run(model, one), stock, atol=1e-5)
    assert len(graphs.seen) == 1


def test_no_complex_number_reaches_the_compiler(model: QwenImageTransformer2DModel, graphs: Graphs) -> None:
    compile_blocks(model, backend=graphs)
    run(model, inputs())

    (graph,) = graphs.seen
    values = [node.meta["example_value"] for node in graph.graph.nodes if "example_value" in node.meta]
    tensors = [value for value in values if isinstance(value, Tensor)]
    assert tensors
    assert not any(tensor.is_complex() for tensor in tensors)


def test_the_weights_are_not_compiled_in(model: QwenImageTransformer2DModel, graphs: Graphs) -> None:
    compile_blocks(model, backend=graphs)
    before = run(model, inputs())
    with torch.inference_mode():
        model.transformer_blocks[1].attn.to_qkv.weight.mul_(2)

    assert not torch.allclose(run(model, inputs()), before)
    assert len(graphs.seen) == 1


def test_one_code_serves_every_step_of_a_schedule(
    stock: QwenImageTransformer2DModel, model: QwenImageTransformer2DModel, graphs: Graphs
) -> None:
    modulations = stored(quantize(stock.state_dict(), CONFIG, rank=16), 2, "file")
    modulations.attach(model)
    timesteps = torch.tensor([1000.0, 600.0, 200.0])

    def outputs() -> list[Tensor]:
        steps = []
        with modulations.looked_up(model, timesteps, torch.float32) as set_step:
            for step in range(3):
                set_step(step)
                steps.append(run(model, inputs()))
        return steps

    expected = outputs()
    compile_blocks(model, backend=graphs)

    assert all(torch.allclose(one, stock, atol=1e-5) for one, stock in zip(outputs(), expected, strict=True))
    assert not torch.allclose(expected[0], expected[1])
    assert len(graphs.seen) == 1


def test_one_code_serves_the_blocks_in_fp8(stock: QwenImageTransformer2DModel, graphs: Graphs) -> None:
    model = dense_of(stock, CONFIG, fp8=True)
    expected = run(model, inputs())

    compile_blocks(model, backend=graphs)

    assert torch.allclose(run(model, inputs()), expected, atol=1e-3)
    (graph,) = graphs.seen
    norms = [node for node in graph.graph.nodes if node.target is torch.linalg.vector_norm]
    assert len(norms) == 8  # of each stream: queries, keys and values together, the output, the MLP's two


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # the compiler's imports warn, of what is not ours
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_real_compiler_gives_nearly_the_same_on_a_gpu(model: QwenImageTransformer2DModel) -> None:
    torch._dynamo.reset()
    model.to("cuda", torch.bfloat16)
    given = {
        name: value.to("cuda", torch.bfloat16) if isinstance(value, Tensor) else value
        for name, value in inputs(40, 16).items()
    }
    expected = run(model, given)

    compile_blocks(model)

    assert torch.allclose(run(model, given), expected, atol=0.05, rtol=0.05)
