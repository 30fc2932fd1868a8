"""The code that runs on a GPU, with its numbers in this machine's memory and every tensor's place watched."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from qwen_edit.edit.hooks import Hooks, Step
from qwen_edit.edit.plan import Plan
from qwen_edit.loading import incoming as loading
from qwen_edit.loading.loader import Loader
from qwen_edit.loading.start import load
from qwen_edit.loading.switches import Switches
from qwen_edit.machine.backend import BackendName
from qwen_edit.machine.device import MachineSetup
from qwen_edit.machine.gpu_memory import MemoryWay
from qwen_edit.machine.setup import Choice
from qwen_edit.model import sampling
from qwen_edit.model.pipeline import EditPipeline
from qwen_edit.model.sampling import decode, denoise
from qwen_edit.model.transformer.expansion import FORMATS, expand, portions_of
from qwen_edit.model.transformer.fp8_linear import Fp8Linear
from qwen_edit.model.transformer.fused_attention import FusedJointAttention
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import LIGHTNING, ORIGINAL
from qwen_edit.store.folder import base_weights
from qwen_edit.svdq.checkpoint import read_header
from qwen_edit.svdq.fp8 import quantize_rows
from qwen_edit.weights import sinks
from qwen_edit.weights.reader import Weights
from tests.support.engine import STAND_IN, forget_engine
from tests.support.simulated_cuda import CUDA, Link, OnDevice, SimulatedCuda, simulated_cuda

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the device is simulated within PyTorch for Linux")

SIDE = 64
"""Pixels of a picture and of its reference, in place of a megapixel."""

GUIDED = Plan(LIGHTNING, 3, 3.0, "grey", 7, SIDE, SIDE, 1)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedCuda]:
    with simulated_cuda() as device:
        monkeypatch.setattr(sinks, "CudaLink", lambda _device: Link())
        monkeypatch.setattr(loading, "ThreadPoolExecutor", partial(ThreadPoolExecutor, initializer=device.enter_thread))
        monkeypatch.setattr(sampling, "default_size", lambda _size: (SIDE, SIDE))
        yield device


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(STAND_IN))
    yield
    forget_engine()


@pytest.fixture
def small(photo: Image.Image) -> Image.Image:
    return photo.resize((SIDE, SIDE))


def setup_for(backend: BackendName) -> MachineSetup:
    way = MemoryWay(backend, "none", tiling=False, load=0, encode=0, denoise=0, host=0)
    return MachineSetup(CUDA, Choice(backend, ""), way)


def loaded(models: Path, backend: BackendName = "dense", *, fused_qkv: bool = False) -> tuple[Loader, EditPipeline]:
    loader = Loader(models, setup_for(backend))
    with loader.begin(base_weights(models), LIGHTNING, lambda: False) as incoming:
        return loader, loader.assemble(incoming, LIGHTNING, Switches(fused_qkv=fused_qkv))


def render(
    pipeline: EditPipeline, picture: Image.Image, plan: Plan = GUIDED, on_step: Callable[[Step], None] = lambda _: None
) -> np.ndarray:
    (rendered,) = decode(pipeline, denoise(pipeline, picture, "snow", plan, Hooks(on_step)))
    return np.asarray(rendered)


@pytest.mark.usefixtures("cuda")
def test_a_tensor_of_the_host_beside_one_of_the_device_is_an_error() -> None:
    x = torch.ones(3, device=CUDA)

    with pytest.raises(RuntimeError, match=r"add.Tensor of \[OnDevice\(\(3,\), torch.float32\)\]"):
        x + torch.ones(3)
    assert (x + torch.tensor(1.0)).tolist() == [2, 2, 2]  # a single number is handed over with the work


@pytest.mark.parametrize(
    ("waits", "work"),
    [
        (1, lambda x: x[0].item()),
        (1, lambda x: x.tolist()),
        (1, lambda x: bool(x.any())),
        (1, lambda x: x.cpu()),
        (1, lambda x: x[[0, 1]]),
        (1, lambda x: x[x > 0]),
        (1, lambda x: x.nonzero()),
        (1, lambda x: torch.tensor([1.0, 2.0], device=CUDA)),
        (1, lambda x: x.copy_(torch.zeros(3))),
        (0, lambda x: x.copy_(torch.zeros(3), non_blocking=True)),
        (0, lambda x: x[0] + x[1:].sum() + torch.arange(3, device=CUDA)),
        (0, lambda x: torch.where(x > 0, x, 0.0).to(torch.bfloat16)),
    ],
)
def test_what_the_host_waits_for_is_noticed(cuda: SimulatedCuda, waits: int, work: Callable[[Tensor], object]) -> None:
    work(torch.ones(3, device=CUDA))

    assert len(cuda.waits) == waits


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("backend", "fused_qkv"), [("dense", False), ("dense-fp8", False), ("nunchaku", False), ("nunchaku", True)]
)
def test_no_step_of_an_edit_waits_for_the_device(
    cuda: SimulatedCuda, models: Path, small: Image.Image, backend: BackendName, fused_qkv: bool
) -> None:
    _, pipeline = loaded(models, backend, fused_qkv=fused_qkv)
    first, waits = render(pipeline, small), []

    again = render(pipeline, small, on_step=lambda _: waits.append(list(cuda.waits)))

    assert len(waits) == GUIDED.steps
    assert all(one == waits[0] for one in waits)
    assert np.array_equal(first, again)
    assert {parameter.device for parameter in pipeline.transformer.parameters()} == {CUDA}


@pytest.mark.usefixtures("cuda", "engine")
@pytest.mark.parametrize("fused_qkv", [False, True])
def test_a_start_takes_the_engines_fused_product_where_the_settings_ask_for_it(
    models: Path, monkeypatch: pytest.MonkeyPatch, fused_qkv: bool
) -> None:
    monkeypatch.setattr("qwen_edit.loading.loader.set_up", lambda *_: setup_for("nunchaku"))

    _, pipeline, _ = load(Settings(models=models, fused_qkv=fused_qkv), LIGHTNING, lambda: False)

    attentions = [block.attn for block in pipeline.transformer.transformer_blocks]
    assert [isinstance(attention.processor, FusedJointAttention) for attention in attentions] == [fused_qkv]


@pytest.mark.parametrize("backend", ["dense", "dense-fp8"])
def test_a_block_is_expanded_on_the_device_in_two_looks_at_its_numbers(
    cuda: SimulatedCuda, models: Path, backend: BackendName
) -> None:
    path = models / LIGHTNING.path
    info, form = read_header(path), FORMATS[backend]

    with Weights([path], CUDA, portions={path: portions_of(info, form)}) as weights:
        expanded = expand(info, weights.portions(path), form, torch.bfloat16)

    assert all(isinstance(tensor, OnDevice) for tensor in expanded.tensors.values())
    assert len(cuda.waits) == 1 + 2 * info.num_layers  # at the weights and at the modulations; and outside of blocks


@pytest.mark.usefixtures("cuda")
def test_another_checkpoint_is_taken_in_place(models: Path, small: Image.Image) -> None:
    loader, pipeline = loaded(models)
    place = pipeline.transformer.proj_out.weight
    lightning = render(pipeline, small)

    loader.change(pipeline, ORIGINAL)
    original = render(pipeline, small, replace(GUIDED, checkpoint=ORIGINAL))

    assert pipeline.transformer.proj_out.weight is place
    assert not np.array_equal(original, lightning)


@pytest.mark.usefixtures("cuda")
def test_a_preview_and_tiles_mix_no_devices(models: Path, small: Image.Image) -> None:
    _, pipeline = loaded(models)
    previews: list[Image.Image] = []
    wide = replace(GUIDED, steps=1, width=8 * SIDE)

    with pipeline.saving_memory():
        picture = render(pipeline, small, wide, lambda step: previews.append(step.preview()))

    assert picture.shape == (SIDE, 8 * SIDE, 3)
    assert [preview.size for preview in previews] == [(256, 32)]


@pytest.mark.parametrize(("inputs", "outputs"), [(3072, 3072), (3072, 12288), (12288, 3072)])
def test_a_product_in_fp8_has_the_form_that_cuda_takes(inputs: int, outputs: int) -> None:
    layer = Fp8Linear(inputs, outputs).to("meta")
    layer.bias = torch.nn.Parameter(layer.bias.bfloat16(), requires_grad=False)
    rows, scales = quantize_rows(torch.empty(1421, inputs, dtype=torch.bfloat16, device="meta"))

    product = layer._on_tensor_cores(rows, scales, torch.bfloat16)  # PyTorch checks it as CUDA's, without numbers

    assert (product.shape, product.dtype) == ((1421, outputs), torch.bfloat16)
    with pytest.raises(RuntimeError, match="divisible by 16"):
        layer._on_tensor_cores(rows[:, :-8], scales, torch.bfloat16)
