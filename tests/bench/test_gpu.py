import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.transformers import transformer_qwenimage

from bench.gpu import full_size, kernels, report
from bench.gpu.__main__ import fault_of, parse
from bench.gpu.run import CHANGES, MEASURES
from qwen_edit.machine.backend import Card
from qwen_edit.store.catalog import LIGHTNING, RANK
from qwen_edit.svdq.checkpoint import CheckpointInfo, read_header
from qwen_edit.svdq.modules import CONFIG_DEFAULTS, expected_tensors, total_bytes
from tests.support.dense import dense_state_dict
from tests.support.places import ROOT

SMALL = {"num_layers": 1, "num_attention_heads": 1, "joint_attention_dim": 128}


@pytest.fixture(scope="module")
def random_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("random")
    full_size.write(models, full_size.tiny(), (LIGHTNING,), torch.device("cpu"))
    return models


def published() -> CheckpointInfo:
    return CheckpointInfo("published", CONFIG_DEFAULTS, RANK, {}, {})


@pytest.mark.parametrize(("text_tokens", "expected"), [(200, 166), (500, 174), (1000, 187), (1500, 201)])
def test_the_arithmetic_of_a_pass_at_full_size(text_tokens: int, expected: float) -> None:
    linear, attention = report.flops(published(), 4096 + 4096, text_tokens)

    assert linear + attention == pytest.approx(expected, abs=0.6)


def test_the_limit_takes_fp8_for_the_linear_layers_alone() -> None:
    figures = {"image tokens": 8192.0, "text tokens": 200.0}
    rates = {"bf16": 800.0, "fp8": 1600.0}
    linear, attention = report.flops(published(), 8192, 200)

    assert report.step_limit("dense", figures, published(), rates) == pytest.approx((linear + attention) / 800)
    assert report.step_limit("dense-fp8", figures, published(), rates) == pytest.approx(linear / 1600 + attention / 800)


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


@dataclass(frozen=True)
class Whole:
    """A run of all that the benchmark measures: what it printed, and the files that it left."""

    lines: list[str]
    results: Path
    profiles: Path


