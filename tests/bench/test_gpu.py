import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from bench.gpu import __main__ as gpu
from bench.gpu import full_size
from qwen_edit.store.catalog import LIGHTNING, RANK
from qwen_edit.svdq.checkpoint import CheckpointInfo, read_header
from qwen_edit.svdq.modules import CONFIG_DEFAULTS, expected_tensors, total_bytes
from tests.support.dense import dense_state_dict
from tests.support.places import ROOT


@pytest.fixture(scope="module")
def random_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("random")
    full_size.write(models, full_size.tiny(), (LIGHTNING,), torch.device("cpu"))
    return models


def published() -> CheckpointInfo:
    return CheckpointInfo("published", CONFIG_DEFAULTS, RANK, {}, {})


@pytest.mark.parametrize(("text_tokens", "expected"), [(200, 166), (500, 174), (1000, 187), (1500, 201)])
def test_the_arithmetic_of_a_pass_at_full_size(text_tokens: int, expected: float) -> None:
    linear, attention = gpu.flops(published(), 4096 + 4096, text_tokens)

    assert linear + attention == pytest.approx(expected, abs=0.6)


def test_the_limit_takes_fp8_for_the_linear_layers_alone() -> None:
    figures = {"image tokens": 8192.0, "text tokens": 200.0}
    rates = {"bf16": 800.0, "fp8": 1600.0}
    linear, attention = gpu.flops(published(), 8192, 200)

    assert gpu.step_limit("dense", figures, published(), rates) == pytest.approx((linear + attention) / 800)
    assert gpu.step_limit("dense-fp8", figures, published(), rates) == pytest.approx(linear / 1600 + attention / 800)


def test_the_full_size_is_the_published_one() -> None:
    size = full_size.full()

    assert total_bytes(expected_tensors(size.transformer, RANK)) == 12_653_943_936
    assert full_size.parameters(size.text_encoder) == 8_292_166_656


def test_the_random_weights_keep_every_activation_in_range(random_models: Path) -> None:
    path = random_models / LIGHTNING.path
    info = read_header(path)
    model = QwenImageTransformer2DModel(**{**info.config, "num_layers": 1}).eval()
    model.load_state_dict(dense_state_dict(path, torch.float32))
    with torch.inference_mode():
        output = model(
            hidden_states=torch.randn(1, 48, 64),
            encoder_hidden_states=torch.randn(1, 7, 128),
            timestep=torch.tensor([0.5]),
            img_shapes=[[(1, 8, 6)]],
        ).sample

    assert 0.01 < output.std() < 100


def test_the_whole_benchmark_runs_with_a_tiny_model(random_models: Path, tmp_path: Path) -> None:
    lines = benchmark(random_models, "--profile", str(tmp_path), "--runs", "dense+flash,nunchaku,dense+fused,stock")

    rows = [line for line in lines if line.startswith(("| dense+flash |", "| stock |", "| dense+flash, cold |"))]
    ours, stock = "| dense+flash", "| stock"
    assert [row.split(" | ")[0] for row in rows] == [f"{ours}, cold", ours, stock, ours, stock, ours, stock]
    assert all(float(cell) > 0 for cell in rows[3].strip("| ").split(" | ")[1:])
    if not torch.cuda.is_available():
        assert any(line.startswith("nunchaku: ") and "nunchaku" in line[10:] for line in lines)
    assert any(line.startswith("dense+fused: ") and "QWEN_EDIT_FUSED_QKV is 1, but" in line for line in lines)
    assert "scaled_dot_product" in (tmp_path / "dense-flash.txt").read_text()


def test_what_there_is_no_time_for_is_named_and_left_out(random_models: Path) -> None:
    lines = benchmark(random_models, "--minutes", "0", "--runs", "dense,stock")

    assert [line for line in lines if "left out" in line] == [
        f"{run}: left out, the time is up" for run in ("dense", "dense", "stock")
    ]
    assert not [line for line in lines if line.startswith("| dense")]


def benchmark(models: Path, *arguments: str) -> list[str]:
    """What a run with the tiny model prints."""
    program = [sys.executable, "-m", "bench.gpu", "--tiny", "--models", str(models), "--side", "256"]
    done = subprocess.run(
        [*program, "--steps", "1", "--repeats", "1", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
