import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from qwen_edit import Editor
from qwen_edit.edit.plan import Plan
from qwen_edit.model.offload import homes
from qwen_edit.model.offload.lane import AtOnce, Lane
from qwen_edit.model.offload.parked import Parked
from qwen_edit.model.offload.turns import DeviceTurns, Stays
from qwen_edit.model.pipeline import EditPipeline
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import LIGHTNING
from tests.support.edits import render
from tests.support.late_lane import LateLane

CPU = torch.device("cpu")


class Model(nn.Module):
    """Views of one storage as a file's tensors are, tensors of their own, a buffer, several dtypes, a shared weight."""

    def __init__(self) -> None:
        super().__init__()
        file = torch.randn(2100)
        self.first = parameter(file[:1000].view(20, 50))
        self.second = parameter(file[1100:].view(10, 100).t())
        self.quantized = parameter(torch.randint(-128, 127, (7, 3), dtype=torch.int8))
        self.narrow = parameter(torch.randn(3, 5).bfloat16())
        self.transposed = parameter(torch.randn(4, 6).t())
        self.shared = self.narrow
        self.register_buffer("table", torch.randn(11, dtype=torch.float64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.first @ self.second[:50]


def parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def contents(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in [*module.named_parameters(), *module.named_buffers()]}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(params=[1, 4000, 10**9], ids=["all in place", "some gathered", "all gathered"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr(homes, "LARGE_BYTES", request.param)
    return Model()


def test_the_weights_come_back_as_they_were_each_time(model: Model) -> None:
    before, x = contents(model), torch.randn(2, 20)
    output = model(x)
    parked = Parked(model, CPU)

    for _ in range(2):
        assert not parked.is_here
        assert not any(tensor.numel() for tensor in contents(model).values())
        parked.bring()
        assert parked.is_here
        assert same(contents(model), before)
        assert torch.equal(model(x), output)
        parked.release()


def test_a_module_that_is_out_still_says_its_dtypes_and_where_it_computes(model: Model) -> None:
    before = contents(model)
    Parked(model, CPU)

    assert {name: tensor.dtype for name, tensor in contents(model).items()} == {
        name: tensor.dtype for name, tensor in before.items()
    }
    assert {tensor.device for tensor in model.parameters()} == {CPU}


def test_what_was_on_the_device_is_let_go(model: Model) -> None:
    parked = Parked(model, CPU)
    parked.bring()
    copies = [weakref.ref(tensor.untyped_storage()) for tensor in model.parameters()]
    assert all(copy() is not None for copy in copies)

    parked.release()

    assert all(copy() is None for copy in copies)


def test_a_large_storage_is_not_copied_in_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "LARGE_BYTES", 8_000)
    model = Model()
    pointer = model.first.untyped_storage().data_ptr()

    parked = Parked(model, CPU)

    assert [home.memory.data_ptr() for home in parked._homes[:-1]] == [pointer]
    assert parked._homes[-1].memory.nbytes < 1000


def test_of_a_file_that_is_mapped_only_what_the_module_has_comes_to_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(homes, "LARGE_BYTES", 1)
    model, mapped = Model(), torch.randn(100_000)
    model.first = parameter(mapped[1000:2000].view(20, 50))
    model.second = parameter(mapped[70_000:71_000].view(10, 100).t())
    before = contents(model)

    parked = Parked(model, CPU)
    parked.bring()

    assert same(contents(model), before)
    assert sum(home.memory.nbytes for home in parked._homes) < 10_000


def test_what_is_gathered_is_not_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "HOME_BYTES", 5_000)
    model = Model()
    before = contents(model)

    parked = Parked(model, CPU)
    parked.bring()

    assert [home.memory.nbytes for home in parked._homes] == [4032, 4032 + 64 + 64 + 128 + 128]
    assert same(contents(model), before)


def test_to_bring_what_is_here_copies_nothing(model: Model) -> None:
    parked = Parked(model, CPU)
    parked.bring()
    pointers = [tensor.data_ptr() for tensor in model.parameters()]
    parked.bring()

    assert [tensor.data_ptr() for tensor in model.parameters()] == pointers


def test_it_can_be_brought_within_an_inference_and_used_outside(model: Model) -> None:
    before = contents(model)
    parked = Parked(model, CPU)
    with torch.inference_mode():
        parked.bring()
        model(torch.randn(2, 20))
    assert same(contents(model), before)
    assert not any(tensor.is_inference() for tensor in model.parameters())

    with torch.inference_mode():
        parked.release()
    parked.bring()
    assert same(contents(model), before)


def test_memory_that_does_not_suffice_leaves_it_out(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(model)
    parked = Parked(model, CPU)

    view, left = homes.Place.view, iter(range(2))

    def give_out(place: homes.Place, home: Tensor) -> Tensor:
        if next(left, None) is None:
            raise torch.OutOfMemoryError("no")
        return view(place, home)

    with monkeypatch.context() as patch:
        patch.setattr(homes.Place, "view", give_out)
        with pytest.raises(torch.OutOfMemoryError):
            parked.bring()
    assert not parked.is_here
    assert not any(tensor.numel() for tensor in model.parameters())

    parked.bring()
    assert same(contents(model), before)


def test_one_turn_ends_the_other() -> None:
    turns, one, two = DeviceTurns(CPU), Model(), Model()
    turns.add(one)
    turns.add(two)

    turns.bring(one)
    assert (is_here(one), is_here(two)) == (True, False)
    turns.bring(two)
    assert (is_here(one), is_here(two)) == (False, True)
    turns.bring(one)
    assert (is_here(one), is_here(two)) == (True, False)


def test_a_module_computes_in_its_turn_what_it_computed_before() -> None:
    turns, models, x = DeviceTurns(CPU), [Model(), Model()], torch.randn(2, 20)
    outputs = [model(x) for model in models]
    for model in models:
        turns.add(model)

    for model, output in zip(models * 2, outputs * 2, strict=True):
        turns.bring(model)
        assert torch.equal(model(x), output)
        assert [is_here(one) for one in models] == [one is model for one in models]


@pytest.mark.parametrize("lane", [AtOnce(), LateLane()], ids=["at once", "late"])
@pytest.mark.parametrize("stays", [Stays(), Stays(10_000_000, 1_000_000)], ids=["nothing stays", "some stays"])
def test_an_edit_is_the_same_where_the_text_encoder_and_the_transformer_take_turns(
    lane: Lane, stays: Stays, models: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(homes, "HOME_BYTES", 300_000)
    plan = Plan(LIGHTNING, 1, true_cfg_scale=1.0, negative_prompt=None, seed=4, width=256, height=256, num_images=1)
    whole = Editor.load(Settings(models=models, device="cpu")).pipeline
    in_turns = assembled(models, DeviceTurns(CPU, stays, lane=lane))

    picture = render(whole, photo, plan).tobytes()
    again = []
    for _ in range(2):
        in_turns.contents.clear()  # what it has encoded before
        again.append(render(in_turns, photo, plan).tobytes())

    assert again == [picture, picture]
    stayed = sum(parameter.nbytes for parameter in in_turns.prompts.text_encoder.parameters())
    assert (0 < stayed <= stays.text_encoder) if stays.text_encoder else not stayed


def assembled(models: Path, turns: DeviceTurns) -> EditPipeline:
    """The pipeline as a load builds it for a device that the model does not fit as a whole."""
    loaded = Editor.load(Settings(models=models, device="cpu")).pipeline
    pipeline = EditPipeline(loaded.prompts, loaded.vae, CPU, torch.float32, turns=turns)
    pipeline.use(loaded.scheduler, loaded.transformer, loaded.modulations, "dense", in_turns=True)
    return pipeline


def test_a_module_that_was_not_added_stays_where_it_is() -> None:
    turns, stays, waits = DeviceTurns(CPU), Model(), Model()
    turns.add(waits)
    turns.bring(waits)

    turns.bring(stays)

    assert is_here(stays)
    assert is_here(waits)


def test_a_module_that_is_removed_takes_no_more_turns_and_its_memory_is_let_go() -> None:
    turns, model = DeviceTurns(CPU), Model()
    turns.add(model)
    home = weakref.ref(turns._parked[model]._homes[-1].memory)

    turns.remove(model)

    assert home() is None
    turns.bring(model)
    assert not is_here(model)


def is_here(model: Model) -> bool:
    return bool(model.first.numel())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_weights_take_turns_on_a_gpu() -> None:
    device, turns, x = torch.device("cuda"), DeviceTurns(torch.device("cuda")), torch.randn(2, 20)
    models = [Model(), Model()]
    outputs = [model(x) for model in models]
    x.to(device) @ x.to(device).t()  # for the memory that cuBLAS keeps from its first product on
    free = torch.cuda.memory_allocated()
    for model in models:
        turns.add(model)
    assert torch.cuda.memory_allocated() == free

    for _ in range(3):
        for model, output in zip(models, outputs, strict=True):
            turns.bring(model)
            assert model.first.device.type == "cuda"
            assert torch.allclose(model(x.to(device)).cpu(), output, atol=1e-4)
            assert torch.cuda.memory_allocated() < free + 100_000
