# PROFILE=production serves the int4 checkpoints on an NVIDIA GPU. PROFILE=tiny has PyTorch for the CPU and small random
# weights in the same places, so that this file can be built and proven on any x86-64 machine, with DEVICE=cpu.
#
# From the bottom up by how seldom a layer changes: the weights, a layer for each file; PyTorch; the other packages; the
# code.

ARG BASE_IMAGE=python:3.11-slim-bookworm

# RELEASE=1 builds only from what cannot change behind its name. In a stage of its own, so that the arguments can be
# looked at before gigabytes are fetched, and no layer of the image depends on more of them than it uses.
FROM ${BASE_IMAGE} AS arguments
ARG RELEASE=0
ARG BASE_REVISION=main
ARG CHECKPOINTS_REVISION=main
ARG NUNCHAKU_SHA256=
RUN unpinned() { echo "a release needs $1, $4; it is '$2'"; exit 1; }; \
    pinned() { case "${#2} $2" in *" "*[!0123456789abcdef]*) unpinned "$@" ;; "$3 "*) ;; *) unpinned "$@" ;; esac; }; \
    case "$RELEASE" in \
        0) ;; \
        1) pinned BASE_REVISION "$BASE_REVISION" 40 "a full commit" \
            && pinned CHECKPOINTS_REVISION "$CHECKPOINTS_REVISION" 40 "a full commit" \
            && pinned NUNCHAKU_SHA256 "$NUNCHAKU_SHA256" 64 "the sha256 of the engine's wheel" ;; \
        *) echo "RELEASE is '$RELEASE', expected 0 or 1"; exit 1 ;; \
    esac \
    && mkdir /opt/arguments && touch --date=@0 /opt/arguments

FROM ${BASE_IMAGE}
COPY --from=arguments /opt/arguments/ /opt/arguments/

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    MODEL_CACHE_DIR=/app/models
WORKDIR /app

# The slim images carry no bytecode of the standard library, and the user below could not keep what it compiles.
RUN useradd --create-home --uid 1000 worker \
    && python3.11 -m venv /opt/venv \
    && python -m compileall -q --invalidation-mode unchecked-hash \
        "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"

COPY requirements/bake.lock requirements/
RUN pip install --no-compile --no-deps --require-hashes -r requirements/bake.lock

# What `builder.bake` imports and nothing else. The packages around it have no __init__.py yet, and qwen_edit's would
# import the whole worker.
COPY builder/bake/ builder/bake/
COPY qwen_edit/store/catalog.py qwen_edit/store/files.py qwen_edit/store/manifest.py qwen_edit/store/

# An argument counts for every layer after it, so each one stands right before the first that needs it.
ARG PROFILE=production
RUN case "$PROFILE" in production|tiny) ;; *) echo "PROFILE is '$PROFILE', expected production or tiny"; exit 1 ;; esac

ARG HF_ENDPOINT=https://huggingface.co
ARG BASE_REVISION=main
RUN [ "$PROFILE" = tiny ] || python -m builder.bake --components configs --revision "base=$BASE_REVISION"
RUN [ "$PROFILE" = tiny ] || python -m builder.bake --components text_encoder-1 --revision "base=$BASE_REVISION"
RUN [ "$PROFILE" = tiny ] || python -m builder.bake --components text_encoder-2 --revision "base=$BASE_REVISION"
RUN [ "$PROFILE" = tiny ] || python -m builder.bake --components text_encoder-3 --revision "base=$BASE_REVISION"
RUN [ "$PROFILE" = tiny ] || python -m builder.bake --components text_encoder-4 --revision "base=$BASE_REVISION"
RUN [ "$PROFILE" = tiny ] || python -m builder.bake --components vae --revision "base=$BASE_REVISION"

ARG CHECKPOINTS=lightning,original
ARG CHECKPOINTS_REVISION=main
RUN [ "$PROFILE" = tiny ] || python -m builder.bake --components lightning \
    --checkpoints "$CHECKPOINTS" --revision "checkpoints=$CHECKPOINTS_REVISION"
RUN [ "$PROFILE" = tiny ] || python -m builder.bake --components original \
    --checkpoints "$CHECKPOINTS" --revision "checkpoints=$CHECKPOINTS_REVISION"

COPY requirements/torch.lock requirements/
RUN [ "$PROFILE" = tiny ] || pip install --no-compile --no-deps --require-hashes -r requirements/torch.lock

