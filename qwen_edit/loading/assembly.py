"""The pipeline from its parts: what comes with the base model once, and what comes with a checkpoint."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qwen_edit.errors import EditError, ModelUnavailable
from qwen_edit.loading.processor import load_processor
from qwen_edit.loading.switches import Switches
from qwen_edit.loading.tokenizer import load_tokenizer
from qwen_edit.machine.backend import BackendName
from qwen_edit.machine.device import out_of_memory
from qwen_edit.model.offload.turns import DeviceTurns
from qwen_edit.model.pipeline import EditPipeline
from qwen_edit.model.prompt import IMAGE_TOKEN, PromptEncoder
from qwen_edit.model.text_encoder import load_text_encoder
from qwen_edit.model.transformer.compile import compile_blocks
from qwen_edit.model.transformer.dense import build_dense
from qwen_edit.model.transformer.expansion import Expanded
from qwen_edit.model.transformer.fused.choose import PLAIN, Kernels
from qwen_edit.model.transformer.nunchaku import load_nunchaku
from qwen_edit.model.vae import load_vae
from qwen_edit.store.catalog import Checkpoint
from qwen_edit.store.documents import file_name, read_object
from qwen_edit.store.fields import Table, flag, integer, misfit, never, number, take, word
from qwen_edit.weights.reader import Weights, folder_tensors

_PANIC = "PanicException"
"""What tokenizers raises where its Rust gives up: it derives from no narrower class than BaseException."""

_SCHEDULE: Table = {
    # What the transformer is told of a timestep is its thousandth.
    "num_train_timesteps": integer(1000, 1000),
    "shift": number(0.01, 100),
    "base_shift": number(0.01, 10),
    "max_shift": number(0.01, 10),
    "base_image_seq_len": integer(1, 2**20),
    "max_image_seq_len": integer(2, 2**20),
    "shift_terminal": number(0, 0.99),
    "time_shift_type": word("exponential", "linear"),
    **dict.fromkeys(("use_dynamic_shifting", "use_exponential_sigmas", "use_karras_sigmas"), flag()),
    # The first is for another model, the second draws noise that no seed repeats, the third needs a package.
    **dict.fromkeys(("invert_sigmas", "stochastic_sampling", "use_beta_sigmas"), never()),
}
_STATED = frozenset({"base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "use_dynamic_shifting"})
"""Fields without which the schedule would be the library's idea of one."""


def load_base(
    base: Path,
    weights_of: Callable[[Path], Weights],
    device: torch.device,
    dtype: torch.dtype,
    *,
    tiling: bool = False,
    turns: DeviceTurns | None = None,
) -> EditPipeline:
    """Everything but the transformer and its scheduler, which come with a checkpoint.

    Args:
        base: the folder of the base model.
        weights_of: what hands out a weight file.
        device: where the parts run.
        dtype: of all parts.
        tiling: see `EditPipeline`.
        turns: the same.

    Raises:
        ModelUnavailable: a part is missing or damaged.
    """
    with _readable("tokenizer"):
        tokenizer = load_tokenizer(base / "tokenizer")
    with _readable("processor"):
        image_processor = load_processor(base / "processor")
    with _readable("text_encoder"):
        tensors = folder_tensors(weights_of, base / "text_encoder", dtype)
        text_encoder = load_text_encoder(base / "text_encoder", tensors)
        _check_fit(tokenizer, image_processor, text_encoder)
        prompts = PromptEncoder(tokenizer, image_processor, text_encoder)
    with _readable("vae"):
        vae = load_vae(base / "vae", folder_tensors(weights_of, base / "vae", dtype))
    with _readable("scheduler"):
        _read_schedule(base)  # of a checkpoint that may come later: a damaged base model is found at the start
    return EditPipeline(prompts, vae, device, dtype, tiling=tiling, turns=turns)


def load_scheduler(base: Path, checkpoint: Checkpoint) -> FlowMatchEulerDiscreteScheduler:
    """The checkpoint's own schedule, or the base model's where it has none.

    Raises:
        ModelUnavailable: the base model's is missing or damaged.
    """
    with _readable("scheduler"):
        schedule = _read_schedule(base) if checkpoint.schedule is None else checkpoint.schedule
        return FlowMatchEulerDiscreteScheduler.from_config(dict(schedule))


def build_transformer(
    backend: BackendName, expanded: Expanded, switches: Switches, kernels: Kernels | None = None
) -> QwenImageTransformer2DModel:
    """The transformer of a backend around what was expanded for it.

    Args:
        switches: how it computes.
        kernels: of a dense backend; PyTorch's where left out.

    Raises:
        ModelUnavailable: the tensors are not those of the checkpoint's configuration, or the engine is not there.
    """
    if backend == "nunchaku":
        return load_nunchaku(expanded.info, expanded.tensors, expanded.dtype, fused_qkv=switches.fused_qkv)
    transformer = build_dense(expanded, kernels or PLAIN, fp8=backend == "dense-fp8")
    if switches.compiled:
        compile_blocks(transformer)
    return transformer


def _read_schedule(base: Path) -> Mapping[str, Any]:
    """The fields of the base model's `scheduler_config.json`."""
    path = base / "scheduler" / "scheduler_config.json"
    name = file_name(path)
    schedule = take(name, read_object(path), _SCHEDULE, _STATED)
    least, most = schedule["base_image_seq_len"], schedule["max_image_seq_len"]
    if least >= most:
        raise misfit(name, "max_image_seq_len", most, f"more than {least}, the base_image_seq_len")
    return schedule


def _check_fit(tokenizer: Qwen2Tokenizer, processor: Qwen2VLImageProcessorPil, text_encoder: Qwen2_5_VLModel) -> None:
    """See that the parts of the prompt are of one model: on a GPU a number without an embedding ends the process."""
    vision, embedded = text_encoder.config.vision_config, text_encoder.config.text_config.vocab_size
    sizes = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }
    for field, expected in sizes.items():
        if (found := getattr(processor, field)) != expected:
            raise misfit("processor/preprocessor_config.json", field, found, f"{expected}, the text encoder's")
    if (image := tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)) != (token := text_encoder.config.image_token_id):
        raise misfit("text_encoder/config.json", "image_token_id", token, f"{image}, the tokenizer's")
    if (largest := max(tokenizer.get_vocab().values())) >= embedded:
        raise misfit("tokenizer/vocab.json", "the largest number", largest, f"less than {embedded}, the vocab_size")


@contextmanager
def _readable(part: str) -> Iterator[None]:
    """Translate whatever a library raises while it reads or builds a part: it was given what is in the folder.

    Our own errors keep their meaning, and so do those of the device and of a memory that is full.
    """
    try:
        with out_of_memory("the model does not fit the device's memory"):
            yield
    except (EditError, MemoryError, torch.AcceleratorError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        raise ModelUnavailable(
            f"the base model's {part} cannot be loaded; check it with python3 verify_models.py"
        ) from error
