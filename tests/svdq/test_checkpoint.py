import inspect
import json
import math
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from diffusers import QwenImageTransformer2DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qwen_edit.svdq
from qwen_edit.svdq.checkpoint import CheckpointError, read_header
from qwen_edit.svdq.modules import CONFIG_DEFAULTS, expected_tensors, total_bytes

Header = dict[str, Any]
QKV = "transformer_blocks.0.attn.to_qkv"
MLP = "transformer_blocks.0.img_mlp.net.2"


def split(path: Path) -> tuple[Header, bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: Header, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert caught.value.sentence.startswith(f"{path.name}: ")
    assert str(path.parent) not in caught.value.sentence
    return caught.value.sentence


def stored_config(header: Header) -> dict[str, Any]:
    return dict(json.loads(header["__metadata__"]["config"]))


def with_config(**fields: object) -> Callable[[Header], None]:
    def edit(header: Header) -> None:
        header["__metadata__"]["config"] = json.dumps(stored_config(header) | fields)

    return edit


def with_metadata(key: str, value: object) -> Callable[[Header], None]:
    return lambda header: header["__metadata__"].update({key: value})


def with_tensor(name: str, **fields: object) -> Callable[[Header], None]:
    return lambda header: header[name].update(fields)


def without(*keys: str) -> Callable[[Header], None]:
    def edit(header: Header) -> None:
        for key in keys[:-1]:
            header = header[key]
        del header[keys[-1]]

    return edit


def renamed(tensor: str) -> Callable[[Header], None]:
    return lambda header: header.update({"other": header.pop(tensor)})


def with_overlap(header: Header) -> None:
    start = header[f"{MLP}.proj_up"]["data_offsets"][0]
    header[f"{QKV}.bias"]["data_offsets"] = [start, start + 2 * 384]


def quantization(**fields: object) -> str:
    return json.dumps({"method": "svdquant", "weight": {"dtype": "int4", "group_size": 64}} | fields)


DAMAGES: dict[str, tuple[Callable[[Header], object], str]] = {
    "no metadata": (without("__metadata__"), "metadata 'config' is missing, expected a JSON object"),
    "metadata of numbers": (with_metadata("format", 1), "expected an object of strings"),
    "no config": (without("__metadata__", "config"), "metadata 'config' is missing"),
    "config no JSON": (with_metadata("config", "{"), "metadata 'config' cannot be read, expected a JSON object"),
    "config nested too deep": (with_metadata("config", "[" * 200_000), "metadata 'config' cannot be read"),
    "config a list": (with_metadata("config", "[1]"), "metadata 'config' is [1], expected a JSON object"),
    "config with NaN": (with_metadata("config", '{"num_layers": NaN}'), "metadata 'config' cannot be read"),
    "config with an endless number": (
        with_metadata("config", '{"num_layers": ' + "9" * 5000 + "}"),
        "metadata 'config' cannot be read",
    ),
    "layers of text": (with_config(num_layers="1"), "num_layers '1', expected an integer from 1 to 1024"),
    "layers true": (with_config(num_layers=True), "num_layers True, expected an integer"),
    "no layers": (with_config(num_layers=0), "num_layers 0, expected an integer"),
    "endless layers": (with_config(num_layers=10**12), "num_layers 1000000000000, expected an integer from 1 to 1024"),
    "heads null": (with_config(num_attention_heads=None), "num_attention_heads None, expected an integer"),
    "channels of a float": (with_config(in_channels=64.0), "in_channels 64.0, expected an integer"),
    "flag of a number": (with_config(zero_cond_t=1), "zero_cond_t 1, expected true or false"),
    "two rope axes": (with_config(axes_dims_rope=[64, 64]), "axes_dims_rope [64, 64], expected three even integers"),
    "odd rope axes": (with_config(axes_dims_rope=[15, 57, 56]), "expected three even integers"),
    "rope axes of text": (with_config(axes_dims_rope="abc"), "axes_dims_rope 'abc', expected three even integers"),
    "short rope axes": (with_config(axes_dims_rope=[16, 16, 16]), "expected a sum of 128"),
    "narrow head": (with_config(attention_head_dim=64), "= 64, expected a multiple of 128"),
    "another head count": (
        with_config(num_attention_heads=2),
        "'transformer_blocks.0.img_mod.1.qweight' has shape [192, 64], expected [384, 128]",
    ),
    "more layers than blocks": (
        with_config(num_layers=2),
        "tensor 'transformer_blocks.1.attn.add_qkv_proj.bias' is missing (68 in all), expected BF16 of shape [384]",
    ),
    "another text width": (
        with_config(joint_attention_dim=32),
        "tensor 'txt_in.weight' has shape [128, 64], expected [128, 32]",
    ),
    "no quantization": (without("__metadata__", "quantization_config"), "'quantization_config' is missing"),
    "quantization no JSON": (with_metadata("quantization_config", "int4"), "'quantization_config' cannot be read"),
    "another method": (
        with_metadata("quantization_config", quantization(method="awq")),
        "method 'awq', expected 'svdquant'",
    ),
    "fp4": (
        with_metadata("quantization_config", quantization(weight={"dtype": "fp4_e2m1_all", "group_size": 16})),
        "weight.dtype 'fp4_e2m1_all', expected 'int4'",
    ),
    "another group": (
        with_metadata("quantization_config", quantization(weight={"dtype": "int4", "group_size": 128})),
        "weight.group_size 128, expected 64",
    ),
    "weight no object": (
        with_metadata("quantization_config", quantization(weight=4)),
        "weight.dtype None, expected 'int4'",
    ),
    "no rank": (
        renamed("transformer_blocks.0.attn.to_out.0.proj_down"),
        "'transformer_blocks.0.attn.to_out.0.proj_down' is missing",
    ),
    "odd rank": (
        with_tensor("transformer_blocks.0.attn.to_out.0.proj_down", shape=[256, 8]),
        "has shape [256, 8], expected [K, R] with R a multiple of 16",
    ),
    "flat rank": (with_tensor("transformer_blocks.0.attn.to_out.0.proj_down", shape=[2048]), "expected [K, R] with R"),
    "another rank": (
        with_tensor(f"{QKV}.proj_down", shape=[64, 32]),
        f"'{QKV}.proj_down' has shape [64, 32], expected [128, 16]",
    ),
    "tensor gone": (
        renamed(f"{QKV}.wscales"),
        f"'{QKV}.wscales' is missing (1 in all), expected BF16 of shape [2, 384]",
    ),
    "tensor too many": (
        lambda header: header.update({"lora": {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]}}),
        "tensor 'lora' (1 in all) is unknown",
    ),
    "tensor no object": (lambda header: header.update({MLP: 3}), f"tensor '{MLP}' is not described"),
    "no offsets": (without(f"{QKV}.bias", "data_offsets"), f"tensor '{QKV}.bias' is not described"),
    "dtype a number": (with_tensor(f"{QKV}.bias", dtype=16), f"tensor '{QKV}.bias' is not described"),
    "another dtype": (with_tensor(f"{QKV}.bias", dtype="F16"), f"tensor '{QKV}.bias' is 'F16', expected BF16"),
    "another shape": (with_tensor(f"{MLP}.qweight", shape=[256, 128]), "has shape [256, 128], expected [128, 256]"),
    "negative shape": (with_tensor(f"{QKV}.bias", shape=[-384]), "has shape [-384], expected a list of sizes"),
    "shape of text": (with_tensor(f"{QKV}.bias", shape="384"), "has shape '384', expected a list of sizes"),
    "one offset": (with_tensor(f"{QKV}.bias", data_offsets=[0]), "has offsets [0], expected two positions"),
    "backward offsets": (with_tensor(f"{QKV}.bias", data_offsets=[768, 0]), "has -768 bytes, expected 768"),
    "huge offsets": (with_tensor(f"{QKV}.bias", data_offsets=[0, 2**64]), "expected two positions"),
    "short offsets": (with_tensor(f"{QKV}.bias", data_offsets=[0, 766]), "has 766 bytes, expected 768"),
    "overlap": (with_overlap, "begins at byte"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_header_is_refused_with_what_was_expected(damage: str, small_file: Path, tmp_path: Path) -> None:
    edit, sentence = DAMAGES[damage]
    header, data = split(small_file)
    edit(header)
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(joined(header, data))
    assert sentence in refusal(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "has 0 bytes, expected a safetensors file"),
        (b"1234567", "has 7 bytes, expected a safetensors file"),
        (
            struct.pack("<Q", 2**63) + b"{}",
            "declares a header of 9223372036854775808 bytes, expected at most 100000000",
        ),
        (struct.pack("<Q", 3) + b"{}", "is cut short: has 10 bytes"),
        (struct.pack("<Q", 0), "the header begins with b'', expected a JSON object"),
        (struct.pack("<Q", 2) + b"[]", "the header begins with b'[', expected a JSON object"),
        (struct.pack("<Q", 4) + b'{"\xff"', "the header cannot be read, expected a JSON object: UnicodeDecodeError"),
        (struct.pack("<Q", 2) + b"{]", "the header cannot be read, expected a JSON object: JSONDecodeError"),
        (struct.pack("<Q", 2) + b"{}", "metadata 'config' is missing"),
    ],
)
def test_a_file_of_another_kind_is_refused(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    assert sentence in refusal(path)


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "gone.safetensors")


