"""The small autoencoder: a good linear start, `AutoencoderKL`'s interface, tiles without seams."""

import pytest
import torch

from diffusers_mardini.latents import decode_latents, encode_video
from diffusers_mardini.models.autoencoder_patch_basis import AutoencoderPatchBasis, exact_device


TINY = {"latent_channels": 4, "block_out_channels": (8, 8, 8), "encoder_blocks": 1, "decoder_blocks": 1}


def tiny_vae(random: bool = True) -> AutoencoderPatchBasis:
    torch.manual_seed(0)
    vae = AutoencoderPatchBasis(**TINY).eval()
    if random:  # the residuals start at zero; tests of the whole must see them
        for parameter in vae.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return vae


def smooth_pictures(count: int = 16, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)


def test_fitted_basis_reconstructs_without_any_training():
    vae, pictures = tiny_vae(random=False), smooth_pictures()
    vae.fit_basis(pictures)
    error = (vae(pictures).sample - pictures).square().mean()
    assert error < 0.1 * pictures.var()


class OnMps(torch.Tensor):
    """Tells of itself what a tensor on an Apple GPU would: no float64, and the CPU is another device."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if function is torch.Tensor.device.__get__:
                return torch.device("mps")
            if function is torch.Tensor.to and args[1] == torch.device("cpu"):
                return args[0].as_subclass(torch.Tensor)
            result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64"
            )
        return result.as_subclass(cls) if isinstance(result, torch.Tensor) else result


def test_a_basis_is_fitted_where_the_device_has_no_float64():
    vae, expected, pictures = tiny_vae(random=False), tiny_vae(random=False), smooth_pictures()
    with pytest.raises(TypeError, match="float64"):
        pictures.as_subclass(OnMps).double()
    vae.fit_basis(pictures.as_subclass(OnMps))
    expected.fit_basis(pictures)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(vae.parameters(), expected.parameters()))
    assert exact_device(torch.device("cuda")) == torch.device("cuda")


def test_neighbouring_latents_beat_the_bare_inverse_of_the_basis():
    vae, pictures = tiny_vae(random=False), smooth_pictures()
    vae.fit_basis(pictures)
    error = (vae(pictures).sample - pictures).square().mean()
    patches = torch.nn.functional.pixel_unshuffle(pictures, 4)
    basis = vae.to_latents.weight[:, :, 0, 0]
    latents = vae.to_latents(patches)
    inverse = torch.linalg.pinv(basis)
    bare = torch.einsum("vl,blhw->bvhw", inverse, latents - vae.to_latents.bias[:, None, None])
    bare_error = (bare - patches).square().mean()
    assert error < bare_error


def test_residuals_are_nothing_at_first_and_learn():
    vae, pictures = tiny_vae(random=False), smooth_pictures(4)
    patches = torch.nn.functional.pixel_unshuffle(pictures, 4)
    assert vae.encoder_residual(patches).abs().max() == 0
    vae(pictures).sample.square().mean().backward()
    assert vae.decoder_residual.conv_out.weight.grad.abs().max() > 0


@pytest.mark.parametrize("size", [(32, 32), (16, 40), (24, 8)])
def test_shapes_are_compressed_by_the_stated_ratio(size):
    vae = tiny_vae()
    pictures = torch.rand(2, 3, *size)
    latents = vae.encode(pictures).latent_dist.mode()
    assert vae.spatial_compression_ratio == 2 ** (len(vae.config.block_out_channels) - 1) == 4
    assert latents.shape == (2, 4, size[0] // 4, size[1] // 4)
    assert vae.decode(latents).sample.shape == pictures.shape
    assert torch.equal(vae.decode(latents, return_dict=False)[0], vae.decode(latents).sample)
    assert torch.equal(vae.encode(pictures, return_dict=False)[0].mode(), latents)


def test_posterior_is_deterministic():
    posterior = tiny_vae().encode(torch.rand(1, 3, 16, 16)).latent_dist
    sample = posterior.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample, posterior.mode(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_tiles_and_slices_equal_the_whole():
    vae = tiny_vae()
    pictures = torch.rand(2, 3, 76, 44)
    latents = vae.encode(pictures).latent_dist.mode()
    decoded = vae.decode(latents).sample
    vae.tile_latent_size = 8
    vae.enable_tiling()
    vae.enable_slicing()
    torch.testing.assert_close(vae.encode(pictures).latent_dist.mode(), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vae.decode(latents).sample, decoded, atol=1e-5, rtol=1e-5)
    vae.disable_tiling()
    vae.disable_slicing()
    assert not vae.use_tiling and not vae.use_slicing


def test_tiles_bound_what_is_seen_at_once(monkeypatch):
    vae = tiny_vae()
    vae.tile_latent_size = 8
    vae.enable_tiling()
    seen = []
    plain = vae._decode
    monkeypatch.setattr(vae, "_decode", lambda tile: (seen.append(tile.shape[-2:]), plain(tile))[1])
    vae.decode(torch.rand(1, 4, 20, 20))
    reach = vae.decoder_residual.reach
    assert len(seen) == 9 and max(max(shape) for shape in seen) <= 8 + 2 * reach


def test_save_and_load_round_trip(tmp_path):
    vae = tiny_vae()
    vae.register_to_config(scaling_factor=1.5, shift_factor=0.25)
    vae.save_pretrained(tmp_path)
    loaded = AutoencoderPatchBasis.from_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    assert loaded.config.scaling_factor == 1.5 and loaded.config.shift_factor == 0.25
    pictures = torch.rand(1, 3, 16, 16)
    assert torch.equal(loaded(pictures).sample, vae(pictures).sample)


def test_shared_latent_functions_normalize_and_invert():
    vae = tiny_vae()
    vae.register_to_config(scaling_factor=2.0, shift_factor=0.5)
    video = torch.rand(2, 3, 3, 16, 16)
    latents = encode_video(vae, video)
    assert latents.shape == (2, 3, 4, 4, 4)
    plain = vae.encode(video.flatten(0, 1)).latent_dist.mode()
    torch.testing.assert_close(latents.flatten(0, 1), (plain - 0.5) * 2)
    torch.testing.assert_close(decode_latents(vae, latents).flatten(0, 1), vae.decode(plain).sample)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite(dtype):
    vae = tiny_vae().to(dtype)
    assert vae(torch.rand(1, 3, 16, 16, dtype=dtype)).sample.isfinite().all()


def test_default_size_fits_a_carried_checkpoint():
    with torch.device("meta"):
        vae = AutoencoderPatchBasis()
    assert vae.spatial_compression_ratio == 8
    assert sum(parameter.numel() for parameter in vae.parameters()) < 1.5e6


@pytest.mark.parametrize(
    "options, message",
    [
        ({"block_out_channels": (8, 16, 8)}, "must be equal"),
        ({"latent_channels": 100, "block_out_channels": (8, 8)}, "must not exceed the 12 values"),
        ({"out_channels": 1}, "out_channels must equal"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderPatchBasis(**options)


def test_sides_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="divisible by 4"):
        tiny_vae().encode(torch.rand(1, 3, 16, 18))
