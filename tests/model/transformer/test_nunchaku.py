import importlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from PIL import Image

from qwen_edit import Editor
from qwen_edit.edit.plan import Plan
from qwen_edit.errors import ModelUnavailable
from qwen_edit.machine.backend import NUNCHAKU_INT4
from qwen_edit.machine.engine import find_engine
from qwen_edit.model.transformer.nunchaku import load_nunchaku, offload_blocks
from qwen_edit.model.transformer.nunchaku_engine import MODULE
from qwen_edit.model.transformer.rotary import RotaryTable
from qwen_edit.store.catalog import LIGHTNING
from qwen_edit.svdq.checkpoint import read_header
from tests.support.edits import render as rendered
from tests.support.engine import STAND_IN, changed_engine, expanded, forget_engine, load
from tests.support.stock import stock_transformer


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(STAND_IN))
    yield importlib.import_module(MODULE)
    forget_engine()


def inputs(batch: int = 1) -> dict[str, object]:
    generator = torch.Generator().manual_seed(3)
    return {
        "hidden_states": torch.randn(batch, 2 * 8 * 6, 64, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 7, 128, generator=generator),
        "timestep": torch.full((batch,), 0.5),
        "img_shapes": [[(1, 8, 6), (1, 8, 6)]] * batch,
    }


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.usefixtures("engine")
def test_it_computes_what_the_dense_backend_computes(batch: int, models: Path) -> None:
    path = models / LIGHTNING.path
    with torch.inference_mode():
        ours, dense = load(path)(**inputs(batch)).sample, stock_transformer(path)(**inputs(batch)).sample

    assert (ours - dense).norm() < 1e-5 * dense.norm()


@pytest.mark.usefixtures("engine")
def test_a_batch_for_which_the_engine_would_end_the_process_is_refused_with_a_sentence(models: Path) -> None:
    transformer = load(models / LIGHTNING.path)

    with torch.inference_mode():
        assert len(transformer(**inputs(8)).sample) == 8
        with pytest.raises(ValueError, match="the batch has 9 members, expected at most 8 with the nunchaku backend"):
            transformer(**inputs(9))


@pytest.mark.usefixtures("engine")
def test_a_plain_forward_with_positional_arguments_works_too(models: Path) -> None:
    transformer, given = load(models / LIGHTNING.path), inputs()
    positional = (given["hidden_states"], given["encoder_hidden_states"], None, given["timestep"], given["img_shapes"])

    with torch.inference_mode():
        assert torch.equal(transformer(*positional).sample, transformer(**given).sample)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("ours_as", [load, partial(load, fused_qkv=True)], ids=["naive", "fused"])
