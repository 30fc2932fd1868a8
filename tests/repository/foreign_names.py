"""Every name of a foreign package that its next release may take away without a word: private, or documented nowhere.

`python -m tests.repository.foreign_names` prints the table as markdown.
"""

from typing import NamedTuple

TRIED = {
    "diffusers": "0.42.1",
    "huggingface_hub": "2.4.0",
    "nunchaku": "1.2.1",
    "runpod": "1.12.0",
    "torch": "2.13.0",
    "transformers": "5.24.0",
    "triton": "3.6.0",
}
"""Package → the version that its names were tried with; of nunchaku the release that the worker was written for."""


class ForeignName(NamedTuple):
    """A name, with its package and modules in front, the files that use it, and what becomes of them without it."""

    name: str
    files: tuple[str, ...]
    without: str

    @property
    def package(self) -> str:
        return self.name.split(".")[0]


PACKAGES_FILE = "qwen_edit/loading/imports/packages.py"
TORCH_FILE = "qwen_edit/loading/imports/torch_parts.py"
ENGINE_FILE = "qwen_edit/model/transformer/nunchaku_engine.py"
FUSED_FILE = "qwen_edit/model/transformer/fused_attention.py"
COMPILE_FILE = "qwen_edit/model/transformer/compile.py"
SDK_FILE = "qwen_edit/serving/queue/runpod_sdk.py"
BUILD_FILE = "qwen_edit/model/transformer/fused/build.py"
WINDOWS_FILE = "qwen_edit/model/vision_windows.py"

VAE_MODULE = "diffusers.models.autoencoders.autoencoder_kl_qwenimage"
TRANSFORMER_MODULE = "diffusers.models.transformers.transformer_qwenimage"
VISION_MODULE = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"
ENGINE_MODULE = "nunchaku.models.transformers.transformer_qwenimage"

ORDINARY = "The imports are the ordinary ones, which take twice as long, and the log says `imports not lean`."
ALL_OF_IT = "All of its modules are imported, which takes longer; where that fails, the imports are the ordinary ones."
NO_MARK = "The real one is imported, which takes longer, and the log says `imports not lean`."
FIRST_EDIT = "The first edit fails, and where a file of `training` uses it, so does the training of the demo model."
NO_VAE = "The VAE cannot be loaded: the start fails."
NO_WINDOWS = "The text encoder cannot be loaded: the start fails."
NO_ENGINE = "The nunchaku backend is refused with a sentence; the dense backends run."
NO_FUSED = "`QWEN_EDIT_FUSED_QKV=1` is refused with a sentence; without it the nunchaku backend runs."
NO_COMPILER = "`QWEN_EDIT_COMPILE=1` fails in the first edit; everything else runs."
NO_DEMO = "The demo model cannot be trained anew."
SDK_LOOP = "The SDK's own loop takes the jobs, without progress; the log says `queue of the SDK`."
NO_BUILD = "The kernels cannot be compiled without a GPU: a worker compiles them, which takes a C compiler."
NO_BAKE = "`python -m builder bake` fails; what is baked runs."