@pytest.fixture(scope="module")
def whole(random_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    profiles = tmp_path_factory.mktemp("profiles")
    results = profiles / "RESULTS.md"
    results.write_text("what was there\n")
    options = ("--measure", ",".join(MEASURES), "--profile", profiles, "--results", results)
    lines = benchmark(random_models, *options, "--runs", "dense+flash,nunchaku,dense+fused,stock")
    return Whole(lines, results, profiles)


def test_the_whole_benchmark_runs_with_a_tiny_model(whole: Whole) -> None:
    rows = [line for line in whole.lines if line.startswith(("| dense+flash |", "| stock |", "| dense+flash, cold |"))]
    ours, stock = "| dense+flash", "| stock"
    assert [row.split(" | ")[0] for row in rows] == [f"{ours}, cold", ours, stock, ours, stock, ours, stock]
    assert all(float(cell) > 0 for cell in rows[3].strip("| ").split(" | ")[1:])
    if not torch.cuda.is_available():
        assert any(line.startswith("- nunchaku: ") and "nunchaku" in line[12:] for line in whole.lines)
    assert any(line.startswith("- dense+fused: ") and "QWEN_EDIT_FUSED_QKV is 1, but" in line for line in whole.lines)
    assert "scaled_dot_product" in (whole.profiles / "dense-flash.txt").read_text()


@pytest.mark.parametrize(("measure", "figure"), MEASURES.items())
def test_each_measure_is_printed(whole: Whole, measure: str, figure: str) -> None:
    runs = {"memory": ["dense+flash"]}.get(measure, ["dense+flash", "stock"])
    for run in runs:
        assert any(line.startswith(f"- {run}: ") and f" {figure} " in line for line in whole.lines), run


def test_a_step_is_printed_by_what_its_time_goes_into(whole: Whole) -> None:
    rows = [line.split(" | ")[0] for line in whole.lines if line.startswith(tuple(f"| {g} " for g in kernels.GROUPS))]

    assert rows == 2 * [f"| {group}" for group in kernels.GROUPS]


def test_a_cpu_paints_one_request_twice_alike(whole: Whole) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU may add in another order")
    assert sum("largest difference 0," in line for line in whole.lines) == 2


def test_what_is_printed_is_appended_with_the_hardware_and_the_versions(whole: Whole) -> None:
    appended = whole.results.read_text().splitlines()

    assert appended == ["what was there", *whole.lines]
    assert appended[1].startswith("## `python -m bench.gpu --tiny")
    assert f"torch {torch.__version__}" in appended[3]


@pytest.mark.parametrize(
    ("errors", "fault"),
    [
        ("", "was stopped"),
        ("a warning\nusage: the wrong option\n", "usage: the wrong option"),
        (
            "a warning\nTraceback (most recent call last):\n  a line\nan.Error: no\n  detail\nlib: leaked\n",
            "an.Error: no",
        ),
    ],
)
def test_why_a_run_ended_is_said_in_one_line(errors: str, fault: str) -> None:
    assert fault_of(errors) == fault


def test_what_is_measured_until_the_end_comes_is_in_the_file(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    report.Report(results).figures("dense", {"step": 0.5})

    assert results.read_text() == "- dense: step 0.5\n"


def test_what_was_measured_is_printed_over_what_was_predicted() -> None:
    measured = {"step": 0.892, "edit": 7.75, "image tokens": 8192.0, "text tokens": 1395.0, "taken GB": 51.5}
    card = Card("NVIDIA H100 80GB HBM3", (9, 0), int(85e9), int(84e9))
    *_, row = report.beside_prediction({"dense+flash": measured, "stock": measured}, card, steps=8)

    name, load, step, edit, taken = row.strip("| ").split(" | ")
    assert (name, load) == ("dense+flash", "–")
    assert [float(cell) for cell in (step, edit, taken)] == pytest.approx([2, 2, 1], rel=0.05)


def test_nothing_is_printed_over_a_prediction_for_a_card_that_is_not_known() -> None:
    card = Card("NVIDIA T1000", (7, 5), int(8e9), int(7e9))

    assert list(report.beside_prediction({"dense": {"step": 1.0}}, card, steps=8)) == []


def test_what_there_is_no_time_for_is_named_and_left_out(random_models: Path) -> None:
    lines = benchmark(random_models, "--minutes", "0", "--runs", "dense,stock")

    assert [line for line in lines if "left out" in line] == [
        f"- {run}: left out, the time is up" for run in ("dense", "dense", "stock")
    ]
    assert not [line for line in lines if line.startswith("| dense")]


def test_a_measure_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SystemExit):
        parse(["--measure", "load,speed"])


def test_a_run_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--runs", "dense,dense+quick"])
    assert f"'dense+quick', expected changes {', '.join(CHANGES)}" in capsys.readouterr().err

    with pytest.raises(SystemExit):
        parse(["--runs", "sparse+flash"])
    assert "'sparse+flash', expected one of nunchaku, dense, dense-fp8, stock" in capsys.readouterr().err


def test_the_time_of_a_step_is_shared_out_among_what_it_is_for() -> None:
    model = QwenImageTransformer2DModel(**{**CONFIG_DEFAULTS, **SMALL}).eval()

    def edit() -> None:
        with torch.inference_mode():
            for _ in range(2):
                model(torch.randn(1, 64, 64), torch.randn(1, 8, 128), None, torch.ones(1), [[(1, 8, 8)]])

    with kernels.marked(model), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        edit()
    spent = kernels.by_operation(list(profile.events() or ()), "cpu")

    assert all(spent[group] for group in kernels.GROUPS)
    assert {"aten::addmm"} <= set(spent["products"])
    assert {"aten::pow", "aten::rsqrt"} <= set(spent["norm"])
    assert "aten::view_as_complex" in spent["rotary"]
    assert any("scaled_dot_product" in name for name in spent["attention"])
    assert "aten::gelu" in spent["other"]
    whole = sum(event.self_cpu_time_total for event in profile.events() or ()) / 1000
    assert sum(sum(operations.values()) for operations in spent.values()) == pytest.approx(whole)


def test_the_marks_of_a_profile_are_gone_after_it() -> None:
    model = QwenImageTransformer2DModel(**{**CONFIG_DEFAULTS, **SMALL})
    rotate = transformer_qwenimage.apply_rotary_emb_qwen
    with kernels.marked(model):
        assert transformer_qwenimage.apply_rotary_emb_qwen is not rotate

    assert transformer_qwenimage.apply_rotary_emb_qwen is rotate
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def benchmark(models: Path, *arguments: object) -> list[str]:
    """What a run with the tiny model prints."""
    program = [sys.executable, "-m", "bench.gpu", "--tiny", "--models", str(models), "--side", "256"]
    done = subprocess.run(
        [*program, "--steps", "1", "--repeats", "1", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
