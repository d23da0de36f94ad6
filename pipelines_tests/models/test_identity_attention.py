"""Sec. 2.3.2, Fig. 3: identity attention without a mask equals identity attention with one."""

import pytest
import torch

from diffusers_mardini.models.embeddings import MarDiniRotaryPosEmbed
from diffusers_mardini.models.identity_attention import (
    MarDiniDenseIdentityAttnProcessor,
    MarDiniFullAttnProcessor,
    MarDiniIdentityAttention,
)
from diffusers_mardini.models.window import WindowLayout


FRAMES, ROWS, COLUMNS, HEADS, HEAD_DIM = 5, 2, 3, 2, 8
KINDS = ["temporal", "spatiotemporal"]
# Every number of kept frames, in every mixture of places that a few seeds give, equal and unequal over the rows.
EQUAL_ROWS = [
    [[0], [4], [2]],
    [[0, 4], [1, 2], [3, 4]],
    [[0, 1, 2], [2, 3, 4], [0, 2, 4]],
    [[0, 1, 2, 3], [1, 2, 3, 4], [0, 1, 3, 4]],
]
UNEQUAL_ROWS = [[[0], [0, 4], [1, 2, 3]], [[], [0, 1, 2, 3, 4], [2]], [[0, 1, 2, 3, 4], [0], [0, 1, 2, 3]]]


def make_attention(kind):
    torch.manual_seed(0)
    attention = MarDiniIdentityAttention(HEADS * HEAD_DIM, HEADS, HEAD_DIM, kind=kind)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    rotary = MarDiniRotaryPosEmbed(HEAD_DIM, theta=100.0)(FRAMES, ROWS, COLUMNS, torch.device("cpu"))
    return attention, rotary


def make_mask(rows):
    mask = torch.zeros(len(rows), FRAMES, dtype=torch.bool)
    for row, kept in enumerate(rows):
        mask[row, kept] = True
    return mask


def run(attention, processor, rotary, mask, num_masked_frames=None):
    """Output, and gradients of input and weights."""
    torch.manual_seed(1)
    hidden = torch.randn(len(mask), FRAMES, ROWS * (COLUMNS + 1), HEADS * HEAD_DIM, requires_grad=True)
    attention.set_processor(processor)
    attention.zero_grad()
    output = attention(hidden, rotary, WindowLayout.from_mask(mask, num_masked_frames))
    (output * torch.randn(output.shape)).sum().backward()
    return output.detach(), hidden.grad, [p.grad.clone() for p in attention.parameters()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", EQUAL_ROWS + UNEQUAL_ROWS, ids=str)
def test_the_maskless_form_equals_the_dense_mask_forward_and_backward(kind, rows):
    attention, rotary = make_attention(kind)
    mask = make_mask(rows)
    processor = MarDiniIdentityAttention._default_processor_cls()
    expected = run(attention, MarDiniDenseIdentityAttnProcessor(), rotary, mask)
    results = [run(attention, processor, rotary, mask)]
    if rows in EQUAL_ROWS:
        results.append(run(attention, processor, rotary, mask, FRAMES - len(rows[0])))
    for result in results:
        torch.testing.assert_close(result[0], expected[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(result[1], expected[1], atol=1e-5, rtol=1e-5)
        for gradient, reference in zip(result[2], expected[2], strict=True):
            torch.testing.assert_close(gradient, reference, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_token_depends_on_itself_alone_and_a_masked_one_on_its_whole_group(kind):
    attention, rotary = make_attention(kind)
    mask = make_mask([[0, 3]])
    hidden = torch.randn(1, FRAMES, ROWS * (COLUMNS + 1), HEADS * HEAD_DIM, requires_grad=True)
    output = attention(hidden, rotary, WindowLayout(mask))
    touched = torch.autograd.grad(output[0, 3, 2].sum(), hidden, retain_graph=True)[0].abs().sum(-1)[0] > 0
    assert touched.nonzero().tolist() == [[3, 2]]
    touched = torch.autograd.grad(output[0, 1, 2].sum(), hidden)[0].abs().sum(-1)[0] > 0
    if kind == "temporal":
        assert touched.nonzero().tolist() == [[frame, 2] for frame in range(FRAMES)]
    else:
        assert touched.all()


def test_the_dense_form_and_the_maskless_form_differ_where_no_frame_is_a_reference_by_nothing_but_plain_attention():
    attention, rotary = make_attention("spatiotemporal")
    hidden = torch.randn(1, FRAMES, ROWS * (COLUMNS + 1), HEADS * HEAD_DIM)
    nothing_kept = attention(hidden, rotary, WindowLayout(make_mask([[]])))
    one_kept = attention(hidden, rotary, WindowLayout(make_mask([[2]])))
    torch.testing.assert_close(nothing_kept[:, [0, 1, 3, 4]], one_kept[:, [0, 1, 3, 4]])
    assert not torch.allclose(nothing_kept[:, 2], one_kept[:, 2], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_with_full_attention_every_token_depends_on_its_whole_group(kind):
    attention, rotary = make_attention(kind)
    attention.set_processor(MarDiniFullAttnProcessor())
    mask = make_mask([[0, 3]])
    for count in (None, 3):
        hidden = torch.randn(1, FRAMES, ROWS * (COLUMNS + 1), HEADS * HEAD_DIM, requires_grad=True)
        output = attention(hidden, rotary, WindowLayout.from_mask(mask, count))
        for frame in (3, 1):  # a reference frame, a masked one
            touched = torch.autograd.grad(output[0, frame, 2].sum(), hidden, retain_graph=True)[0].abs().sum(-1)[0] > 0
            if kind == "temporal":
                assert touched.nonzero().tolist() == [[other, 2] for other in range(FRAMES)]
            else:
                assert touched.all()


@pytest.mark.parametrize("kind", KINDS)
def test_full_attention_is_the_dense_form_with_nothing_masked_out(kind):
    attention, rotary = make_attention(kind)
    expected = run(attention, MarDiniDenseIdentityAttnProcessor(), rotary, make_mask([[], []]))
    found = run(attention, MarDiniFullAttnProcessor(), rotary, make_mask([[0, 4], [1, 2]]))
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-5)


def test_full_attention_is_chosen_by_an_argument_and_keeps_no_state_of_references():
    torch.manual_seed(0)
    attention = MarDiniIdentityAttention(HEADS * HEAD_DIM, HEADS, HEAD_DIM, identity=False)
    assert isinstance(attention.processor, MarDiniFullAttnProcessor)
    hidden = torch.randn(1, FRAMES, ROWS * (COLUMNS + 1), HEADS * HEAD_DIM)
    rotary = MarDiniRotaryPosEmbed(HEAD_DIM, theta=100.0)(FRAMES, ROWS, COLUMNS, torch.device("cpu"))
    state = attention.reference_step(hidden, tuple(table[None] for table in rotary))[1]
    with pytest.raises(ValueError, match="without a window state"):
        attention(hidden, rotary, None, reference_key_value=state)
