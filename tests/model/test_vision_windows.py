from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig, Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel as Tower
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from qwen_edit.model.text_encoder import load_text_encoder
from qwen_edit.model.vision_windows import Windows, batch_windows, window_inputs
from qwen_edit.store.catalog import BASE_FOLDER
from tests.support.reading import read_folder

CPU = torch.device("cpu")
DEPTH = 4
EVEN = [[1, 16, 24]]
UNEVEN = [[1, 18, 26]]
GRIDS = {
    "windows of 8 × 8 patches": EVEN,
    "windows of 8 × 8, 8 × 2, 2 × 8 and 2 × 2": UNEVEN,
    "a strip one window high": [[1, 4, 42]],
    "a strip one window wide": [[1, 58, 6]],
    "less than a window": [[1, 4, 6]],
    "two pictures": [[1, 18, 26], [1, 10, 8]],
}


class Attentions(TorchFunctionMode):
    """Writes down every call of the attention function: the shape of its queries, and whether it was masked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[int, ...], bool]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            self.calls.append((tuple(args[0].shape), kwargs.get("attn_mask") is not None))
        return func(*args, **kwargs)


@pytest.fixture(scope="module")
def stock() -> Tower:
    """A random tower with the published windows; its weights are so large that attention decides the result."""
    torch.manual_seed(2)
    config = Qwen2_5_VLVisionConfig(
        depth=DEPTH,
        fullatt_block_indexes=[1, 3],
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        out_hidden_size=24,
        initializer_range=0.2,
    )
    return Tower(config).eval()


@pytest.fixture(scope="module")
def ours(stock: Tower) -> Tower:
    tower = deepcopy(stock)
    batch_windows(tower)
    return tower


@pytest.fixture(scope="module")
def text_encoder(models: Path) -> Qwen2_5_VLModel:
    folder = models / BASE_FOLDER / "text_encoder"
    return load_text_encoder(folder, read_folder(folder, CPU, torch.float32))


def run(tower: Tower, grid: list[list[int]], *, given: bool = False) -> tuple[Tensor, Tensor]:
    """The tokens before and after the merger; `given` what is known of the windows, or as anybody calls a tower."""
    grid_thw = torch.tensor(grid)
    torch.manual_seed(3)
    patches = torch.randn(int(grid_thw.prod(-1).sum()), 3 * 2 * 14**2, device=tower.device)
    with torch.inference_mode():
        output = tower(patches, grid_thw=grid_thw, **(window_inputs(tower, grid_thw) if given else {}))
    return output.last_hidden_state, output.pooler_output


def attentions(tower: Tower, grid: list[list[int]]) -> list[tuple[tuple[int, ...], bool]]:
    seen = Attentions()
    with seen:
        run(tower, grid)
    return seen.calls


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_the_tower_gives_what_the_stock_one_does(stock: Tower, ours: Tower, grid: list[list[int]]) -> None:
    expected = run(stock, grid)

    torch.testing.assert_close(run(ours, grid, given=True), expected, rtol=1e-5, atol=1e-5)
    assert all(map(torch.equal, run(ours, grid), run(ours, grid, given=True)))


@pytest.mark.parametrize("grid", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_every_layer_is_one_call_of_attention(ours: Tower, grid: list[list[int]]) -> None:
    assert len(attentions(ours, grid)) == DEPTH


def test_the_stock_tower_takes_one_call_a_window(stock: Tower) -> None:
    assert len(attentions(stock, UNEVEN)) == 2 * 12 + 2


def test_equal_windows_are_not_masked(ours: Tower) -> None:
    windowed, full = ((6, 2, 64, 16), False), ((1, 2, 384, 16), False)
    assert attentions(ours, EVEN) == [windowed, full, windowed, full]


def test_unequal_windows_are_masked_and_whole_pictures_are_not(ours: Tower) -> None:
    windowed, full = ((12, 2, 64, 16), True), ((1, 2, 468, 16), False)
    assert attentions(ours, UNEVEN) == [windowed, full, windowed, full]


def test_tokens_come_back_to_where_they_were() -> None:
    windows = Windows.between(torch.tensor([0, 4, 6, 7, 11]), CPU)
    states = torch.randn(11, 2, 3)
    assert windows.split(states).shape == (4, 2, 4, 3)
    assert torch.equal(windows.join(windows.split(states)), states)


def test_a_windows_mask_shows_its_own_tokens_alone() -> None:
    windows = Windows.between(torch.tensor([0, 3, 4, 6]), CPU)
    assert windows.mask is not None
    rows = windows.tokens.unflatten(0, (3, windows.longest))
    own = [tokens[mask].tolist() for tokens, mask in zip(rows, windows.mask[:, 0, 0], strict=True)]
    assert own == [[0, 1, 2], [3], [4, 5]]


def test_nothing_but_the_grid_is_read_back_from_the_device(ours: Tower) -> None:
    """A tensor on the meta device has no numbers: reading one is an error."""
    tower = deepcopy(ours).to("meta")
    before, after = run(tower, UNEVEN, given=True)
    assert (before.shape, after.shape) == ((468, 32), (117, 24))


def test_the_weights_keep_their_names(stock: Tower, ours: Tower) -> None:
    assert list(ours.state_dict()) == list(stock.state_dict())


def test_the_language_model_attends_as_the_stock_one_does(models: Path, text_encoder: Qwen2_5_VLModel) -> None:
    folder = models / BASE_FOLDER / "text_encoder"
    stock = Qwen2_5_VLModel(Qwen2_5_VLConfig.from_pretrained(folder)).eval()
    stock.load_state_dict(text_encoder.state_dict())

    embeddings = torch.randn(1, 9, stock.config.text_config.hidden_size)
    outputs, calls = [], []
    for model in (stock, text_encoder):
        with Attentions() as seen, torch.inference_mode():
            outputs.append(model.language_model(inputs_embeds=embeddings).last_hidden_state)
        calls.append(seen.calls)

    assert torch.equal(*outputs)
    assert calls[0] == calls[1]
    assert len(calls[1]) == stock.config.text_config.num_hidden_layers


def test_the_text_encoder_calls_attention_once_a_layer_of_its_tower(text_encoder: Qwen2_5_VLModel) -> None:
    assert len(attentions(text_encoder.visual, UNEVEN)) == text_encoder.config.vision_config.depth