# Triton compiles what starts a kernel with it, and QWEN_EDIT_COMPILE=1 what torch.compile writes.
RUN [ "$PROFILE" = tiny ] || { apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*; }

# The engine is not in a lock: its release page publishes no hash. Given NUNCHAKU_SHA256, the wheel must match it; left
# empty, whatever that address serves is installed.
ARG NUNCHAKU_WHEEL=https://github.com/nunchaku-ai/nunchaku/releases/download/v1.2.1/nunchaku-1.2.1+cu12.8torch2.10-cp311-cp311-linux_x86_64.whl
ARG NUNCHAKU_SHA256=
RUN [ "$PROFILE" = tiny ] || pip install --no-compile --no-deps \
    "nunchaku @ $NUNCHAKU_WHEEL${NUNCHAKU_SHA256:+#sha256=$NUNCHAKU_SHA256}"

# The tiny image takes the build of PyTorch that pip is set up to find. A set that does not fit together is refused.
# Bytecode that is never compared with its source: a start reads one file for each module. Packages carry a
# few files for newer Pythons, which are named and left as they are.
COPY requirements/serve.lock requirements/overrides.in requirements/check.py requirements/
RUN pip install --no-compile --no-deps --require-hashes -r requirements/serve.lock \
    && { [ "$PROFILE" = production ] || pip install --no-compile "torch>=2.10,<2.14"; } \
    && python requirements/check.py \
    && { python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib \
        || echo "no bytecode for the above"; }

# An engine that cannot be imported fails here, and not in a worker. PyTorch's CUDA build imports without a driver.
RUN [ "$PROFILE" = tiny ] || python -c "import nunchaku.models.transformers.transformer_qwenimage"

COPY builder/made/ builder/made/
COPY qwen_edit/errors.py qwen_edit/
COPY qwen_edit/store/documents.py qwen_edit/store/
COPY qwen_edit/weights/disk.py qwen_edit/weights/header.py qwen_edit/weights/
COPY qwen_edit/svdq/ qwen_edit/svdq/
RUN [ "$PROFILE" = production ] || python -m builder.made tiny

COPY builder/ builder/
COPY qwen_edit/ qwen_edit/
COPY handler.py verify_models.py test_input.json LICENSE ./
RUN python -m compileall -q --invalidation-mode unchecked-hash builder qwen_edit handler.py verify_models.py

# Triton's kernels for every capability that is served, so that no start compiles one. Their paths are part of them. The
# worker may add to them, for a card that is not among these.
ENV TRITON_CACHE_DIR=/opt/kernels
RUN [ "$PROFILE" = tiny ] || { python -m qwen_edit.model.transformer.fused.build --folder "$TRITON_CACHE_DIR" \
    && chown -R worker "$TRITON_CACHE_DIR"; }

# On `auto` the image refuses to serve where PyTorch finds no GPU, because NVIDIA_VISIBLE_DEVICES below asks for one.
ARG DEVICE=auto
ENV QWEN_EDIT_DEVICE=$DEVICE

# From here on everything is on disk. The SDK's start-up check asks for 10 % of the disk to be free, which an image of
# this size can fail on a sound machine: serving writes next to nothing.
#
# Segments of the GPU's memory that grow and shrink keep gigabytes from being cut into pieces where weights come and go.
# cuDNN's attention builds a plan for each length of its input unless it is told to round them; nearly every prompt has
# a length of its own. Both wait for a figure from a GPU.
ENV HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    RUNPOD_LOG_LEVEL=INFO \
    RUNPOD_MIN_DISK_PERCENT=1 \
    QWEN_EDIT_HOST=0.0.0.0 \
    PYTORCH_ALLOC_CONF=expandable_segments:True \
    TORCH_CUDNN_SDPA_AVOID_RECOMPILE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER worker

RUN python verify_models.py
RUN [ "$PROFILE" = production ] || RUNPOD_LOG_LEVEL=WARN python handler.py

# The port of HTTP where `PORT` says nothing else. A worker at the queue has none, and is asked by its heartbeat.
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=15m \
    CMD [ -n "$RUNPOD_WEBHOOK_GET_JOB" ] || [ "$QWEN_EDIT_MODE" = queue ] \
    || python -S -c "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ.get(\"PORT\", 8000)}/health/ready')"

CMD ["python", "-u", "handler.py"]
