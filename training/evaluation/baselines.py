"""Methods without training: copying, cross-fading, optical flow, and the best match among the training clips.

Each function takes windows in [0, 1], `(batch, frames, 3, height, width)`, uses only the `given` frames and returns
whole windows of the same shape, so that `metrics.score_windows` scores them like ours.
"""

from collections.abc import Iterable, Sequence

import torch

from training.data.order import frames_at_stride


# DIS compares patches of 8 pixels; small frames are first enlarged to about this many pixels.
FLOW_SIZE = 256


def copy_nearest(windows: torch.Tensor, given: Sequence[int]) -> torch.Tensor:
    """Replace every frame by the nearest given one (the earlier of two equally near)."""
    nearest = [min(sorted(given), key=lambda g: abs(g - i)) for i in range(windows.shape[1])]
    return windows[:, nearest]


def cross_fade(windows: torch.Tensor, given: Sequence[int]) -> torch.Tensor:
    """Blend linearly between the given frames on either side; repeat the first and last one outside of them."""
    result = []
    for left, right, time in neighbours(windows.shape[1], given):
        result.append(torch.lerp(windows[:, left], windows[:, right], time))
    return torch.stack(result, dim=1)


def flow_warp(windows: torch.Tensor, given: Sequence[int]) -> torch.Tensor:
    """Warp the given frames on either side along DIS optical flow in both directions and blend them.

    The flow at time t is mixed from the two measured ones as in Super SloMo (arXiv 1712.00080, Eq. 4), which assumes
    straight and even motion. After the last given frame the motion between the last two is continued. Before the first
    one, or with a single given frame, no motion is known and the frame is repeated.
    """
    import cv2

    scale = max(1, round(FLOW_SIZE / min(windows.shape[-2:])))
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def enlarge(frame: torch.Tensor):
        pixels = (frame.permute(1, 2, 0) * 255).round().clamp(0, 255).byte().contiguous().numpy()
        return cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)

    result = windows.float().clone()
    for window in result:
        flows = {}
        for index, (left, right, time) in enumerate(neighbours(windows.shape[1], given)):
            goes_on = index > right and len(given) > 1
            if left == right and not goes_on:
                window[index] = window[left]
                continue
            pair = tuple(sorted(given)[-2:]) if goes_on else (left, right)
            if pair not in flows:
                gray = [cv2.cvtColor(enlarge(window[i]), cv2.COLOR_RGB2GRAY) for i in pair]
                forward = estimator.calc(gray[0], gray[1], None)
                backward = estimator.calc(gray[1], gray[0], None)
                flows[pair] = _shrink(forward, scale), _shrink(backward, scale)  # (2, height, width) pixels
            forward, backward = flows[pair]
            if goes_on:
                window[index] = _warp(window[pair[1]], backward * (index - pair[1]) / (pair[1] - pair[0]))
                continue
            to_left = -(1 - time) * time * forward + time**2 * backward
            to_right = (1 - time) ** 2 * forward - time * (1 - time) * backward
            window[index] = torch.lerp(_warp(window[left], to_left), _warp(window[right], to_right), time)
    return result


def best_match(
    windows: torch.Tensor, given: Sequence[int], clips: Iterable[tuple[torch.Tensor, float]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the training window whose frames at the given positions have the least mean squared error to the given.

    Args:
        windows: `(batch, frames, 3, height, width)` in [0, 1].
        given: positions of the given frames.
        clips: training clips in [0, 1], each `(length, 3, height, width)`, with the distance of window frames in
            frames of the clip; read once, one at a time; every start is tried.

    Returns:
        The matches, shaped like `windows` with the given frames put back, and their mean squared errors `(batch,)`.
    """
    batch, num_frames = windows.shape[:2]
    given = sorted(given)
    queries = windows[:, given].float().flatten(2)  # (batch, given, values)
    best = torch.full((batch,), float("inf"))
    result = windows.float().clone()
    for clip, step in clips:
        offsets = frames_at_stride(0, num_frames, step)
        starts = clip.shape[0] - offsets[-1]
        if starts < 1:
            continue
        frames = clip.float().flatten(1)  # (length, values)
        # |a - b|^2 = |a|^2 + |b|^2 - 2ab: one product of matrices per clip, so that every start can be tried
        errors = queries.square().sum(-1, keepdim=True) + frames.square().sum(-1) - 2 * queries @ frames.T
        errors = errors / frames.shape[1]  # (batch, given, length)
        total = torch.stack([errors[:, i, offsets[g] : offsets[g] + starts] for i, g in enumerate(given)]).mean(
            dim=0
        )  # (batch, starts)
        error, start = total.min(dim=1)
        for row in torch.nonzero(error < best).flatten().tolist():
            first = int(start[row])
            best[row] = error[row]
            result[row] = clip[[first + offset for offset in offsets]]
    if torch.isinf(best).any():
        raise ValueError(f"no training clip is long enough for {num_frames} frames at this stride")
    result[:, given] = windows[:, given].float()
    return result, best.clamp(min=0)


def neighbours(num_frames: int, given: Sequence[int]) -> list[tuple[int, int, float]]:
    """Return for every frame the given frame before it, the one after it, and its place between them (0 to 1)."""
    result = []
    for index in range(num_frames):
        before = [g for g in given if g <= index]
        after = [g for g in given if g >= index]
        left = max(before) if before else min(after)
        right = min(after) if after else left
        result.append((left, right, (index - left) / (right - left) if right > left else 0.0))
    return result


def _shrink(flow, scale: int) -> torch.Tensor:
    flow = torch.from_numpy(flow).permute(2, 0, 1)[None]  # (1, 2, height * scale, width * scale)
    return torch.nn.functional.avg_pool2d(flow, scale)[0] / scale


def _warp(frame: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Sample `frame`, `(3, height, width)`, at every pixel plus `flow`, `(2, height, width)` in pixels (x, y)."""
    height, width = frame.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([(x + flow[0] + 0.5) / width, (y + flow[1] + 0.5) / height], dim=-1) * 2 - 1
    warped = torch.nn.functional.grid_sample(
        frame[None], places[None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return warped[0]
