from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from builder.made import tiny
from qwen_edit.model.transformer.dense import build_dense
from qwen_edit.model.transformer.expansion import FORMATS, Expanded, expand, portions_of, refill
from qwen_edit.store.catalog import CHECKPOINTS
from qwen_edit.svdq.checkpoint import CheckpointInfo, read_header
from qwen_edit.svdq.modules import AWQ_MODULES
from qwen_edit.weights.placement import WINDOW
from qwen_edit.weights.reader import Weights
from qwen_edit.weights.sinks import HostMemory, Sink
from tests.support.dense import dense_state_dict, stacked

CPU = torch.device("cpu")
LAYERS = 4

DENSE = FORMATS["dense"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of four blocks."""
    folder = tmp_path_factory.mktemp("four")
    tiny.write(folder, {**tiny.TRANSFORMER, "num_layers": LAYERS, "num_attention_heads": 1})
    first, second = (folder / checkpoint.path for checkpoint in CHECKPOINTS)
    return first, second


def reading(path: Path, sink: Sink | None = None) -> tuple[CheckpointInfo, Weights]:
    info = read_header(path)
    return info, Weights([path], CPU, portions={path: portions_of(info, DENSE)}, sink=sink)


def expanded(path: Path) -> Expanded:
    info, weights = reading(path)
    with weights:
        return expand(info, weights.portions(path), DENSE, torch.float32)


def meant(path: Path) -> dict[str, Tensor]:
    """What the checkpoint means, without the modulations."""
    tensors = stacked(dense_state_dict(path, torch.float32))
    return {name: tensor for name, tensor in tensors.items() if not any(part in name for part in AWQ_MODULES)}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_block_by_block_it_is_what_the_whole_file_means(files: tuple[Path, Path]) -> None:
    assert_equal(expanded(files[0]).tensors, meant(files[0]))


def test_the_groups_are_all_that_is_needed_in_the_order_of_the_blocks(files: tuple[Path, Path]) -> None:
    info = read_header(files[0])
    groups = portions_of(info, DENSE)

    assert len(groups) == LAYERS + 1
    assert all(name.startswith(f"transformer_blocks.{block}.") for block in range(LAYERS) for name in groups[block + 1])
    left_out = info.tensors.keys() - {name for group in groups for name in group}
    assert {name.rsplit(".", 1)[1] for name in left_out} == {"smooth_factor_orig"}


def test_another_checkpoint_takes_the_memory_of_the_present_one(files: tuple[Path, Path]) -> None:
    first, second = files
    present = expanded(first)
    transformer = build_dense(present)
    places = {name: parameter.data_ptr() for name, parameter in transformer.named_parameters()}

    info, weights = reading(second)
    with weights:
        groups = weights.portions(second)
        refill(info, groups, DENSE, torch.float32, transformer.state_dict(), present.modulations)

    assert {name: parameter.data_ptr() for name, parameter in transformer.named_parameters()} == places
    assert_equal(dict(transformer.state_dict()), meant(second))


class Counting(HostMemory):
    """Knows how much it allocated for each group."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def allocate(self, size: int) -> Tensor:
        self.sizes.append(size)
        return super().allocate(size)


def test_no_more_of_the_file_is_in_memory_than_the_window(files: tuple[Path, Path]) -> None:
    sink = Counting()
    info, weights = reading(files[0], sink=sink)
    seen = []

    def watched(groups: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        for number, group in enumerate(groups):
            seen.append(len(sink.sizes) - number)
            yield group

    with weights:
        expand(info, watched(weights.portions(files[0])), DENSE, torch.float32)

    assert max(seen) == WINDOW
    assert max(sink.sizes) < sum(sink.sizes) / 3
