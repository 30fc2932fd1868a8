"""The modulations of the dense transformer, computed once for a schedule instead of in every pass.

A block's modulation layers, `img_mod.1` and `txt_mod.1`, see the timestep alone. At the size of the published model
they are a third of the weights: 6.8 of 20.4 billion parameters, 13.6 GB in bfloat16. Here they stay as they are in the
file, 3.8 GB in 4 bits, and are expanded one at a time when a schedule comes that is not among the latest.

No diffusers here, so that they can be taken out of a checkpoint while that is imported.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from qwen_edit.svdq.checkpoint import CheckpointError
from qwen_edit.svdq.dense import dense_modulation
from qwen_edit.svdq.layout import GROUP
from qwen_edit.svdq.modules import AWQ_MODULES, block_prefix

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel as Transformer

SCHEDULES = 4
"""How many schedules are kept. At full size a step takes 4.4 MB: 35 MB for 8 steps, 177 MB for 40."""

_HIGHEST = 15  # the largest value of four bits
_PARTS = ("qweight", "wscales", "wzeros", "bias")


class Modulation(nn.Module):
    """One modulation layer of a block, in the place of the stock `Sequential(SiLU, Linear)`.

    Its packed tensors are buffers, so that they move with the transformer, but no part of its state dict.
    """

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in _trimmed(parts).items():
            self.register_buffer(name, tensor.clone(), persistent=False)
        self.current: Tensor | None = None

    def forward(self, conditioning: Tensor) -> Tensor:
        """The stock layer's output for a conditioning [rows, d]: [rows, 6d].

        While a schedule is looked up, [1, 6d] of its current step, which holds for each picture of a batch.
        """
        return self.outputs([conditioning])[0] if self.current is None else self.current

    def refill(self, parts: Mapping[str, Tensor]) -> None:
        """Take other weights of the same shapes, in the memory of the present ones."""
        for name, tensor in _trimmed(parts).items():
            self.get_buffer(name).copy_(tensor)
        self.current = None

    def outputs(self, conditionings: list[Tensor]) -> list[Tensor]:
        """What the stock layer gives for each conditioning [rows, d], in its dtype: [rows, 6d].

        One product a conditioning, because a product of another shape may round differently.
        """
        weight, bias = dense_modulation({name: self.get_buffer(name) for name in _PARTS})
        weight, bias = weight.to(conditionings[0].dtype), bias.to(conditionings[0].dtype)
        return [functional.linear(functional.silu(one), weight, bias) for one in conditionings]


class Modulations:
    """The modulation layers of all blocks, and their outputs for the latest schedules."""

    def __init__(self) -> None:
        self._blocks: list[dict[str, Modulation]] = []
        self._tables: OrderedDict[tuple[object, ...], list[list[Tensor]]] = OrderedDict()
        self._latest: tuple[Tensor, list[list[Tensor]]] | None = None

    def store(self, packed: Mapping[str, Tensor], block: int, file: str) -> None:
        """Copy the modulation layers of one block: the next one's, or in place those of a block that is there.

        Args:
            packed: at least `img_mod.1.*` and `txt_mod.1.*` of the block, under their full names.
            block: index of the block, at most that of the last one plus one.
            file: name of the file they come from, for the error.

        Raises:
            CheckpointError: a value in them gives no finite weight.
        """
        layers = {name: _parts(packed, block_prefix(block) + name) for name in AWQ_MODULES}
        _check_finite(layers, block, file)
        if block == len(self._blocks):
            self._blocks.append({name: Modulation(parts) for name, parts in layers.items()})
            return
        for name, parts in layers.items():
            self._blocks[block][name].refill(parts)
        self.forget()

    @property
    def schedules(self) -> int:
        """How many schedules are kept."""
        return len(self._tables)

    def attach(self, transformer: "Transformer") -> None:
        """Put the layers into a transformer, in the place of its own, which may be on the meta device."""
        for block, layers in zip(transformer.transformer_blocks, self._blocks, strict=True):
            for name, layer in layers.items():
                setattr(block, name.removesuffix(".1"), layer)

    @contextmanager
    def looked_up(
        self,
        transformer: "Transformer",
        timesteps: Tensor,
        dtype: torch.dtype,
        arrived: Callable[[], None] = lambda: None,
    ) -> Iterator[Callable[[int], None]]:
        """Let the layers look up their outputs for a schedule; outside of the block they compute them.

        The schedule is read once for each time that it is set, before the first step; no step waits for the device.

        Args:
            transformer: whose `time_text_embed` embeds the timesteps.
            timesteps: the schedule, 0 … 1000, as the scheduler holds it.
            dtype: of the latents.
            arrived: called before the layers' weights are read, which a block that is not called does not see to.

        Yields:
            What sets the index of the step whose outputs the layers give.
        """
        if self._latest is None or self._latest[0] is not timesteps:
            self._latest = (timesteps, self._table(transformer, timesteps, dtype, arrived))
        table = self._latest[1]
        try:
            yield lambda step: self._set(table[step])
        finally:
            self._unset()

    def forget(self) -> None:
        """Let the outputs go, and their memory; they are computed again when they are needed."""
        self._tables.clear()
        self._latest = None
        self._unset()

    def _set(self, outputs: list[Tensor]) -> None:
        following = iter(outputs)
        for layers in self._blocks:
            for layer in layers.values():
                layer.current = next(following)

    def _unset(self) -> None:
        for layers in self._blocks:
            for layer in layers.values():
                layer.current = None

    def _table(
        self, transformer: "Transformer", timesteps: Tensor, dtype: torch.dtype, arrived: Callable[[], None]
    ) -> list[list[Tensor]]:
        """For each step the outputs of every layer, in the order of the blocks."""
        key = (dtype, timesteps.device, *timesteps.tolist())
        if key not in self._tables:
            arrived()
            self._tables[key] = self._compute(transformer, timesteps, dtype)
        self._tables.move_to_end(key)
        while len(self._tables) > SCHEDULES:
            self._tables.popitem(last=False)
        return self._tables[key]

    def _compute(self, transformer: "Transformer", timesteps: Tensor, dtype: torch.dtype) -> list[list[Tensor]]:
        with torch.no_grad():
            image = [_conditioning(transformer, timestep, dtype) for timestep in timesteps]
            text = [one[:1] for one in image]
            by_layer = [
                layer.outputs(image if name.startswith("img") else text)
                for layers in self._blocks
                for name, layer in layers.items()
            ]
        return [list(outputs) for outputs in zip(*by_layer, strict=True)]


def _conditioning(transformer: "Transformer", timestep: Tensor, dtype: torch.dtype) -> Tensor:
    """What the pipeline and the stock forward make of one timestep: [1, d], [2, d] with `zero_cond_t`."""
    scaled = timestep.expand(1).to(dtype) / 1000
    if transformer.zero_cond_t:
        scaled = torch.cat([scaled, scaled * 0])
    conditioning: Tensor = transformer.time_text_embed(scaled, scaled, None)  # of the second only the dtype is read
    return conditioning


def _parts(packed: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    return {name: packed[f"{module}.{name}"] for name in _PARTS}


def _trimmed(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the rows that a writer may pad the scales with."""
    groups = parts["qweight"].shape[1] * 2 // GROUP
    return {**parts, "wscales": parts["wscales"][:groups], "wzeros": parts["wzeros"][:groups]}


def _check_finite(layers: Mapping[str, Mapping[str, Tensor]], block: int, file: str) -> None:
    """A weight lies between `zero` and `15 · scale + zero`; one stack makes it one wait for the device."""
    finite = {
        f"{block_prefix(block)}{name}.{kind}": tensor.isfinite().all()
        for name, parts in layers.items()
        for kind, tensor in _extremes(_trimmed(parts)).items()
    }
    if all(flags := torch.stack(list(finite.values())).tolist()):
        return
    name = next(name for name, good in zip(finite, flags, strict=True) if not good)
    raise CheckpointError(f"{file}: tensor {name!r} of the dense model is not finite, expected numbers")


def _extremes(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    zeros = parts["wzeros"]
    highest = (_HIGHEST * parts["wscales"].float() + zeros.float()).to(zeros.dtype)
    return {"weight": torch.stack([zeros, highest]), "bias": parts["bias"]}
