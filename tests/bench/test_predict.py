from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage, QwenImageCausalConv3d
from diffusers.models.transformers import transformer_qwenimage
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bench.gpu.full_size import full, parameters
from bench.predict import arithmetic
from bench.predict.__main__ import assumptions, cases, prediction, rates_table, shares_table
from bench.predict.arithmetic import STOCK, attention_flops, linear_flops, low_rank_flops, moved_bytes, shape_of
from bench.predict.cards import RATES, known
from bench.predict.compared import predicted, ratios, run_of
from bench.predict.seconds import TOKENS, Run, moves, predict, step_of, variants
from qwen_edit.machine.backend import Card
from qwen_edit.model.vae import FrameConvolution
from qwen_edit.store.catalog import RANK
from qwen_edit.svdq.modules import CONFIG_DEFAULTS, expected_tensors

STEP = shape_of(CONFIG_DEFAULTS, TOKENS)
H100 = Card("NVIDIA H100 80GB HBM3", (9, 0), int(85e9), int(84e9))


class Moved(TorchDispatchMode):
    """Adds up the bytes that operations read and write, but for products and what makes views."""

    PRODUCTS = ("aten.mm", "aten.addmm")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(
        self,
        function: torch._ops.OpOverload,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        result = function(*args, **(kwargs or {}))
        if not function.is_view and not str(function).startswith(self.PRODUCTS):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def test_a_step_has_the_operations_that_pytorch_counts() -> None:
    few = shape_of({**CONFIG_DEFAULTS, "num_layers": 1}, 64 + 32)

    counted = difference(lambda model: counted_flops(lambda: run(model, 64, 32)), layers=(1, 2))

    # Beside the blocks' own layers, of which each makes six vectors of modulation from one timestep for each stream.
    modulation = 2 * 2 * 6 * few.width**2
    assert linear_flops(few) + attention_flops(few) + modulation == pytest.approx(counted, rel=1e-3)


def test_an_eager_block_moves_as_many_bytes_as_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    # On the meta device it would be computed in parts, which no GPU does.
    monkeypatch.setattr(transformer_qwenimage, "dispatch_attention_fn", lambda query, *_, **__: query)
    moved = difference(lambda model: moved_by(lambda: run(model, 1024, 512)), layers=(1, 2))

    per_block = shape_of({**CONFIG_DEFAULTS, "num_layers": 1}, 1024 + 512)
    assert moved_bytes(per_block, sum(STOCK.values())) == pytest.approx(moved, rel=0.05)


def test_the_vae_has_the_operations_that_pytorch_counts() -> None:
    with torch.device("meta"):
        vae = AutoencoderKLQwenImage().eval()
        picture, latents = torch.empty(1, 3, 1, 256, 256), torch.empty(1, 16, 1, 32, 32)
    for module in vae.modules():
        if type(module) is QwenImageCausalConv3d:
            module.__class__ = FrameConvolution

    assert arithmetic.encode_flops(256) == pytest.approx(counted_flops(lambda: vae.encode(picture)), rel=0.01)
    assert arithmetic.decode_flops(256) == pytest.approx(counted_flops(lambda: vae.decode(latents)), rel=0.01)


def test_the_text_encoder_is_counted_by_its_parameters() -> None:
    words = 2 * 152064 * 3584  # its table and `lm_head` meet no token
    counted = arithmetic.text_encoder_flops(1, 0) + arithmetic.text_encoder_flops(0, 1)

    assert counted / 2 == pytest.approx(parameters(full().text_encoder) - words, rel=0.01)


def test_the_low_rank_branch_is_counted_by_the_tensors_of_the_file() -> None:
    block = {**CONFIG_DEFAULTS, "num_layers": 1}
    sides = [spec for name, spec in expected_tensors(block, RANK).items() if name.endswith(("proj_down", "proj_up"))]
    both_streams = sum(spec.shape[0] * spec.shape[1] for spec in sides)

    assert low_rank_flops(shape_of(block, 2), RANK) == 2 * both_streams


@pytest.mark.parametrize(
    ("card", "run", "step", "edit", "within"),
    [
        ("H100", Run("dense"), 0.470, 4.1, 0.15),
        ("H200", Run("dense"), 0.451, 3.9, 0.15),
        ("H100", Run("dense", "cudnn", fused=True), 0.356, 3.2, 0.15),
        ("H200", Run("dense", "cudnn", fused=True), 0.344, 3.1, 0.15),
        ("H100", Run("dense-fp8", "cudnn", fused=True), 0.299, 2.7, 0.15),
        ("H100", Run("dense", "cudnn", compiled=True), 0.353, 3.2, 0.15),
        ("H100", Run("dense-fp8", "cudnn", compiled=True), 0.298, 2.7, 0.15),
        ("L40S", Run("nunchaku"), 1.25, 10.5, 0.3),
        ("RTX 4090", Run("nunchaku"), 1.05, 9.5, 0.3),
    ],
    ids=str,
)
def test_a_prediction_is_near_an_estimate_made_by_hand(
    card: str, run: Run, step: float, edit: float, within: float
) -> None:
    case = next(case for case in cases() if case.card == card)
    found = prediction(case, run)

    assert found.step.total == pytest.approx(step, rel=within)
    assert found.edit == pytest.approx(edit, rel=within)


def test_what_waits_for_a_figure_is_predicted_to_be_faster_or_has_a_reason_not_to_be() -> None:
    as_it_is = Run("dense", "cudnn", fused=True)
    usual = step_of("H100", as_it_is).total
    steps = {name: step_of("H100", run).total for name, run in variants(as_it_is).items()}

    assert {name for name, step in steps.items() if step > usual} == {"without Triton's kernels", "flash attention"}
    assert min(steps.values()) == steps["fp8"]
    # A compiler spares no memory that Triton's kernels do not.
    assert steps["compiled"] == pytest.approx(usual)
    assert steps["fp8, compiled"] == pytest.approx(steps["fp8"])
    # Quantizing eagerly moves about what fp8 saves.
    assert moves(Run("dense-fp8")) > 1.4 * moves(Run("dense"))


def test_each_row_of_the_rates_says_which_of_them_were_read() -> None:
    kinds = {"bf16", "fp8", "int4", "memory"}

    for name, rates in RATES.items():
        row = next(line for line in rates_table().splitlines() if line.startswith(f"| {name} |"))
        assert row.endswith(f"| {rates.read} |")
        assert rates.read in ("all", "none") or set(rates.read.split(", ")) < kinds


def test_every_card_of_the_table_has_its_capability_and_its_rates() -> None:
    assert {case.card for case in cases()} == set(RATES)
    for name in RATES:
        assert f"| {name} |" in rates_table()
    for rates in RATES.values():
        assert f"| {rates.share.name} |" in shares_table()
    assert any(f"{TOKENS} tokens" in line for line in assumptions())


@pytest.mark.parametrize(
    ("device", "gigabytes", "card"),
    [
        ("NVIDIA H100 80GB HBM3", 85, "H100"),
        ("NVIDIA H200", 151, "H200"),
        ("NVIDIA B200", 190, "B200"),
        ("NVIDIA A100-SXM4-80GB", 85, "A100"),
        ("NVIDIA A100-PCIE-40GB", 42, "A100 40 GB"),
        ("NVIDIA L40S", 48, "L40S"),
        ("NVIDIA L40", 48, "L40"),
        ("NVIDIA L4", 24, "L4"),
        ("NVIDIA A10", 24, "A10"),
        ("NVIDIA RTX A6000", 51, "A6000"),
        ("NVIDIA RTX 6000 Ada Generation", 51, "RTX 6000 Ada"),
        ("NVIDIA GeForce RTX 4090", 25, "RTX 4090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 101, "RTX PRO 6000"),
        ("NVIDIA H100 PCIe", 85, None),
        ("NVIDIA H100 NVL", 100, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 10, None),
        ("NVIDIA GeForce RTX 4090 D", 25, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 17, None),
        ("Tesla T4", 16, None),
    ],
)
def test_a_card_is_known_by_the_name_that_pytorch_gives_it(device: str, gigabytes: int, card: str | None) -> None:
    assert known(device, gigabytes * 1e9) == card


def test_a_measured_run_is_held_against_a_prediction_for_the_tokens_that_it_had() -> None:
    few = predicted("dense", {"image tokens": 8192, "text tokens": 1395}, H100, 91002, steps=8)
    more = predicted("dense", {"image tokens": 8192, "text tokens": 1600}, H100, 91002, steps=8)

    assert few["step"] == pytest.approx(0.446, rel=0.15)
    assert more["step"] > few["step"]
    assert more["edit"] - few["edit"] == pytest.approx(8 * (more["step"] - few["step"]))
    assert ratios({"step": 2 * few["step"], "peak GB": 1.0}, few) == {"step": pytest.approx(2)}


def test_a_cold_load_is_held_against_the_disk() -> None:
    cold, warm = (predicted(run, {}, H100, 91002, steps=8)["load"] for run in ("dense, cold", "dense"))

    assert cold > 3 * warm


@pytest.mark.parametrize(
    ("run", "card"),
    [
        ("dense", Card("Tesla T4", (7, 5), int(16e9), int(15e9))),
        ("stock", H100),
        ("nunchaku", H100),
        ("dense", Card("NVIDIA GeForce RTX 4090", (8, 9), int(25e9), int(23e9))),
    ],
    ids=str,
)
def test_what_is_not_predicted_is_left_out(run: str, card: Card) -> None:
    assert predicted(run, {"step": 1.0}, card, None, steps=8) == {}


@pytest.mark.parametrize(
    ("name", "cudnn", "attention"),
    [
        ("dense", 91002, "flash"),
        ("dense", 91900, "cudnn"),
        ("dense+flash", 91900, "flash"),
        ("dense+cudnn", 1, "cudnn"),
    ],
)
def test_the_attention_is_the_one_that_pytorch_would_take(name: str, cudnn: int, attention: str) -> None:
    run = run_of(name, H100, cudnn)

    assert run is not None
    assert run.attention == attention


def test_weights_that_come_block_by_block_are_not_predicted() -> None:
    case = next(case for case in cases() if case.card == "RTX 4090")
    way = case.way.__class__(**{**vars(case.way), "offload": "blocks"})

    with pytest.raises(ValueError, match="offload blocks is not predicted"):
        predict("RTX 4090", case.run, way, None, 0)  # type: ignore[arg-type]


def difference(count: Callable[[QwenImageTransformer2DModel], float], layers: tuple[int, int]) -> float:
    """What one more block of the published width adds to a count."""
    counts = []
    for number in layers:
        with torch.device("meta"):
            model = QwenImageTransformer2DModel(num_layers=number).to(torch.bfloat16).eval()
        counts.append(count(model))
    return counts[1] - counts[0]


def run(model: QwenImageTransformer2DModel, picture: int, text: int) -> None:
    """One forward of a square picture, on the meta device.

    Not in inference mode, where a change of dtype is not told from a view.
    """
    side = int(picture**0.5)
    with torch.no_grad(), torch.device("meta"):
        model(
            hidden_states=torch.empty(1, picture, 64, dtype=torch.bfloat16),
            encoder_hidden_states=torch.empty(1, text, 3584, dtype=torch.bfloat16),
            timestep=torch.empty(1, dtype=torch.bfloat16),
            img_shapes=[[(1, side, side)]],
        )


def counted_flops(action: Callable[[], object]) -> float:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        action()
    return float(counter.get_total_flops())


def moved_by(action: Callable[[], object]) -> float:
    with Moved() as moved:
        action()
    return float(moved.bytes)
