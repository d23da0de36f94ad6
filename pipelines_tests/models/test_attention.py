"""The forms of attention: whichever is taken, the result is the same; and what of it is computed in float32."""

import copy

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend, dispatch_attention_fn
from diffusers.models.normalization import FP32LayerNorm

from diffusers_mardini.models import attention
from diffusers_mardini.models.attention import (
    LONGEST_PLAIN_ON_CPU,
    FP32RMSNorm,
    MarDiniAttention,
    attend,
    attend_by_products,
)
from diffusers_mardini.models.embeddings import MarDiniRotaryPosEmbed, apply_rotary_embedding


@pytest.fixture
def forms(monkeypatch):
    """Names of the forms that were taken, in order."""
    taken = []
    for name in ("attend_by_products", "dispatch_attention_fn"):

        def spy(*args, form=getattr(attention, name), name=name, **kwargs):  # noqa: B008
            taken.append(name)
            return form(*args, **kwargs)

        monkeypatch.setattr(attention, name, spy)
    return taken


def heads(length, dtype=torch.float32, seed=0):
    return torch.randn(3, length, 2, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


def dense(query, key, value):
    query, key, value = (tensor.double() for tensor in (query, key, value))
    scores = torch.einsum("sqhd,skhd->shqk", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("shqk,skhd->sqhd", scores.softmax(-1), value)


@pytest.mark.parametrize("length, keys", [(1, 1), (5, 9), (9, 5), (300, 300)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_both_forms_equal_the_definition_forward_and_backward(length, keys, dtype, tolerance):
    for form in (attend_by_products, dispatch_attention_fn):
        tensors = [heads(length, dtype, 0), heads(keys, dtype, 1), heads(keys, dtype, 2)]
        exact = [tensor.double().requires_grad_() for tensor in tensors]
        tensors = [tensor.requires_grad_() for tensor in tensors]
        result, expected = form(*tensors), dense(*exact)
        assert result.dtype == dtype and result.shape == (3, length, 2, 8)
        torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)
        result.sum().backward()
        expected.sum().backward()
        for tensor, reference in zip(tensors, exact):
            torch.testing.assert_close(tensor.grad.double(), reference.grad, atol=10 * tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_attention_equals_the_definition_whichever_form_is_taken(forms, dtype, tolerance):
    for keys in (4, LONGEST_PLAIN_ON_CPU[torch.bfloat16] + 1):
        for trains in (False, True):
            tensors = [heads(5, dtype, 0).requires_grad_(trains), heads(keys, dtype, 1), heads(keys, dtype, 2)]
            torch.testing.assert_close(attend(*tensors).double(), dense(*tensors), atol=tolerance, rtol=tolerance)
    assert set(forms) == {"attend_by_products", "dispatch_attention_fn"}


@pytest.mark.parametrize(
    "norm",
    [FP32RMSNorm(64), FP32LayerNorm(64), FP32LayerNorm(64, elementwise_affine=False)],
    ids=lambda n: type(n).__name__,
)
def test_norms_are_computed_in_float32_and_rounded_once(norm):
    values = 3 + 2 * torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    for parameter in norm.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5)
    half = copy.deepcopy(norm).to(torch.bfloat16)
    exact = copy.deepcopy(half).float()
    low = values.to(torch.bfloat16)
    assert torch.equal(half(low), exact(low.float()).to(torch.bfloat16))
    large = torch.full((1, 64), 300.0, dtype=torch.float16)  # whose square is no float16
    large[0, 0] = -300
    assert copy.deepcopy(norm).half()(large).isfinite().all()


def test_queries_and_keys_are_normalized_and_rotated_in_float32_and_rounded_once():
    torch.manual_seed(0)
    attention_layer = MarDiniAttention(32, 2, 16).to(torch.bfloat16)
    attention_layer.norm_q.float(), attention_layer.norm_k.float()  # as loaded models have them
    rotary = MarDiniRotaryPosEmbed(16, 100.0, 1.0)(3, 2, 3, torch.device("cpu"))
    tokens = torch.randn(1, 3, 8, 32).to(torch.bfloat16)
    for projection, norm, found in (
        (attention_layer.to_q, attention_layer.norm_q, attention_layer.queries(tokens, rotary)),
        (attention_layer.to_k, attention_layer.norm_k, attention_layer.keys_and_values(tokens, rotary)[0]),
    ):
        exact = apply_rotary_embedding(norm(projection(tokens).float().unflatten(-1, (2, 16))), *rotary)
        assert exact.dtype == torch.float32 and torch.equal(found, exact.to(torch.bfloat16))


def test_short_sequences_of_bfloat16_on_a_cpu_take_plain_products_and_others_the_kernel(forms):
    longest = LONGEST_PLAIN_ON_CPU[torch.bfloat16]
    for keys, dtype in ((longest, torch.bfloat16), (longest + 1, torch.bfloat16), (2, torch.float32)):
        attend(heads(2, dtype), heads(keys, dtype), heads(keys, dtype))
    assert forms == ["attend_by_products", "dispatch_attention_fn", "dispatch_attention_fn"]


def test_training_takes_plain_products_at_every_length(forms):
    keys = LONGEST_PLAIN_ON_CPU[torch.bfloat16] + 1
    attend(heads(2).requires_grad_(), heads(keys), heads(keys))
    attend(heads(2, torch.bfloat16).requires_grad_(), heads(keys, torch.bfloat16), heads(keys, torch.bfloat16))
    assert forms == ["attend_by_products"] * 2


def test_a_backend_that_the_user_chose_is_taken(forms):
    short = [heads(2, torch.bfloat16)] * 3
    attend(*short, backend=AttentionBackendName.NATIVE)
    with attention_backend("_native_math"):
        attend(*short)
    assert forms == ["dispatch_attention_fn"] * 2


def test_other_devices_take_the_kernel(forms):
    attend(*(heads(2, torch.bfloat16).to("meta") for _ in range(3)))
    assert forms == ["dispatch_attention_fn"]


@pytest.mark.parametrize("most", (1, 2, 3))
def test_sequences_in_parts_attend_as_together(forms, most):
    query, key, value = (heads(length, seed=seed) for seed, length in enumerate((5, 7, 7)))
    parts = []

    def form(*part):
        parts.append(len(part[0]))
        return attend_by_products(*part)

    together = attend_by_products(query, key, value)
    assert torch.equal(attention.in_parts(form, most, query, key, value), together)
    assert sum(parts) == 3 and max(parts) <= most


def test_no_kernel_of_a_gpu_is_given_more_sequences_than_it_can_count():
    places = torch.empty(1, device="meta").expand(25_344, 17, 16, 64)  # 24 windows of 512x512, across 17 frames
    assert attention.most_sequences(places) == 65_535  # the rows of a grid
    places.requires_grad_()
    most = attention.most_sequences(places)
    assert most * 128 * 16 * 64 * 4 == 2**30  # bytes of the padded queries' gradient in float32
    long = torch.empty(1, device="meta").expand(4, 2**19, 16, 64).requires_grad_()
    assert attention.most_sequences(long) == 1
    parts = []
    attention.in_parts(lambda *part: (parts.append(len(part[0])), part[0])[1], most, places, places, places)
    assert sum(parts) == 25_344 and max(parts) - min(parts) <= 1 and max(parts) <= most


def test_other_devices_are_given_sequences_in_parts(forms, monkeypatch):
    monkeypatch.setattr(attention, "MOST_SEQUENCES", 2)
    query, key, value = (torch.empty(5, length, 2, 8, device="meta") for length in (4, 6, 6))
    assert attend(query, key, value).shape == query.shape
    assert forms == ["dispatch_attention_fn"] * 3
