import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen

from qwen_edit.model.transformer.fused import twins


def test_the_norm_and_the_rotation_are_those_of_diffusers() -> None:
    torch.manual_seed(1)
    x, angles = torch.randn(2, 7, 3, 16), torch.randn(7, 8)
    norm = RMSNorm(16, eps=1e-6)
    norm.weight.data.normal_()

    stock = apply_rotary_emb_qwen(norm(x), torch.polar(torch.ones_like(angles), angles), use_real=False)
    ours = twins.norm_rotate(x, norm.weight, 1e-6, torch.stack([angles.cos(), angles.sin()], dim=-1))
    assert torch.allclose(ours, stock, atol=1e-6)


def test_a_view_becomes_contiguous() -> None:
    x = torch.randn(2, 5, 3, 4, 16)[:, :, 1].bfloat16()

    ours = twins.norm_rotate(x, torch.ones(16).bfloat16(), 1e-6, torch.randn(5, 8, 2))
    assert ours.is_contiguous()
    assert ours.dtype == torch.bfloat16


def test_the_modulation_and_the_gate_are_those_of_the_formula() -> None:
    torch.manual_seed(1)
    x, scale, shift = torch.randn(2, 7, 48) + 3, torch.randn(1, 1, 48), torch.randn(2, 1, 48)

    norm = torch.nn.LayerNorm(48, eps=1e-6, elementwise_affine=False)
    for one in (shift, shift[:1]):
        assert torch.allclose(twins.modulate(x, scale, one, 1e-6), norm(x) * (1 + scale) + one, atol=1e-5)
    assert torch.allclose(twins.gated(x, scale, shift.expand(2, 7, 48)), x + scale * shift, atol=1e-6)
