"""One process of `bench.gpu`: it measures one way of running the model and prints its figures in lines of JSON."""

import argparse
import base64
import io
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu.figures import (
    Figures,
    elapsed,
    memory_gb,
    settle,
    tell,
    tell_outside,
    tell_peaks,
    timed,
)
from bench.gpu.kernels import measure_step
from qwen_edit import Editor, EditRequest
from qwen_edit.edit.prepare import prepare
from qwen_edit.settings import Backend, Device, Settings
from qwen_edit.store.catalog import BASE_FOLDER, LIGHTNING

PHOTO = Path(__file__).parents[2] / "tests" / "photos" / "rocket.jpg"

STAGES = ("prompt", "vae_encode", "denoise", "vae_decode")

LONGER = " and let the lake freeze over"
"""More of a prompt, whose length no edit before it had."""

CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""The kernels of an attention, of which the first that can is taken: with `cudnn`, in the encoders as well."""

CHANGES: Mapping[str, str] = {
    "compile": "compiled blocks",
    "cudnn": "cuDNN's attention first",
    "flash": "none of cuDNN's attention at all",
    "fused": "the engine's fused product of queries, keys and values",
    "torch": "none of Triton's kernels",
}
"""What a run can change of a backend, after a plus sign."""

STOCK = "stock"
BACKENDS = (*(name for name in get_args(Backend) if name != "auto"), STOCK)

MEASURES: Mapping[str, str] = {
    "load": "load",
    "memory": "used GB",
    "edits": "step",
    "length": "other length",
    "profile": "products ms",
    "seed": "largest difference",
}
"""What can be measured, in this order, and a figure that tells that it was. Without a load nothing else is."""

USUAL = "load,edits,length"


def why_not(run: str) -> str | None:
    """Why a run does not exist, in words that follow its name; None where it does."""
    backend, *changes = run.split("+")
    if backend not in BACKENDS:
        return f"expected one of {', '.join(BACKENDS)}"
    return None if set(changes) <= set(CHANGES) else f"expected changes {', '.join(CHANGES)}"


class Edit(Protocol):
    """Edits one picture with one prompt, both by number; `more` is added to the prompt."""

    def __call__(self, number: int, more: str = "") -> Image.Image: ...


@dataclass(frozen=True)
class Work:
    """What is measured: so many edits of `side`² pixels after the first one."""

    models: Path
    device: Device
    side: int
    steps: int
    repeats: int
    measures: Sequence[str]
    others: float
    """GB of the device that other processes have taken."""


@dataclass(frozen=True)
class Subject:
    """A model that is loaded.

    Attributes:
        steady: the figures of the edits after the first one.
        forget: lets go of what is kept for an edit of the same picture and prompt.
        warm_up: as the worker does before its first job; None where there is none.
    """

    edit: Edit
    transformer: torch.nn.Module
    steady: Callable[[], Figures]
    forget: Callable[[], None]
    warm_up: Callable[[], None] | None


class Counter:
    """Counts what the transformer is given, for its arithmetic."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        self.image_tokens = self.text_tokens = 0
        transformer.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _module: object, _args: object, inputs: dict[str, Any]) -> None:
        self.image_tokens = inputs["hidden_states"].shape[1]
        self.text_tokens = inputs["encoder_hidden_states"].shape[1]

    @property
    def figures(self) -> Figures:
        return {"image tokens": self.image_tokens, "text tokens": self.text_tokens}


def main() -> None:
    """Measure what the arguments say."""
    options = _options()
    measures = options.measure.split(",")
    size = (options.side, options.steps, options.repeats)
    work = Work(options.models, options.device, *size, measures, options.others)
    backend, *changes = options.run.split("+")
    subject = stock(work) if backend == STOCK else ours(work, backend, changes)
    measure(work, subject)
    if options.profile and measures != ["load"]:
        write_profile(work, subject.edit, options.profile)


