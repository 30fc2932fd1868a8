import pytest
import torch
from PIL import Image
from torch.backends.cuda import cudnn_sdp_enabled, flash_sdp_enabled, mem_efficient_sdp_enabled

from qwen_edit import Editor
from qwen_edit.machine.device import attention_kernel
from qwen_edit.model.attention import attention_of_encoders


@pytest.mark.parametrize(("device", "cudnn"), [("cuda", False), ("cpu", True)])
def test_the_encoders_attend_without_cudnn_on_a_gpu(device: str, cudnn: bool) -> None:
    before = torch._C._get_sdp_priority_order()
    with attention_of_encoders(torch.device(device)):
        assert (cudnn_sdp_enabled(), flash_sdp_enabled(), mem_efficient_sdp_enabled()) == (cudnn, True, True)
        assert torch._C._get_sdp_priority_order() == before
    assert cudnn_sdp_enabled()


def test_a_prompt_is_encoded_without_cudnn_and_the_transformer_may_have_it(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, seen = editor.pipeline, []

    def states(_prompt: str, _picture: Image.Image) -> torch.Tensor:
        seen.append(cudnn_sdp_enabled())
        return torch.zeros(1)

    monkeypatch.setattr(pipeline, "device", torch.device("cuda"))
    monkeypatch.setattr(pipeline.prompts, "states", states)
    pipeline.encoded_prompt("a prompt of its own", Image.new("RGB", (8, 8)), ("no picture's key",))
    pipeline.contents.clear()

    assert seen == [False]
    assert cudnn_sdp_enabled()


def test_the_kernel_is_asked_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert attention_kernel(cpu) == "flash"

    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *_: 3)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    assert attention_kernel(cpu) == "cudnn 9.19.0"

    monkeypatch.delattr(torch, "_fused_sdp_choice")
    assert attention_kernel(cpu) is None
