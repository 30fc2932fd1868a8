import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear

from qwen_edit.svdq import layout
from qwen_edit.svdq.checkpoint import CheckpointError, read_header
from qwen_edit.svdq.dense import dense_block, dense_modulation, dense_svdq
from qwen_edit.svdq.modules import AWQ_MODULES, NORMS, SVDQ_MODULES, expected_tensors, top_level_tensors
from qwen_edit.svdq.quantize import write_checkpoint
from tests.support.dense import dense_state_dict, split

SHIFT = 0.171875
FUSED = {
    "attn.to_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attn.add_qkv_proj": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
Plain = dict[str, Tensor]


def random(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape) * scale).bfloat16()


def random_svdq(inputs: int, outputs: int, rank: int) -> Plain:
    """An SVDQ layer in plain order, as the format stores it."""
    return {
        "qweight": torch.randint(-8, 8, (outputs, inputs), dtype=torch.int8),
        "wscales": (torch.rand(outputs, inputs // 64) * 0.01 + 0.001).bfloat16(),
        "bias": random(outputs, scale=0.1),
        "smooth_factor": (torch.rand(inputs) + 0.5).bfloat16(),
        "smooth_factor_orig": random(inputs),
        "proj_down": random(inputs, rank, scale=0.02),
        "proj_up": random(outputs, rank, scale=0.1),
    }


def pack_svdq(plain: Plain) -> Plain:
    packers = {"qweight": layout.pack_qweight, "wscales": layout.pack_wscales}
    packers |= {"proj_down": layout.pack_proj_down, "proj_up": layout.pack_proj_up}
    return {name: packers.get(name, layout.pack_vector)(tensor) for name, tensor in plain.items()}


def residual(plain: Plain) -> Tensor:
    """What the kernel multiplies the smoothed input by, float64 [N, K]."""
    return plain["qweight"].double() * plain["wscales"].double().repeat_interleave(64, dim=1)


def run_svdq(plain: Plain, x: Tensor, shift: float) -> Tensor:
    """The layer as its kernel computes it, without its roundings."""
    part = {name: tensor.double() for name, tensor in plain.items()}
    quantized = linear((x + shift) / part["smooth_factor"], residual(plain))
    return quantized + x @ part["proj_down"] @ part["proj_up"].T + part["bias"]


def random_awq(inputs: int, outputs: int) -> Plain:
    scales = (torch.rand(outputs, inputs // 64) * 0.01 + 0.001).bfloat16()
    return {
        "qweight": torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8),
        "wscales": scales,
        "wzeros": -7 * scales,
        "bias": random(outputs),
    }


def pack_awq(plain: Plain) -> Plain:
    packed = {"qweight": layout.pack_awq_qweight(plain["qweight"]), "bias": plain["bias"]}
    return packed | {name: plain[name].T.contiguous() for name in ("wscales", "wzeros")}


def run_awq(plain: Plain, x: Tensor) -> Tensor:
    scales, zeros = (plain[name].double().repeat_interleave(64, dim=1) for name in ("wscales", "wzeros"))
    return linear(x, plain["qweight"].double() * scales + zeros, plain["bias"].double())


def layer_of(run: Any, inputs: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear function, read off from what it gives for the unit vectors."""
    bias = run(torch.zeros(1, inputs, dtype=torch.float64))
    return (run(torch.eye(inputs, dtype=torch.float64)) - bias).T, bias[0]


def stock_block(plain: Mapping[str, Plain], width: int) -> Plain:
    """The stock tensors of one block, from running the layers of the format."""
    stock: Plain = {}
    for module, (inputs, _) in SVDQ_MODULES.items():
        shift = SHIFT if module.endswith("mlp.net.2") else 0.0
        weight, bias = layer_of(lambda x, m=module, s=shift: run_svdq(plain[m], x, s), inputs * width)
        names = FUSED.get(module, (module,))
        for index, name in enumerate(names):
            rows = slice(index * weight.shape[0] // len(names), (index + 1) * weight.shape[0] // len(names))
            stock |= {f"{name}.weight": weight[rows], f"{name}.bias": bias[rows]}
    for module in AWQ_MODULES:
        weight, bias = layer_of(lambda x, m=module: run_awq(plain[m], x), width)
        order = [6 * channel + j for j in range(6) for channel in range(width)]
        ones = torch.tensor([0.0, 1, 0, 0, 1, 0], dtype=torch.float64).repeat_interleave(width)
        stock |= {f"{module}.weight": weight[order], f"{module}.bias": bias[order] - ones}
    return stock


def inputs_of_model() -> dict[str, Any]:
    torch.manual_seed(11)
    return {
        "hidden_states": torch.randn(1, 2 * 16, 64),
        "encoder_hidden_states": torch.randn(1, 6, 128),
        "encoder_hidden_states_mask": torch.ones(1, 6, dtype=torch.bool),
        "timestep": torch.tensor([0.4]),
        "img_shapes": [[(1, 4, 4), (1, 4, 4)]],
        "return_dict": False,
    }


@torch.no_grad()
def output(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Tensor:
    with torch.device("meta"):
        model = QwenImageTransformer2DModel(**config)
    model.load_state_dict(state_dict, assign=True)
    model.pos_embed = type(model.pos_embed)(theta=10000, axes_dim=list(config["axes_dims_rope"]), scale_rope=True)
    sample: Tensor = model(**inputs_of_model())[0]
    return sample


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(scope="module")
def representable(tiny_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plain]:
    """A checkpoint of random numbers, and the stock model in float32 that it stands for."""
    torch.manual_seed(3)
    stock = {name: random(*spec.shape, scale=0.1) for name, spec in top_level_tensors(tiny_config).items()}
    tensors = dict(stock)
    for block in range(2):
        prefix = f"transformer_blocks.{block}."
        plain = {name: random_svdq(k * 256, n * 256, rank=128) for name, (k, n) in SVDQ_MODULES.items()}
        modulations = {name: random_awq(256, 6 * 256) for name in AWQ_MODULES}
        norms = {f"{prefix}{name}.weight": random(128) for name in NORMS}
        tensors |= norms
        for module, parts in plain.items():
            tensors |= {f"{prefix}{module}.{name}": part for name, part in pack_svdq(parts).items()}
        for module, parts in modulations.items():
            tensors |= {f"{prefix}{module}.{name}": part for name, part in pack_awq(parts).items()}
        stock |= norms | {prefix + name: part for name, part in stock_block(plain | modulations, 256).items()}
    path = tmp_path_factory.mktemp("representable") / "representable.safetensors"
    write_checkpoint(path, tensors, tiny_config, rank=128)
    return path, {name: tensor.float() for name, tensor in stock.items()}


def test_the_dense_model_has_the_names_and_shapes_of_the_stock_model(tiny_file: Path) -> None:
    dense = dense_state_dict(tiny_file)
    with torch.device("meta"):
        stock = QwenImageTransformer2DModel(**read_header(tiny_file).config).state_dict()
    assert {name: tensor.shape for name, tensor in dense.items()} == {name: item.shape for name, item in stock.items()}
    assert {tensor.dtype for tensor in dense.values()} == {torch.bfloat16}


def test_a_file_of_one_layer_gives_a_model_of_one_layer(small_file: Path) -> None:
    blocks = {name.split(".")[1] for name in dense_state_dict(small_file) if name.startswith("transformer_blocks.")}
    assert blocks == {"0"}


def test_representable_weights_come_back_exactly(representable: tuple[Path, Plain]) -> None:
    path, stock = representable
    dense = dense_state_dict(path, torch.float32)
    assert dense.keys() == stock.keys()
    for name, tensor in dense.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, stock[name], rtol=1e-5, atol=1e-6, msg=partial("{}: {}".format, name))


def test_representable_weights_give_the_same_picture(representable: tuple[Path, Plain]) -> None:
    path, stock = representable
    config = read_header(path).config
    assert relative_error(output(config, dense_state_dict(path, torch.float32)), output(config, stock)) < 1e-5


def test_bfloat16_is_the_float32_rounded_once(representable: tuple[Path, Plain]) -> None:
    path, _ = representable
    full = dense_state_dict(path, torch.float32)
    for name, tensor in dense_state_dict(path).items():
        assert torch.equal(tensor, full[name].bfloat16())


def test_a_quantized_model_gives_nearly_the_picture_of_its_source(
    tiny_model: QwenImageTransformer2DModel, tiny_file: Path
) -> None:
    config = read_header(tiny_file).config
    error = relative_error(
        output(config, dense_state_dict(tiny_file, torch.float32)), output(config, tiny_model.state_dict())
    )
    assert error < 0.01


@pytest.mark.parametrize("module", ["img_mlp.net.2", "txt_mlp.net.2"])
def test_the_shift_of_the_second_mlp_layer_is_in_the_bias(
    module: str, tiny_model: QwenImageTransformer2DModel, tiny_file: Path
) -> None:
    dense = dense_state_dict(tiny_file, torch.float32)
    for block in range(2):
        name = f"transformer_blocks.{block}.{module}.bias"
        source = tiny_model.state_dict()[name]
        tensors = load_file(tiny_file)
        stored = layout.unpack_vector(tensors[name]).float()
        # The bias is stored in bfloat16, with 8 bits; the shift that it makes up for is much larger than what they lose
        assert (dense[name] - source).abs().max() <= stored.abs().max() / 256
        assert (stored - source).abs().max() > 10 * (dense[name] - source).abs().max()


@pytest.mark.parametrize("shift", [0.0, SHIFT])
@pytest.mark.parametrize(("inputs", "outputs", "rank"), [(256, 384, 32), (512, 128, 128)])
def test_a_dense_layer_computes_what_the_kernel_computes(shift: float, inputs: int, outputs: int, rank: int) -> None:
    torch.manual_seed(1)
    plain = random_svdq(inputs, outputs, rank)
    weight, bias = dense_svdq(pack_svdq(plain), shift)
    x = torch.randn(5, inputs, dtype=torch.float64)
    torch.testing.assert_close(linear(x, weight.double(), bias.double()), run_svdq(plain, x, shift), rtol=0, atol=1e-5)


def test_a_dense_modulation_computes_what_the_kernel_computes() -> None:
    torch.manual_seed(2)
    plain = random_awq(128, 6 * 128)
    weight, bias = dense_modulation(pack_awq(plain))
    x, hidden = torch.randn(3, 128, dtype=torch.float64), torch.randn(3, 128, dtype=torch.float64)
    stock = linear(x, weight.double(), bias.double()).chunk(6, dim=1)
    packed = run_awq(plain, x).view(3, 128, 6)
    for first in (0, 3):
        shift, scale, gate = stock[first : first + 3]
        expected = hidden * packed[..., first + 1] + packed[..., first]
        torch.testing.assert_close(hidden * (1 + scale) + shift, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(gate, packed[..., first + 2], rtol=0, atol=1e-5)


def test_padded_modulation_scales_mean_the_same(
    small_tensors: Plain, small_config: dict[str, Any], tmp_path: Path
) -> None:
    tensors = dict(small_tensors)
    for name in [name for name in tensors if "_mod.1.w" in name]:
        tensors[name] = torch.cat([tensors[name], torch.full((14, 768), torch.nan, dtype=torch.bfloat16)])
    write_checkpoint(tmp_path / "padded", tensors, small_config, rank=16)
    write_checkpoint(tmp_path / "plain", small_tensors, small_config, rank=16)
    plain = dense_state_dict(tmp_path / "plain")
    for name, tensor in dense_state_dict(tmp_path / "padded").items():
        assert torch.equal(tensor, plain[name])


def test_queries_keys_and_values_stay_one_layer(small_file: Path) -> None:
    block = dense_block(load_file(small_file), 0, "small.safetensors")
    stock = split(block)
    for fused, names in FUSED.items():
        for part in ("weight", "bias"):
            parts = [stock[f"transformer_blocks.0.{name}.{part}"] for name in names]
            assert torch.equal(block[f"transformer_blocks.0.{fused}.{part}"], torch.cat(parts))


def test_a_block_converts_on_its_own_and_leaves_its_tensors_alone(small_file: Path) -> None:
    tensors = load_file(small_file)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    block = split(dense_block(tensors, 0, "small.safetensors", torch.float32))
    whole = dense_state_dict(small_file, torch.float32)
    assert set(block) == {name for name in whole if name.startswith("transformer_blocks.") and "_mod." not in name}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in block.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_block_converts_on_the_gpu_as_on_the_cpu(small_file: Path) -> None:
    tensors = load_file(small_file)
    on_gpu = dense_block({name: tensor.cuda() for name, tensor in tensors.items()}, 0, "small", torch.float32)
    for name, expected in dense_block(tensors, 0, "small", torch.float32).items():
        assert on_gpu[name].is_cuda
        torch.testing.assert_close(on_gpu[name].cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "place", "value", "blamed"),
    [
        ("transformer_blocks.0.attn.to_qkv.smooth_factor", 5, 0.0, "transformer_blocks.0.attn.to_qkv.smooth_factor"),
        (
            "transformer_blocks.0.img_mlp.net.2.smooth_factor",
            0,
            -0.0,
            "transformer_blocks.0.img_mlp.net.2.smooth_factor",
        ),
        ("transformer_blocks.0.attn.to_qkv.proj_up", 0, torch.nan, "transformer_blocks.0.attn.to_qkv.weight"),
        ("transformer_blocks.0.txt_mlp.net.2.wscales", 7, torch.inf, "transformer_blocks.0.txt_mlp.net.2.weight"),
        ("transformer_blocks.0.attn.to_out.0.bias", 3, torch.nan, "transformer_blocks.0.attn.to_out.0.bias"),
        ("transformer_blocks.0.attn.norm_q.weight", 3, torch.nan, "transformer_blocks.0.attn.norm_q.weight"),
        ("proj_out.weight", 3, torch.nan, "proj_out.weight"),
    ],
)
def test_a_value_that_spoils_the_model_is_refused(
    name: str, place: int, value: float, blamed: str, small_file: Path, tmp_path: Path
) -> None:
    content = bytearray(small_file.read_bytes())
    at = read_header(small_file).tensors[name].offset + 2 * place
    content[at : at + 2] = struct.pack("<f", value)[2:]
    path = tmp_path / "spoiled.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^model_unavailable: spoiled\.safetensors: tensor ") as caught:
        dense_state_dict(path)
    assert f"'{blamed}'" in caught.value.sentence


def test_a_truncated_file_gives_no_state_dict(small_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(small_file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: is cut short"):
        dense_state_dict(path)


def test_an_additional_timestep_embedding_is_part_of_the_model(small_config: dict[str, Any]) -> None:
    config = small_config | {"use_additional_t_cond": True}
    with torch.device("meta"):
        stock = QwenImageTransformer2DModel(**config).state_dict()
    top = {name: spec.shape for name, spec in expected_tensors(config, 16).items() if "transformer_blocks" not in name}
    assert top == {name: tuple(item.shape) for name, item in stock.items() if "transformer_blocks" not in name}