def measure(work: Work, subject: Subject) -> None:
    """Tell what is asked for of a model that is loaded."""
    if "memory" in work.measures and subject.warm_up:
        tell(**{"warm-up": timed(work.device, subject.warm_up)})
        tell_outside(work.device, work.others)
    if "edits" in work.measures:
        measure_edits(work, subject)
    elif {"length", "profile", "seed"} & set(work.measures):
        subject.edit(0)  # what is done only once
    if "length" in work.measures:
        tell(**{"other length": timed(work.device, lambda: subject.edit(work.repeats + 1, LONGER))})
    if "profile" in work.measures:
        measure_step(subject.transformer, lambda: subject.edit(1), work.device, call=min(1, work.steps - 1))
    if "seed" in work.measures:
        measure_seed(subject)
    if work.measures != ["load"]:
        tell_peaks(work.device)


def ours(work: Work, backend: Backend, changes: list[str]) -> Subject:
    """Load with the editor; `changes` are keys of `CHANGES`."""
    if "compile" in changes:
        import_module("torch._dynamo")  # ahead of diffusers, which marks its functions for the compiler
    if "flash" in changes:
        torch.backends.cuda.enable_cudnn_sdp(False)  # for the text encoder as well
    settings = Settings(
        models=work.models,
        device=work.device,
        backend=backend,
        compiled="compile" in changes,
        fused_qkv="fused" in changes,
        triton="torch" not in changes,
    )
    editor = Editor.load(settings)
    if editor.start is None:
        raise RuntimeError("a fresh editor has no figures of its start")
    start = editor.start
    tell(load=start.total / 1000, imports=start.imports / 1000, read=start.read / 1000)
    tell(**{"held GB": memory_gb(work.device, "memory_allocated")})
    pipeline = editor.pipeline
    counter = Counter(pipeline.transformer)
    stages: list[dict[str, float]] = []

    def edit(number: int, more: str = "") -> Image.Image:
        prepared = prepare(_request(work, number, more), settings)
        with sdpa_kernel(CUDNN_FIRST, set_priority=True) if "cudnn" in changes else nullcontext():
            rendered = editor.render(replace(prepared, plan=replace(prepared.plan, steps=work.steps)))
        stages.append(rendered.stages_ms)
        return rendered.pictures[0]

    def steady() -> Figures:
        # Before the editor was asked for the same again: that would come from what it keeps.
        seconds = {stage: statistics.median(one[stage] / 1000 for one in stages[1:]) for stage in STAGES}
        again = timed(work.device, lambda: edit(0))  # the first one's picture and prompt
        return {"step": seconds["denoise"] / work.steps, **seconds, **counter.figures, "edit again": again}

    return Subject(edit, pipeline.transformer, steady, pipeline.contents.clear, editor.warm_up)


def stock(work: Work) -> Subject:
    """diffusers' own pipeline with its own classes in bfloat16, and the same weights, expanded."""
    with elapsed("load"):
        pipeline = load_stock(work)
    counter = Counter(pipeline.transformer)
    ticks: list[float] = []

    def after_step(*_: object) -> dict[str, object]:
        settle(work.device)
        ticks.append(time.perf_counter())
        return {}

    @torch.inference_mode()
    def edit(number: int, more: str = "") -> Image.Image:
        request = _request(work, number, more)
        output = pipeline(
            image=prepare(request, Settings(models=work.models)).picture,
            prompt=request.prompt,
            true_cfg_scale=1.0,
            width=work.side,
            height=work.side,
            num_inference_steps=work.steps,
            generator=torch.Generator("cpu").manual_seed(number),
            callback_on_step_end=after_step,
        )
        picture: Image.Image = output.images[0]
        return picture

    def steady() -> Figures:
        # Between the ends of steps of one edit: the first of each has the encoders before it.
        between = [after - before for before, after in pairwise(ticks)]
        return {"step": statistics.median(_within_edits(between, work.steps)), **counter.figures}

    return Subject(edit, pipeline.transformer, steady, lambda: None, None)


