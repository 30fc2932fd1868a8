"""The pipeline from its parts: what comes with the base model once, and what comes with a checkpoint."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qwen_edit.errors import ModelUnavailable
from qwen_edit.machine.backend import BackendName
from qwen_edit.model.offload import DeviceTurns
from qwen_edit.model.pipeline import EditPipeline
from qwen_edit.model.prompt import PromptEncoder
from qwen_edit.model.text_encoder import load_text_encoder
from qwen_edit.model.transformer.compile import compile_blocks
from qwen_edit.model.transformer.dense import build_dense
from qwen_edit.model.transformer.expansion import Expanded
from qwen_edit.model.transformer.nunchaku import load_nunchaku
from qwen_edit.model.vae import load_vae
from qwen_edit.store.catalog import Checkpoint
from qwen_edit.weights.reader import Weights, folder_tensors


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
        tokenizer = Qwen2Tokenizer.from_pretrained(base / "tokenizer", local_files_only=True)
    with _readable("processor"):
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(base / "processor")
    with _readable("text_encoder"):
        tensors = folder_tensors(weights_of, base / "text_encoder", dtype)
        prompts = PromptEncoder(tokenizer, image_processor, load_text_encoder(base / "text_encoder", tensors))
    with _readable("vae"):
        vae = load_vae(base / "vae", folder_tensors(weights_of, base / "vae", dtype))
    return EditPipeline(prompts, vae, device, dtype, tiling=tiling, turns=turns)


def load_scheduler(base: Path, checkpoint: Checkpoint) -> FlowMatchEulerDiscreteScheduler:
    """The checkpoint's own schedule, or the base model's where it has none.

    Raises:
        ModelUnavailable: the base model's is missing or damaged.
    """
    with _readable("scheduler"):
        schedule = checkpoint.schedule or FlowMatchEulerDiscreteScheduler.load_config(base / "scheduler")
        return FlowMatchEulerDiscreteScheduler.from_config(dict(schedule))


def build_transformer(
    backend: BackendName, expanded: Expanded, *, compiled: bool = False
) -> QwenImageTransformer2DModel:
    """The transformer of a backend around what was expanded for it.

    Args:
        compiled: whether its blocks are compiled, which the first edit waits for.

    Raises:
        ModelUnavailable: the tensors are not those of the checkpoint's configuration, or the engine is not there.
    """
    if backend == "nunchaku":
        return load_nunchaku(expanded.info, expanded.tensors, expanded.dtype)
    transformer = build_dense(expanded, fp8=backend == "dense-fp8")
    if compiled:
        compile_blocks(transformer)
    return transformer


@contextmanager
def _readable(part: str) -> Iterator[None]:
    """Translate what the libraries raise on a damaged configuration."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnavailable(
            f"the base model's {part} cannot be loaded; check it with python3 verify_models.py"
        ) from error