def test_an_edit_in_the_pipeline_is_that_of_the_dense_backend(
    models: Path, editor: Editor, photo: Image.Image, ours_as: Callable[[Path], QwenImageTransformer2DModel]
) -> None:
    plan = Plan(
        LIGHTNING, steps=2, true_cfg_scale=1.0, negative_prompt=None, seed=4, width=256, height=256, num_images=1
    )
    dense, ours = (
        render(editor, transformer, photo, plan)
        for transformer in (stock_transformer, ours_as)
        for transformer in [transformer(models / LIGHTNING.path)]
    )

    for one, other in zip(dense, ours, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def render(
    editor: Editor, transformer: QwenImageTransformer2DModel, photo: Image.Image, plan: Plan
) -> list[np.ndarray]:
    editor.pipeline.transformer = transformer
    return [np.asarray(rendered(editor.pipeline, photo, plan))]


@pytest.mark.usefixtures("engine")
def test_the_tensors_of_the_file_are_taken_without_a_copy(models: Path) -> None:
    path = models / LIGHTNING.path
    packed = expanded(path, torch.bfloat16)
    transformer = load_nunchaku(read_header(path), packed, torch.bfloat16)

    state = transformer.state_dict()
    assert state.keys() == packed.keys()
    assert all(state[name].data_ptr() == packed[name].data_ptr() for name in packed)


@pytest.mark.usefixtures("engine")
def test_nothing_stays_on_the_meta_device_or_asks_for_gradients(models: Path) -> None:
    transformer = load(models / LIGHTNING.path)

    tensors = [*transformer.parameters(), *transformer.buffers(), transformer.pos_embed.pos_freqs]
    assert not any(tensor.is_meta for tensor in tensors)
    assert not any(tensor.requires_grad for tensor in tensors)


@pytest.mark.usefixtures("engine")
def test_the_config_of_the_file_is_honoured(models: Path) -> None:
    path = models / LIGHTNING.path

    assert len(load(path).transformer_blocks) == read_header(path).num_layers == 1


def test_a_forward_does_not_empty_the_cache(engine: ModuleType, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(None))
    transformer = load(models / LIGHTNING.path)
    with torch.inference_mode():
        transformer(**inputs())
    assert emptied == []

    monkeypatch.setattr(engine, "torch", torch)  # what the engine does by itself
    with torch.inference_mode():
        transformer(**inputs())
    assert len(emptied) == 1


@pytest.mark.usefixtures("engine")
def test_a_tensor_that_is_missing_is_named(models: Path) -> None:
    path = models / LIGHTNING.path
    packed = expanded(path, torch.float32)
    del packed["transformer_blocks.0.attn.to_out.0.proj_up"]

    with pytest.raises(ModelUnavailable, match=r"to_out\.0\.proj_up as missing"):
        load_nunchaku(read_header(path), packed, torch.float32)


@pytest.mark.usefixtures("engine")
def test_a_model_that_the_engine_does_not_know_is_refused(models: Path) -> None:
    info = read_header(models / LIGHTNING.path)

    with pytest.raises(ModelUnavailable, match=r"has zero_cond_t True, expected false"):
        load_nunchaku(replace(info, config={**info.config, "zero_cond_t": True}), {}, torch.float32)


@pytest.mark.usefixtures("engine")
def test_blocks_are_left_to_the_engine(models: Path) -> None:
    transformer = load(models / LIGHTNING.path)
    offload_blocks(transformer)

    assert transformer.offload
    assert transformer.offload_arguments == {"num_blocks_on_gpu": 1}


def test_an_engine_that_is_missing_is_said(models: Path) -> None:
    with pytest.raises(ModelUnavailable, match="nunchaku is not installed; install the release wheel"):
        load_nunchaku(read_header(models / LIGHTNING.path), {}, torch.float32)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            "del NunchakuQwenImageTransformer2DModel._patch_model",
            r"has no NunchakuQwenImageTransformer2DModel\._patch_model,",
        ),
        ("del NunchakuQwenImageTransformer2DModel", "has no NunchakuQwenImageTransformer2DModel that is a Qwen"),
        (
            "NunchakuQwenImageTransformer2DModel.forward = lambda self, hidden_states: None",
            r"has no txt_seq_lens in NunchakuQwenImageTransformer2DModel\.forward, which this worker calls",
        ),
        ("raise ImportError('/opt/lib/_C.so: undefined symbol')", "cannot be imported: ImportError; install"),
        ("import sentencepiece_of_old", "cannot be imported: ModuleNotFoundError of sentencepiece_of_old; install"),
    ],
)
def test_an_engine_of_another_make_is_told_by_what_it_lacks(
    change: str, sentence: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed_engine(tmp_path, "models/transformers/transformer_qwenimage.py", change)
    monkeypatch.syspath_prepend(str(tmp_path))

    try:
        with pytest.raises(ModelUnavailable, match=sentence):
            load_nunchaku(read_header(models / LIGHTNING.path), {}, torch.float32)
    finally:
        forget_engine()


def test_the_root_logger_is_as_it_was_before_the_engine_was_imported(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    level = root.level
    monkeypatch.syspath_prepend(str(STAND_IN))

    try:
        with monkeypatch.context() as patched:
            patched.setattr(root, "handlers", [])  # without those of the tests, as a process begins
            load(models / LIGHTNING.path)
            assert (root.handlers, root.level) == ([], level)
    finally:
        forget_engine()


def test_the_rotary_table_takes_both_ways_of_asking() -> None:
    table, shapes, device = RotaryTable([16, 56, 56]), [[(1, 4, 6)]], torch.device("cpu")

    engine_way = table(shapes, [3, 5], device=device)
    diffusers_way = table(shapes, device=device, max_txt_seq_len=5)

    assert all(map(torch.equal, engine_way, diffusers_way))
    assert [part.shape for part in engine_way] == [(24, 64), (5, 64)]


def test_the_metadata_of_the_file_is_what_the_engine_reads(models: Path) -> None:
    metadata = read_header(models / LIGHTNING.path).metadata

    assert metadata["model_class"] == "NunchakuQwenImageTransformer2DModel"
    assert json.loads(metadata["quantization_config"])["weight"]["dtype"] == "int4"


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available()
    or torch.cuda.get_device_capability() not in NUNCHAKU_INT4
    or find_engine().fault is not None,
    reason="needs a CUDA device with int4 tensor cores, and the engine",
)
@pytest.mark.parametrize("fused_qkv", [False, True])
def test_the_kernels_compute_what_the_dense_backend_computes(fused_qkv: bool, models: Path) -> None:
    path, device = models / LIGHTNING.path, torch.device("cuda")
    tensors = expanded(path, torch.bfloat16, device)
    nunchaku = load_nunchaku(read_header(path), tensors, torch.bfloat16, fused_qkv=fused_qkv)
    transformers = (nunchaku, stock_transformer(path, torch.bfloat16).to(device))
    on_device = {
        name: value.to(device, torch.bfloat16) if isinstance(value, torch.Tensor) else value
        for name, value in inputs().items()
    }
    with torch.inference_mode():
        ours, dense = (transformer(**on_device).sample.float() for transformer in transformers)

    assert (ours - dense).norm() < 0.2 * dense.norm()  # one layer adds 7.5 %
