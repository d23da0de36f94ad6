"""Sec. 2.3.1: patches, [NEXT] tokens and rotary positions."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_mardini.models.embeddings import (
    MarDiniCrossRotaryPosEmbed,
    MarDiniRotaryPosEmbed,
    _rotate_in_graphs,
    _Rotation,
    append_next_tokens,
    apply_rotary_embedding,
    patchify,
    remove_next_tokens,
    unpatchify,
)


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_unpatchify_undoes_patchify_on_any_aspect_ratio(patch_size):
    latents = torch.randn(2, 3, 5, 4, 12)
    patches = patchify(latents, patch_size)
    assert patches.shape == (2, 3, 4 // patch_size, 12 // patch_size, 5 * patch_size**2)
    assert torch.equal(unpatchify(patches, patch_size), latents)


def test_a_patch_holds_the_latents_of_its_place():
    latents = torch.arange(4 * 6.0).reshape(1, 1, 1, 4, 6)
    assert patchify(latents, 2)[0, 0, 1, 2].tolist() == [16, 17, 22, 23]


def test_patchify_refuses_what_it_cannot_cut():
    with pytest.raises(ValueError, match="5x4.*divisible by `patch_size`"):
        patchify(torch.zeros(1, 1, 1, 5, 4), 2)


def test_every_row_ends_with_next_and_nothing_else_changes():
    patches, next_token = torch.randn(2, 3, 4, 5, 8), torch.randn(8)
    tokens = append_next_tokens(patches, next_token)
    assert tokens.shape == (2, 3, 4 * 6, 8)
    assert torch.equal(tokens[:, :, 5::6], next_token.expand(2, 3, 4, 8))
    assert torch.equal(remove_next_tokens(tokens, rows=4), patches)


def test_rotated_products_depend_on_the_difference_of_places_alone():
    cos, sin = MarDiniRotaryPosEmbed(16, theta=100.0)(4, 3, 4, torch.device("cpu"))
    assert cos.shape == sin.shape == (4, 15, 1, 16)
    query, key = torch.randn(16), torch.randn(16)

    def product(q_place, k_place):
        q = apply_rotary_embedding(query[None], cos[q_place], sin[q_place])
        k = apply_rotary_embedding(key[None], cos[k_place], sin[k_place])
        return (q * k).sum()

    torch.testing.assert_close(product((0, 2), (1, 7)), product((2, 6), (3, 11)))
    assert (product((0, 2), (1, 7)) - product((0, 2), (2, 7))).abs() > 1e-3  # another frame
    assert (product((0, 2), (1, 7)) - product((0, 2), (1, 8))).abs() > 1e-3  # another place


def test_rotation_keeps_length_and_place_zero():
    cos, sin = MarDiniRotaryPosEmbed(16, theta=10000.0)(9, 8, 8, torch.device("cpu"))
    heads = torch.randn(9, 72, 2, 16)
    rotated = apply_rotary_embedding(heads, cos, sin)
    torch.testing.assert_close(rotated.norm(dim=-1), heads.norm(dim=-1))
    torch.testing.assert_close(rotated[0, 0], heads[0, 0])


def test_planner_places_lie_on_the_transformer_places_they_cover():
    rope = MarDiniCrossRotaryPosEmbed(8, theta=100.0)
    query_cos, _, key_cos, _ = rope(8, 6, 4, 3, torch.device("cpu"))
    assert query_cos.shape == (8 * 7, 1, 8) and key_cos.shape == (4 * 3, 1, 8)
    # At equal resolution a planning token and the token it stands for have the same place; [NEXT] is one column
    # further.
    query_cos, _query_sin, key_cos, key_sin = rope(4, 3, 4, 3, torch.device("cpu"))
    assert torch.equal(query_cos.unflatten(0, (4, 4))[:, :3], key_cos.unflatten(0, (4, 3)))
    # At half the resolution it stands in the middle of the four tokens that it covers.
    _, _, key_cos, key_sin = rope(8, 6, 4, 3, torch.device("cpu"))
    angle = torch.atan2(key_sin, key_cos)[:, 0, 4:].unflatten(
        0, (4, 3)
    )  # first pair of each axis turns by 1 per patch
    torch.testing.assert_close(angle[1, 0, 0], torch.tensor(3.0))
    torch.testing.assert_close(angle[0, 1, 2], torch.tensor(3.0))


def test_the_highest_frequency_is_that_of_the_configuration():
    cos, sin = MarDiniRotaryPosEmbed(16, theta=100.0, max_frequency=0.5)(2, 1, 3, torch.device("cpu"))
    frame_angle = torch.atan2(sin, cos)[1, 0, 0, 8:12]
    torch.testing.assert_close(frame_angle, 0.5 * 100.0 ** (-torch.arange(4) / 4))
    plain = MarDiniRotaryPosEmbed(16, theta=100.0)(2, 1, 3, torch.device("cpu"))
    assert not torch.allclose(cos, plain[0])


def test_a_rotation_turns_pairs_of_channels_counterclockwise():
    cos, sin = MarDiniRotaryPosEmbed(8, theta=100.0)(3, 1, 2, torch.device("cpu"))
    heads = torch.randn(3, 3, 1, 8)
    pairs = torch.complex(heads[..., :4], heads[..., 4:])
    angles = torch.tensor([1.0, 100.0**-0.5])
    turned = torch.cat([torch.arange(3.0)[:, None, None, None] * angles + torch.zeros(3, 3, 1, 2),
                        torch.arange(3.0)[None, :, None, None] * angles + torch.zeros(3, 3, 1, 2)], dim=-1)  # fmt: skip
    expected = pairs * torch.polar(torch.ones_like(turned), turned)
    rotated = apply_rotary_embedding(heads, cos, sin)
    torch.testing.assert_close(rotated, torch.cat([expected.real, expected.imag], dim=-1))
    assert apply_rotary_embedding(heads.bfloat16(), cos, sin).dtype == torch.bfloat16


def test_a_rotation_is_that_of_compiled_graphs_and_its_gradient_turns_back():
    tables = MarDiniRotaryPosEmbed(16, theta=100.0)(3, 2, 2, torch.device("cpu"))
    heads, grad = torch.randn(2, 3, 6, 4, 16, requires_grad=True), torch.randn(2, 3, 6, 4, 16)
    rotated, expected = apply_rotary_embedding(heads, *tables), _rotate_in_graphs(heads, *tables)
    assert torch.equal(rotated, expected)
    ours, theirs = (torch.autograd.grad(result, heads, grad)[0] for result in (rotated, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)  # sums of two products, one of them fused
    torch.testing.assert_close(ours, apply_rotary_embedding(grad, tables[0], -tables[1]), atol=0, rtol=0)
    exact = heads.detach().double().requires_grad_(), *(table.double() for table in tables)
    assert torch.autograd.gradcheck(_Rotation.apply, exact) and torch.autograd.gradgradcheck(_Rotation.apply, exact)


class Passes(TorchDispatchMode):
    """The operations that write as much as half of the heads, by name."""

    def __init__(self, least: int):
        super().__init__()
        self.least, self.names = least, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view and isinstance(result, torch.Tensor) and result.numel() >= self.least:
            self.names.append(function.overloadpacket.__name__)
        return result


def test_a_rotation_writes_its_heads_twice_each_way():
    tables = MarDiniRotaryPosEmbed(16, theta=100.0)(3, 2, 2, torch.device("cpu"))
    heads, grad = torch.randn(2, 3, 6, 4, 16, requires_grad=True), torch.randn(2, 3, 6, 4, 16)
    half = heads.numel() // 2
    with Passes(half) as forward:
        rotated = apply_rotary_embedding(heads, *tables)
    with Passes(half) as backward:
        torch.autograd.grad(rotated, heads, grad)
    assert forward.names == backward.names == ["mul", "addcmul_", "addcmul_"]  # all, and each half