def test_a_directory_is_refused_with_its_name(tmp_path: Path) -> None:
    assert "Is a directory" in refusal(tmp_path)


def test_a_file_with_bytes_after_its_tensors_is_refused(small_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    path.write_bytes(small_file.read_bytes() + b"\0")
    assert "has bytes after its last tensor" in refusal(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(share: float, small_file: Path, tmp_path: Path) -> None:
    content = small_file.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: math.floor(share * len(content))])
    refusal(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=300)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_in_the_header_never_crash(
    flips: list[tuple[float, int]], small_file: Path, tmp_path: Path
) -> None:
    content = bytearray(small_file.read_bytes())
    length = 8 + int.from_bytes(content[:8], "little")
    for share, value in flips:
        content[math.floor(share * length)] = value
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(content)
    with suppress(CheckpointError):
        assert read_header(path).rank == 16


def test_a_whole_file_is_described(small_file: Path) -> None:
    info = read_header(small_file)
    header, data = split(small_file)
    assert (info.file, info.rank, info.num_layers) == ("small.safetensors", 16, 1)
    assert set(info.tensors) == set(header) - {"__metadata__"}
    start = small_file.stat().st_size - len(data)
    for name, entry in info.tensors.items():
        assert [entry.offset - start, entry.offset - start + entry.bytes] == header[name]["data_offsets"]