ROWS = (
    ForeignName("diffusers.models.autoencoders", (PACKAGES_FILE,), ALL_OF_IT),
    ForeignName("diffusers.models.transformers", (PACKAGES_FILE,), ALL_OF_IT),
    ForeignName(f"{VAE_MODULE}.QwenImageCausalConv3d", ("qwen_edit/model/vae.py", "training/autoencoder.py"), NO_VAE),
    ForeignName(
        f"{VAE_MODULE}.QwenImageCausalConv3d._padding",
        ("qwen_edit/model/vae.py", "training/autoencoder.py"),
        FIRST_EDIT,
    ),
    ForeignName(f"{VAE_MODULE}.QwenImageAttentionBlock", ("training/autoencoder.py",), NO_DEMO),
    ForeignName(f"{VAE_MODULE}.QwenImageResample", ("training/autoencoder.py",), NO_DEMO),
    ForeignName(f"{VAE_MODULE}.QwenImageResidualBlock", ("training/autoencoder.py",), NO_DEMO),
    ForeignName(f"{TRANSFORMER_MODULE}.QwenEmbedRope._compute_video_freqs", ("training/flow.py",), NO_DEMO),
    ForeignName(
        f"{TRANSFORMER_MODULE}.QwenImageTransformer2DModel.time_text_embed",
        ("qwen_edit/model/transformer/modulation.py",),
        FIRST_EDIT,
    ),
    ForeignName("huggingface_hub.utils.build_hf_headers", ("builder/bake/hub.py",), NO_BAKE),
    ForeignName("huggingface_hub.utils.parse_ratelimit_headers", ("builder/bake/hub_errors.py",), NO_BAKE),
    ForeignName(f"{ENGINE_MODULE}.NunchakuQwenImageTransformer2DModel", (ENGINE_FILE,), NO_ENGINE),
    ForeignName(
        f"{ENGINE_MODULE}.NunchakuQwenImageTransformer2DModel._patch_model",
        (ENGINE_FILE, "qwen_edit/model/transformer/nunchaku.py"),
        NO_ENGINE,
    ),
    ForeignName(
        f"{ENGINE_MODULE}.NunchakuQwenImageTransformer2DModel.set_offload",
        (ENGINE_FILE, "qwen_edit/model/transformer/nunchaku.py"),
        NO_ENGINE,
    ),
    ForeignName(f"{ENGINE_MODULE}.NunchakuQwenAttention.processor", (FUSED_FILE,), NO_FUSED),
    ForeignName("nunchaku.ops.fused.fused_qkv_norm_rottary", (ENGINE_FILE,), NO_FUSED),
    ForeignName(
        f"{ENGINE_MODULE}.torch",
        (ENGINE_FILE,),
        "Nothing fails: the host waits for the device after each step.",
    ),
    ForeignName("runpod.http_client.AsyncClientSession", (SDK_FILE,), SDK_LOOP),
    ForeignName("runpod.serverless.modules.rp_http.JOB_DONE_URL", (SDK_FILE,), SDK_LOOP),
    ForeignName("runpod.serverless.modules.rp_job._job_get_url", (SDK_FILE,), SDK_LOOP),
    ForeignName("runpod.serverless.modules.rp_job._job_stop_url", (SDK_FILE,), SDK_LOOP),
    ForeignName("runpod.serverless.modules.rp_scale.JobScaler", (SDK_FILE,), SDK_LOOP),
    ForeignName("runpod.serverless.modules.worker_state.JobsProgress", (SDK_FILE,), SDK_LOOP),
    ForeignName("runpod.serverless.worker.heartbeat", (SDK_FILE,), SDK_LOOP),
    ForeignName(
        "runpod.serverless.worker.heartbeat._mirror",
        (SDK_FILE,),
        "A heartbeat that goes on in a thread names no jobs.",
    ),
    ForeignName(
        "torch._fused_sdp_choice",
        ("qwen_edit/machine/device.py",),
        "Nothing fails: the log does not say which attention runs.",
    ),
    ForeignName("torch._dynamo", (TORCH_FILE, COMPILE_FILE), ORDINARY),
    ForeignName("torch._dynamo._trace_wrapped_higher_order_op", (TORCH_FILE,), ORDINARY),
    ForeignName("torch._dynamo.allow_in_graph", (TORCH_FILE,), NO_MARK),
    ForeignName("torch._dynamo.assume_constant_result", (TORCH_FILE,), NO_MARK),
    ForeignName("torch._dynamo.disable", (TORCH_FILE,), NO_MARK),
    ForeignName("torch._dynamo.eval_frame.OptimizedModule", (TORCH_FILE,), NO_MARK),
    ForeignName("torch._dynamo.maybe_mark_dynamic", (COMPILE_FILE,), NO_COMPILER),
    ForeignName(
        "torch._scaled_mm",
        ("qwen_edit/svdq/fp8.py",),
        "`QWEN_EDIT_BACKEND=dense-fp8` fails on a GPU; the other backends run.",
    ),
    ForeignName(
        "torch.cuda.cudart",
        ("qwen_edit/weights/pinned.py",),
        "With offload the start fails: weights that wait in the host's memory cannot be pinned.",
    ),
    ForeignName("torch.distributed.is_available", (TORCH_FILE,), ORDINARY),
    ForeignName(f"{VISION_MODULE}.Qwen2_5_VLVisionAttention", (WINDOWS_FILE,), NO_WINDOWS),
    ForeignName(
        f"{VISION_MODULE}.Qwen2_5_VisionTransformerPretrainedModel.fullatt_block_indexes", (WINDOWS_FILE,), NO_WINDOWS
    ),
    ForeignName(f"{VISION_MODULE}.apply_rotary_pos_emb_vision", (WINDOWS_FILE,), NO_WINDOWS),
    ForeignName("transformers.utils.import_utils._LazyModule", (PACKAGES_FILE,), ORDINARY),
    ForeignName("transformers.utils.import_utils.define_import_structure", (PACKAGES_FILE,), ORDINARY),
    ForeignName("transformers.vision_utils.get_vision_cu_seqlens", (WINDOWS_FILE,), NO_WINDOWS),
    ForeignName("transformers.vision_utils.get_vision_position_ids", (WINDOWS_FILE,), NO_WINDOWS),
    ForeignName("transformers.vision_utils.get_vision_window_index", (WINDOWS_FILE,), NO_WINDOWS),
    ForeignName("triton.backends.compiler.GPUTarget", (BUILD_FILE,), NO_BUILD),
    ForeignName("triton.backends.nvidia.driver.CudaLauncher", (BUILD_FILE,), NO_BUILD),
    ForeignName("triton.backends.nvidia.driver.CudaUtils", (BUILD_FILE,), NO_BUILD),
    ForeignName("triton.runtime.driver.set_active", (BUILD_FILE,), NO_BUILD),
    ForeignName("triton.runtime.jit.JITFunction.warmup", ("qwen_edit/model/transformer/fused/launch.py",), NO_BUILD),
)


def markdown() -> str:
    """The rows as a table, for the documents."""
    head = "| package, tried with | name | used in | without it |\n|---|---|---|---|\n"
    return head + "".join(_line(row) for row in sorted(ROWS))


def _line(row: ForeignName) -> str:
    files = ", ".join(f"`{file}`" for file in row.files)
    name = row.name.removeprefix(f"{row.package}.")
    return f"| {row.package} {TRIED[row.package]} | `{name}` | {files} | {row.without} |\n"


if __name__ == "__main__":
    print(markdown(), end="")
