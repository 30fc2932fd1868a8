from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from qwen_edit.weights.reader import Weights
from qwen_edit.weights.sinks import PinnedRing


class LateCopy:
    """Copies when it is waited for and not before, as a busy device may."""

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._pairs = list(pairs)
        self._lock = Lock()

    def synchronize(self) -> None:
        with self._lock:
            while self._pairs:
                target, source = self._pairs.pop()
                target.copy_(source)


class LateLink:
    """A device that is this machine's memory."""

    def __init__(self) -> None:
        self.pinned: list[int] = []
        self.allocated: list[int] = []
        self._copies: list[LateCopy] = []

    def allocate(self, size: int) -> Tensor:
        self.allocated.append(size)
        return torch.zeros(size, dtype=torch.uint8)

    def pin(self, size: int) -> Tensor:
        self.pinned.append(size)
        return torch.empty(size, dtype=torch.uint8)

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> LateCopy:
        copy = LateCopy(pairs)
        self._copies.append(copy)
        return copy

    def join(self) -> None:
        for copy in self._copies:
            copy.synchronize()

    def close(self) -> None:
        self.join()


def saved(path: Path, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "large": torch.rand(1000, 33, generator=generator),
        "odd": torch.rand(3, generator=generator).bfloat16(),
        "after": torch.rand(7, 5, generator=generator).half(),
    }
    save_file(tensors, path)
    return tensors


def test_blocks_come_through_the_ring_whole_while_copies_are_late(tmp_path: Path) -> None:
    link = LateLink()
    paths = {tmp_path / f"{number}.safetensors": number for number in range(4)}
    expected = {path: saved(path, number) for path, number in paths.items()}

    with Weights(paths, torch.device("cpu"), readers=3, bytes_a_read=1000, sink=PinnedRing(link, 3, 1000)) as weights:
        for path, tensors in expected.items():
            arrived = weights.tensors(path)
            assert all(torch.equal(arrived[name], tensor) for name, tensor in tensors.items())

    assert len(link.allocated) == 4
    assert 0 < len(link.pinned) <= 3
    assert set(link.pinned) == {1000}


def test_a_ring_that_could_not_be_pinned_is_an_error_and_no_endless_wait(tmp_path: Path) -> None:
    class Full(LateLink):
        def pin(self, size: int) -> Tensor:
            raise RuntimeError(f"cannot pin {size} bytes")

    path = tmp_path / "a.safetensors"
    saved(path)

    with (
        Weights([path], torch.device("cpu"), readers=2, bytes_a_read=1000, sink=PinnedRing(Full(), 2, 1000)) as weights,
        pytest.raises(RuntimeError, match="cannot pin 1000 bytes"),
    ):
        weights.tensors(path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_arrive_whole_on_a_gpu_while_it_computes(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    expected = {path: saved(path, number) for number, path in enumerate(paths)}
    device = torch.device("cuda")
    busy = torch.rand(4096, 4096, device=device)

    with Weights(paths, device, bytes_a_read=4096) as weights:
        for path in paths:
            busy = busy @ busy / busy.norm()
            arrived = weights.tensors(path)
            assert {tensor.untyped_storage().data_ptr() for tensor in arrived.values()} == {
                arrived["large"].untyped_storage().data_ptr()
            }
            for name, tensor in expected[path].items():
                assert torch.equal(arrived[name].cpu(), tensor)