def test_unknown_config_fields_are_dropped_and_missing_ones_filled_in(small_file: Path, tmp_path: Path) -> None:
    header, data = split(small_file)
    config = {"pooled_projection_dim": 768, "_class_name": "QwenImageTransformer2DModel"} | stored_config(header)
    del config["patch_size"], config["axes_dims_rope"]
    header["__metadata__"]["config"] = json.dumps(config)
    path = tmp_path / "older.safetensors"
    path.write_bytes(joined(header, data))
    info = read_header(path)
    assert set(info.config) == set(CONFIG_DEFAULTS)
    assert info.config["patch_size"] == 2
    QwenImageTransformer2DModel(**info.config)


def test_the_rank_is_taken_from_the_tensors(small_file: Path, tmp_path: Path) -> None:
    header, data = split(small_file)
    header["__metadata__"]["quantization_config"] = quantization(rank=99)
    path = tmp_path / "rank.safetensors"
    path.write_bytes(joined(header, data))
    assert read_header(path).rank == 16


def test_the_known_config_fields_are_those_of_diffusers() -> None:
    parameters = inspect.signature(QwenImageTransformer2DModel.__init__).parameters
    assert {name: item.default for name, item in parameters.items() if name != "self"} == dict(CONFIG_DEFAULTS)


@pytest.mark.parametrize(("rank", "size"), [(128, 12_653_943_936), (32, 11_521_481_856)])
def test_the_real_model_has_the_real_size(rank: int, size: int) -> None:
    config = {"num_layers": 60, "num_attention_heads": 24, "attention_head_dim": 128, "in_channels": 64}
    config |= {"out_channels": 16, "patch_size": 2, "joint_attention_dim": 3584}
    tensors = expected_tensors(config, rank)
    assert len(tensors) == 4093
    assert total_bytes(tensors) == size


def test_checking_a_file_needs_no_torch(small_file: Path) -> None:
    program = (
        "import sys, types\n"
        "sys.modules['torch'] = None\n"
        "package = sys.modules['qwen_edit'] = types.ModuleType('qwen_edit')\n"
        f"package.__path__ = {[str(Path(qwen_edit.svdq.__file__).parents[1])]!r}\n"
        "from qwen_edit.svdq.checkpoint import read_header\n"
        f"print(read_header({str(small_file)!r}).rank)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("16\n", "")
