"""What a changed plan is, token by token."""

import pytest
import torch

from training.evaluation.altered_signals import DROPPED, OTHER, SignalContext, noisy, pooled, tokens_dropped


GIVEN = [0, 4]
UNCONDITIONAL = torch.full((3,), 9.0)


def signals(batch: int = 2) -> torch.Tensor:
    """`(batch, 5 frames, 4 rows, 6 columns, 3 channels)`, the last channel ten times as wide as the others."""
    drawn = torch.randn(batch, 5, 4, 6, 3, generator=torch.Generator().manual_seed(0))
    return drawn * torch.tensor([1.0, 1.0, 10.0])


def context(numbers=(0, 1)) -> SignalContext:
    return SignalContext(UNCONDITIONAL, GIVEN, [torch.Generator().manual_seed(number) for number in numbers])


def test_noise_is_as_strong_as_asked_for_in_every_channel_and_the_same_at_any_strength():
    own = signals()
    one, two = (noisy(strength).apply(own, context()) - own for strength in (1.0, 2.0))
    torch.testing.assert_close(two, 2 * one, atol=1e-4, rtol=1e-4)
    deviation = own[:, 1:4].std(dim=(1, 2, 3))
    assert (one.std(dim=(1, 2, 3)) / deviation - 1).abs().max() < 0.2
    alone = noisy(1.0).apply(own[1:], context([1]))
    torch.testing.assert_close(alone[0], (own + one)[1])


def test_a_larger_share_drops_the_same_tokens_and_more():
    own = signals()
    some, more = (tokens_dropped(share).apply(own, context()) for share in (0.25, 0.75))
    dropped, dropped_more = ((new == 9).all(-1) for new in (some, more))
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.07)
    assert dropped_more.float().mean().item() == pytest.approx(0.75, abs=0.07)
    assert dropped_more[dropped].all() and not torch.equal(dropped[0], dropped[1])
    torch.testing.assert_close(some[~dropped], own[~dropped], rtol=0, atol=0)


def test_a_coarser_plan_holds_the_means_of_squares_also_where_they_do_not_fit():
    own = signals()
    new = pooled(4).apply(own, context())
    torch.testing.assert_close(
        new[:, :, :, :4], own[:, :, :, :4].mean(dim=(2, 3), keepdim=True).expand(-1, -1, 4, 4, -1)
    )
    torch.testing.assert_close(
        new[:, :, :, 4:], own[:, :, :, 4:].mean(dim=(2, 3), keepdim=True).expand(-1, -1, 4, 2, -1)
    )


def test_one_plan_for_all_sampled_frames_leaves_the_given_ones_theirs():
    own = signals()
    new = pooled(over_frames=True).apply(own, context())
    torch.testing.assert_close(new[:, GIVEN], own[:, GIVEN])
    torch.testing.assert_close(new[:, 1:4], own[:, 1:4].mean(dim=1, keepdim=True).expand(-1, 3, -1, -1, -1))


def test_a_plan_can_be_dropped_or_anothers():
    own = signals()
    assert (DROPPED.apply(own, context()) == 9).all()
    torch.testing.assert_close(OTHER.apply(own, context()), own[[1, 0]])
    four = torch.cat([own, own + 1])  # two windows of each of two clips
    assert torch.equal(OTHER.apply(four, context()), four[[2, 3, 0, 1]])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: noisy(0), "noise of 0 .* positive"),
        (lambda: tokens_dropped(1.0), "is 1; give a number between 0 and 1"),
        (lambda: pooled(1), "at least 2"),
    ],
)
def test_a_change_that_changes_nothing_or_all_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_change_has_a_key_and_a_name_of_its_own():
    changes = [DROPPED, OTHER, noisy(1), noisy(2), tokens_dropped(0.5), pooled(2), pooled(2, True), pooled(1, True)]
    assert len({change.key for change in changes}) == len({change.suffix for change in changes}) == len(changes)
