"""VBench's consistencies, with DINO and CLIP of transformers at toy size."""

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTModel

from training.evaluation.networks.consistency import Consistency, consistency, likeness_to_image, mean_over_frames


SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 28}


def tiny_networks() -> Consistency:
    torch.manual_seed(0)
    dino = ViTModel(ViTConfig(patch_size=7, **SIZE), add_pooling_layer=False)
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=14, projection_dim=8, **SIZE))
    for model in (dino, clip):
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return Consistency(dino, clip)


def video(frames: int = 4, height: int = 40, width: int = 56, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (frames, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def test_the_formula_is_vbenchs():
    features = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    half = 0.5**0.5
    # frame 1: to the one before and to the first; frame 2: both are negative, which counts as 0
    assert consistency(features) == pytest.approx((half + 0) / 2)
    to_first = torch.tensor([1.0, half, 0.0])
    expected = 0.4 * to_first.max() + 0.3 * (half + 0) / 2 + 0.3 * 0
    assert likeness_to_image(torch.tensor([1.0, 0.0]), features) == pytest.approx(expected.item())
    with pytest.raises(ValueError, match="at least 2 frames"):
        consistency(features[:1])


def test_the_mean_counts_frames_not_videos():
    assert mean_over_frames([1.0, 0.0], [5, 2]) == pytest.approx(0.8)


def test_a_still_video_is_wholly_consistent_and_a_changing_one_less():
    networks, still = tiny_networks(), video(1).expand(4, -1, -1, -1)
    for score in (networks.subject, networks.background):
        assert score(still) == pytest.approx(1, abs=1e-5) and 0 <= score(video()) < 1 - 1e-4
    # the given image is made smaller as a picture, the frames as tensors: not quite the same
    assert networks.i2v_subject(still[0], still) == pytest.approx(1, abs=1e-3)
    assert networks.i2v_subject(video(1, seed=5)[0], still) < networks.i2v_subject(still[0], still)


def test_dino_is_asked_for_its_class_token_and_clip_for_its_projection():
    networks = tiny_networks()
    square = video(height=28, width=28)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        token = networks.dino((square / 255 - mean) / deviation).last_hidden_state[:, 0]
    before, first = cosine_similarity(token[1:], token[:-1]), cosine_similarity(token[1:], token[:1])
    expected = (before.clamp(min=0) + first.clamp(min=0)).mean() / 2
    assert networks.subject(square) == pytest.approx(expected.item(), abs=1e-5)


def test_clip_sees_the_centred_square_and_dino_the_whole_picture():
    networks = tiny_networks()
    wide = video(height=28, width=84)
    other_margins = wide.clone()
    other_margins[..., :28], other_margins[..., 56:] = 0, 255
    assert networks.background(wide) == pytest.approx(networks.background(other_margins), abs=1e-6)
    assert networks.subject(wide) != pytest.approx(networks.subject(other_margins), abs=1e-4)


def test_weights_come_from_a_folder_and_a_missing_one_is_named(tmp_path):
    networks = tiny_networks()
    networks.dino.save_pretrained(tmp_path / "dino")
    networks.clip.save_pretrained(tmp_path / "clip")
    loaded = Consistency.from_pretrained(str(tmp_path / "dino"), str(tmp_path / "clip"))
    assert loaded.subject(video()) == pytest.approx(networks.subject(video()), abs=1e-6)
    assert loaded.background(video()) == pytest.approx(networks.background(video()), abs=1e-6)
    with pytest.raises(ValueError, match=r"put config.json and model.safetensors of .*nothing.* --clip"):
        Consistency.from_pretrained(str(tmp_path / "dino"), str(tmp_path / "nothing"))