def load_stock(work: Work) -> Any:  # noqa: ANN401 - untyped in diffusers
    """The stock pipeline; what joins its tokenizer and image processor is ours, for theirs needs torchvision."""
    from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageEditPipeline
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from qwen_edit.model.prompt import PromptEncoder
    from tests.support.stock import Processor

    base = work.models / BASE_FOLDER
    tokenizer = Qwen2Tokenizer.from_pretrained(base / "tokenizer")
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(base / "processor")
    # float32 on a CPU, as ours
    dtype = torch.bfloat16 if work.device == "cuda" else torch.float32
    text_encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(base / "text_encoder", dtype=dtype)
    pipeline = QwenImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(dict(LIGHTNING.schedule or {})),
        vae=AutoencoderKLQwenImage.from_pretrained(base / "vae", torch_dtype=dtype).to(work.device),
        text_encoder=text_encoder.to(work.device).eval(),
        tokenizer=tokenizer,
        processor=Processor(PromptEncoder(tokenizer, image_processor, text_encoder)),
        transformer=stock_transformer(work, dtype),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_transformer(work: Work, dtype: torch.dtype) -> Any:  # noqa: ANN401 - untyped in diffusers
    """The stock transformer with every layer of the checkpoint expanded, the modulations included."""
    from diffusers import QwenImageTransformer2DModel
    from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope
    from safetensors import safe_open

    from qwen_edit.svdq.checkpoint import read_header
    from qwen_edit.svdq.dense import dense_top_level
    from qwen_edit.svdq.modules import block_prefix, top_level_tensors
    from tests.support.dense import whole_block

    info = read_header(work.models / LIGHTNING.path)
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel.from_config(info.config)
    with safe_open(work.models / LIGHTNING.path, framework="pt") as file:

        def take(names: Iterator[str]) -> dict[str, torch.Tensor]:
            return {name: file.get_tensor(name).to(work.device) for name in names}

        dense = dense_top_level(take(iter(top_level_tensors(info.config))), info.file, dtype)
        for block in range(info.num_layers):
            packed = take(name for name in info.tensors if name.startswith(block_prefix(block)))
            dense |= whole_block(packed, block, info.file, dtype)
    transformer.load_state_dict(dense, assign=True)
    transformer.pos_embed = QwenEmbedRope(10000, list(transformer.config.axes_dims_rope), scale_rope=True)
    return transformer.eval()


def measure_edits(work: Work, subject: Subject) -> None:
    """The first edit, then the median of others, each of a picture and a prompt that were not seen before.

    All prompts have one length: what a kernel or a compiler prepares for each new one is in the first edit, and in
    "other length", an edit whose prompt has `LONGER` added. After a warm-up the first edit is a worker's first job.
    """
    tell(**{"first edit": timed(work.device, lambda: subject.edit(0))})
    times = [timed(work.device, partial(subject.edit, number)) for number in range(1, work.repeats + 1)]
    tell(edit=statistics.median(times))
    tell(**subject.steady())


def measure_seed(subject: Subject) -> None:
    """How far apart two runs of one request with one seed are: levels of 0 to 255, and the share of them that differ.

    Nothing of the first run is kept for the second.
    """
    pictures = []
    for _ in range(2):
        subject.forget()
        pictures.append(np.asarray(subject.edit(1)).astype(int))
    apart = np.abs(pictures[0] - pictures[1])
    tell(**{"largest difference": float(apart.max()), "share that differs": float((apart > 0).mean())})


def write_profile(work: Work, edit: Edit, path: Path) -> None:
    """A table of what one more edit spends its time in: the kernels of a GPU, the operations of a CPU."""
    cuda = work.device == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        edit(work.repeats + 2)
        settle(work.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    path.write_text(profile.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=100))


def _within_edits(between: list[float], steps: int) -> list[float]:
    """Without the gaps from one edit's last step to the next one's first, and without the first edit."""
    if steps == 1:
        return between
    return [seconds for i, seconds in enumerate(between) if (i + 1) % steps][steps - 1 :]


def _request(work: Work, number: int, more: str) -> EditRequest:
    file = io.BytesIO()
    photo = Image.open(PHOTO).convert("RGB").resize((work.side, work.side))
    photo.point(lambda level: (level + number) % 256).save(file, "JPEG", quality=95)
    image = base64.b64encode(file.getvalue()).decode("ascii")
    prompt = f"make it snow {number:3}{more}"
    return EditRequest(image=image, prompt=prompt, width=work.side, height=work.side, seed=number)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="stock, or a backend with changes: dense, dense+compile, dense-fp8+flash, …")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--side", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--others", type=float, default=0, help="GB of the device that others have taken")
    parser.add_argument("--measure", default=USUAL, help=f"of {', '.join(MEASURES)}")
    parser.add_argument("--profile", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
