"""A configuration that names code, with the package in reach that would fetch and run it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from qwen_edit.store.catalog import BASE_FOLDER
from tests.support.places import ROOT

KERNEL = "someone/attention"

HOSTILE = {
    "attn_implementation": KERNEL,
    "_attn_implementation": KERNEL,
    "_attn_implementation_internal": KERNEL,
    "experts_implementation": KERNEL,
    "use_kernels": True,
    "dtype": "float64",
    "torch_dtype": "float64",
    "quantization_config": {"quant_method": "finegrained_fp8"},
    "per_layer_config": {"0": {"attn_implementation": KERNEL}},
    "num_labels": 10**12,
    "auto_map": dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor"), "hostile.Hostile"),
    "custom_pipeline": "hostile",
    "name_or_path": "someone/model",
    "tokenizer_file": "/proc/self/environ",
    "vocab_file": "/proc/self/environ",
    "fast_tokenizer_files": ["tokenizer.4.0.0.json"],
    "added_tokens_file": "/proc/self/environ",
    "chat_template": "{{ ''.__class__ }}",
    "trust_remote_code": True,
}
"""Fields that name code, a remote file, another dtype, or a list without end."""

CODE = "from pathlib import Path\nPath(__file__).with_name('has run').touch()\nclass Hostile: ...\n"

PROGRAM = """
import sys
import kernels
from pathlib import Path
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from qwen_edit import Editor
from qwen_edit.settings import Settings

models = Path(sys.argv[1])
editor = Editor.load(Settings(models=models, device="cpu", lean_imports=False))
pipeline = editor.pipeline
print("asked by us:", kernels.ASKED)
text_encoder = pipeline.prompts.text_encoder
tensors = [*pipeline.vae.parameters(), *text_encoder.parameters()]
print("dtypes:", {str(tensor.dtype) for tensor in tensors})
print("attention:", {part.config._attn_implementation for part in text_encoder.modules() if hasattr(part, "config")})
try:
    Qwen2_5_VLModel(Qwen2_5_VLConfig(attn_implementation="someone/attention"))
except ValueError:
    pass
print("asked by the library alone:", kernels.ASKED)
"""


def spoil(path: Path, fields: dict[str, Any], *inside: str) -> None:
    """Put fields into a configuration, and into objects inside it."""
    document = json.loads(path.read_text())
    for one in (document, *(document[name] for name in inside)):
        one.update({name: value for name, value in fields.items() if name not in one})
    path.write_text(json.dumps(document))


def hostile_models(models: Path, folder: Path) -> Path:
    copy = Path(shutil.copytree(models, folder))
    base = copy / BASE_FOLDER
    spoil(base / "text_encoder/config.json", HOSTILE, "text_config", "vision_config")
    for name in (
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
        "processor/preprocessor_config.json",
        "model_index.json",
    ):
        spoil(base / name, HOSTILE)
    for part in ("tokenizer", "processor", "text_encoder", "vae", "scheduler"):
        (base / part / "hostile.py").write_text(CODE)
    (base / "tokenizer" / "tokenizer.json").write_text("{}")
    (base / "tokenizer" / "config.json").write_text('{"model_type": "mistral", "transformers_version": "4.0.0"}')
    (base / "processor" / "processor_config.json").write_text('{"image_processor": {"patch_size": 1}}')
    return copy


def test_a_configuration_that_names_code_a_file_or_a_dtype_is_not_heeded(models: Path, tmp_path: Path) -> None:
    copy = hostile_models(models, tmp_path / "models")
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support" / "hub_kernels")))

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(copy)],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-4:] == [
        "asked by us: []",
        "dtypes: {'torch.float32'}",
        "attention: {'sdpa'}",
        f"asked by the library alone: ['{KERNEL}']",
    ]
    assert list(copy.rglob("has run")) == []
