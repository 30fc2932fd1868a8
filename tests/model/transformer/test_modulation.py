from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from torch import Tensor

from qwen_edit.errors import ModelUnavailable
from qwen_edit.model.transformer.modulation import SCHEDULES, Modulations
from qwen_edit.svdq.dense import dense_top_level
from qwen_edit.svdq.modules import top_level_tensors
from qwen_edit.svdq.quantize import quantize
from tests.support.dense import whole_block
from tests.support.modulations import stored

CONFIG: dict[str, Any] = {"num_layers": 2, "num_attention_heads": 1, "attention_head_dim": 128}
CONFIG |= {"joint_attention_dim": 64}


def random_checkpoint(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return quantize(QwenImageTransformer2DModel(**CONFIG).state_dict(), CONFIG, rank=16)


@pytest.fixture(scope="module")
def packed() -> dict[str, Tensor]:
    return random_checkpoint(1)


@pytest.fixture(scope="module")
def other() -> dict[str, Tensor]:
    return random_checkpoint(2)


def stock(packed: dict[str, Tensor], dtype: torch.dtype = torch.float32, **config: object) -> Any:
    dense = dense_top_level({name: packed[name] for name in top_level_tensors(CONFIG)}, "file", dtype)
    for block in range(CONFIG["num_layers"]):
        dense |= whole_block(packed, block, "file", dtype)
    model = QwenImageTransformer2DModel(**CONFIG, **config).to(dtype).eval()
    model.load_state_dict(dense)
    return model


def cached(packed: dict[str, Tensor], dtype: torch.dtype = torch.float32, **config: object) -> tuple[Any, Modulations]:
    model = stock(packed, dtype, **config)
    modulations = stored(packed, CONFIG["num_layers"], "file")
    modulations.attach(model)
    return model, modulations


@torch.inference_mode()
def passes(
    model: Any,
    dtype: torch.dtype = torch.float32,
    steps: int = 3,
    batch: int = 1,
    device: str = "cpu",
    modulations: Modulations | None = None,
) -> Iterator[Tensor]:
    """What the model gives in each of two passes a step, driven as the loop drives it."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(steps, device=device)
    scheduler.set_begin_index(0)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 12, 64, generator=generator).to(device, dtype).expand(batch, -1, -1)
    texts = torch.randn(2, 5, 64, generator=generator).to(device, dtype)[:, None].expand(-1, batch, -1, -1)
    looked_up = modulations.looked_up(model, scheduler.timesteps, dtype) if modulations else nullcontext(lambda _: None)
    with looked_up as set_step:
        for step, timestep in enumerate(scheduler.timesteps):
            set_step(step)
            outputs = [
                model(
                    hidden_states=latents,
                    encoder_hidden_states=text,
                    timestep=timestep.expand(batch).to(dtype) / 1000,
                    img_shapes=[[(1, 2, 3), (1, 2, 3)]] * batch,
                ).sample
                for text in texts
            ]
            yield from outputs
            latents = scheduler.step(outputs[0], timestep, latents, return_dict=False)[0]


def followed(model: Any, modulations: Modulations, **how: Any) -> list[Tensor]:
    return list(passes(model, modulations=modulations, **how))


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("zero_cond_t", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_pass_gives_the_bits_of_the_stock_layers(
    packed: dict[str, Tensor], dtype: torch.dtype, zero_cond_t: bool
) -> None:
    ours = followed(*cached(packed, dtype, zero_cond_t=zero_cond_t), dtype=dtype, steps=9)
    theirs = list(passes(stock(packed, dtype, zero_cond_t=zero_cond_t), dtype, steps=9))

    assert equal(ours, theirs)
    assert not torch.equal(ours[0], ours[2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_bits_of_the_stock_layers_too(packed: dict[str, Tensor]) -> None:
    model, modulations = cached(packed, torch.bfloat16)
    ours = followed(model.to("cuda"), modulations, dtype=torch.bfloat16, device="cuda")
    theirs = list(passes(stock(packed, torch.bfloat16).to("cuda"), torch.bfloat16, device="cuda"))

    assert equal(ours, theirs)


def test_the_pictures_of_a_batch_share_the_outputs(packed: dict[str, Tensor]) -> None:
    ours = followed(*cached(packed), batch=2)
    theirs = list(passes(stock(packed), batch=2))

    assert ours[0].shape == theirs[0].shape
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(ours, theirs, strict=True))


def test_the_transformer_holds_no_expanded_modulation(packed: dict[str, Tensor]) -> None:
    model, _ = cached(packed)

    assert not [name for name in model.state_dict() if "_mod." in name]
    packed_bytes = sum(buffer.nbytes for name, buffer in model.named_buffers() if "_mod" in name)
    assert packed_bytes < 0.4 * sum(
        one.nbytes for name, one in stock(packed).bfloat16().state_dict().items() if "_mod." in name
    )


def test_a_schedule_is_computed_once(packed: dict[str, Tensor]) -> None:
    model, modulations = cached(packed)
    calls: list[int] = []
    model.time_text_embed.register_forward_hook(lambda *_: calls.append(1))

    first = followed(model, modulations)
    counts = [len(calls)]
    again = followed(model, modulations)
    counts.append(len(calls))

    assert counts == [3 + 6, 3 + 6 + 6]  # one a step for the table, one a pass by the transformer itself
    assert equal(first, again)


def test_only_the_latest_schedules_are_kept(packed: dict[str, Tensor]) -> None:
    model, modulations = cached(packed)
    first = followed(model, modulations, steps=1)

    for steps in range(2, SCHEDULES + 2):
        followed(model, modulations, steps=steps)

    assert modulations.schedules == SCHEDULES
    assert equal(followed(model, modulations, steps=1), first)


def test_what_was_forgotten_is_computed_again(packed: dict[str, Tensor]) -> None:
    model, modulations = cached(packed)
    first = followed(model, modulations)

    modulations.forget()

    assert modulations.schedules == 0
    assert equal(followed(model, modulations), first)


def test_a_pass_outside_of_a_schedule_computes_what_the_stock_layers_do(packed: dict[str, Tensor]) -> None:
    model, modulations = cached(packed)
    followed(model, modulations)  # which leaves nothing of its last step

    assert equal(list(passes(model)), list(passes(stock(packed))))


def test_one_schedule_follows_another(packed: dict[str, Tensor]) -> None:
    model, modulations = cached(packed)
    followed(model, modulations, steps=5)

    assert equal(followed(model, modulations, steps=2), list(passes(stock(packed), steps=2)))


def test_the_weights_are_its_own(packed: dict[str, Tensor]) -> None:
    buffer = {name: tensor.clone() for name, tensor in packed.items()}
    model = stock(packed)
    modulations = stored(buffer, CONFIG["num_layers"], "file")
    modulations.attach(model)
    for tensor in buffer.values():
        tensor.zero_()

    assert equal(followed(model, modulations), list(passes(stock(packed))))


def test_another_checkpoint_takes_the_memory_of_the_first(packed: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    model, modulations = cached(packed)
    followed(model, modulations)
    before = {name: buffer.data_ptr() for name, buffer in model.named_buffers()}

    for block in range(CONFIG["num_layers"]):
        modulations.store(other, block, "file")
    rest = {name: tensor for name, tensor in stock(other).state_dict().items() if "_mod." not in name}
    model.load_state_dict(rest)

    assert {name: buffer.data_ptr() for name, buffer in model.named_buffers()} == before
    assert equal(followed(model, modulations), list(passes(stock(other))))


def test_padded_scales_are_trimmed(packed: dict[str, Tensor]) -> None:
    def pad(name: str, tensor: Tensor) -> Tensor:
        if "_mod.1.wscales" in name or "_mod.1.wzeros" in name:
            return torch.cat([tensor, torch.full((16 - len(tensor), tensor.shape[1]), torch.nan, dtype=tensor.dtype)])
        return tensor

    padded = {name: pad(name, tensor) for name, tensor in packed.items()}

    assert equal(followed(*_attached(padded, packed)), list(passes(stock(packed))))


def _attached(modulated: dict[str, Tensor], rest: dict[str, Tensor]) -> tuple[Any, Modulations]:
    model = stock(rest)
    modulations = stored(modulated, CONFIG["num_layers"], "file")
    modulations.attach(model)
    return model, modulations


@pytest.mark.parametrize(("part", "kind"), [("wscales", "weight"), ("wzeros", "weight"), ("bias", "bias")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_with_its_name(
    packed: dict[str, Tensor], part: str, kind: str, value: float
) -> None:
    name = f"transformer_blocks.1.txt_mod.1.{part}"
    damaged = {**packed, name: packed[name].clone()}
    damaged[name].view(-1)[3] = value

    with pytest.raises(
        ModelUnavailable, match=rf"file: tensor 'transformer_blocks\.1\.txt_mod\.1\.{kind}' .*not finite"
    ):
        stored(damaged, CONFIG["num_layers"], "file")
