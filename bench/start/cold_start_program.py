"""One start for `bench.start.cold_start`, in a process of its own.

`python -m bench.start.cold_start_program WAY MODELS`

The last line that it prints, with everything it made still in memory, is its peak of resident memory in bytes.
"""

import mmap
import os
import resource
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

READERS = 8
BYTES_A_READ = 32 << 20


def weight_files(models: Path) -> list[Path]:
    """Those of the base model and of the checkpoint that comes first."""
    from qwen_edit.store.folder import base_weights, require_checkpoints

    return [*base_weights(models), models / require_checkpoints(models)[0].path]


def import_as_the_examples_do(_models: Path) -> object:
    """What the model cards of Qwen-Image-Edit and Nunchaku import, but for the engine, and the worker's SDK."""
    import runpod
    import torch
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImageEditPipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer, Qwen2VLProcessor

    return (
        *(runpod, torch, AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageEditPipeline),
        *(QwenImageTransformer2DModel, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer, Qwen2VLProcessor),
    )


def import_as_the_worker_does(_models: Path) -> object:
    """All that serving needs: the SDK in the main thread, the rest in the one that loads."""
    from qwen_edit.loading.imports.collector import collector_paused
    from qwen_edit.serving.queue.worker import Worker

    def load() -> object:
        with _lean():
            from qwen_edit.loading.assembly import load_base
        return load_base

    with collector_paused(), ThreadPoolExecutor(1) as gpu:
        loading = gpu.submit(load)
        import runpod.serverless

        return Worker, runpod, loading.result()


def _lean() -> ExitStack:
    from qwen_edit.loading.imports.packages import lean_packages
    from qwen_edit.loading.imports.torch_parts import lean_torch

    with ExitStack() as lean:
        lean.enter_context(lean_packages())
        lean.enter_context(lean_torch())
        return lean.pop_all()


def read_plainly(models: Path) -> object:
    """Parallel reads of every file into new memory, and nothing else: no torch, no header."""
    return [_read(path) for path in weight_files(models)]


def _read(path: Path) -> memoryview:
    size = path.stat().st_size
    view = memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(READERS) as pool:
        for offset in range(0, size, BYTES_A_READ):
            pool.submit(os.preadv, file.fileno(), [view[offset : offset + BYTES_A_READ]], offset)
    return view


def load_as_usual(models: Path) -> object:
    """Import everything, then `from_pretrained` part by part, and the checkpoint with `load_file`.

    Its transformer stays on the meta device, as the engine builds its own, and takes no time to speak of.
    """
    imported = import_as_the_examples_do(models)
    import torch
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
    from safetensors.torch import load_file
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

    from qwen_edit.store.catalog import BASE_FOLDER
    from qwen_edit.svdq.checkpoint import read_header

    base, checkpoint = models / BASE_FOLDER, weight_files(models)[-1]
    text_encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(base / "text_encoder", dtype=torch.bfloat16)
    vae = AutoencoderKLQwenImage.from_pretrained(base / "vae", torch_dtype=torch.bfloat16)
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel.from_config(read_header(checkpoint).config)
    tensors = load_file(checkpoint)
    touched = _touched([*text_encoder.parameters(), *vae.parameters(), *tensors.values()])
    return imported, Qwen2Tokenizer.from_pretrained(base / "tokenizer"), transformer, touched, tensors, text_encoder


def load_as_the_worker_does(models: Path) -> object:
    """The worker's start up to the assembled pipeline and the checkpoint's tensors.

    In the weights' own dtype, and without expanding them, which a CPU alone is slow at.
    """
    from qwen_edit.loading.imports.collector import collector_paused

    with collector_paused(), ThreadPoolExecutor(1) as gpu:
        loading = gpu.submit(_load, models)
        import runpod.serverless

        return runpod, loading.result()


def _load(models: Path) -> object:
    from qwen_edit.store.catalog import BASE_FOLDER
    from qwen_edit.weights.disk import Prefetch

    files = weight_files(models)
    with Prefetch(files):
        import torch

        from qwen_edit.store.folder import is_used
        from qwen_edit.weights.reader import Weights

        cpu = torch.device("cpu")
        with Weights(files, cpu, wanted=is_used) as weights:
            with _lean():
                from qwen_edit.loading.assembly import load_base

                pipeline = load_base(models / BASE_FOLDER, lambda _file: weights, cpu, torch.bfloat16)
            return pipeline, weights.tensors(files[-1])


def _touched(tensors: "list[Tensor]") -> float:
    """A byte of each page, for what is mapped and would be read later."""
    import torch

    return sum(float(tensor.detach().reshape(-1).view(torch.uint8)[::4096].sum()) for tensor in tensors)


WAYS: Mapping[str, Callable[[Path], object]] = {
    "plain imports": import_as_the_examples_do,
    "our imports": import_as_the_worker_does,
    "plain reading": read_plainly,
    "usual": load_as_usual,
    "ours": load_as_the_worker_does,
}


if __name__ == "__main__":
    made = WAYS[sys.argv[1]](Path(sys.argv[2]))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)
