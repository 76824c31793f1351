"""Autoencoders: their symmetries, the skip at full resolution, what training changes, and those of diffusers."""

from dataclasses import replace

import pytest
import torch

from evoworld.world.autoencoder import AutoencoderConfig, Refiner, make_autoencoder, reconstruction_loss

SMALL = AutoencoderConfig(latent_channels=6, dim=8, refiner_dim=8)
PIXELS = AutoencoderConfig(kind="none", latent_channels=64, refiner_dim=8)


def frames(batch=1, count=2, height=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(batch, count, height, 2 * height, 4, generator=generator) - 1


def smooth_frames(count, height=16, seed=0):
    """Panoramas of a few waves around and a gradient from pole to pole."""
    generator = torch.Generator().manual_seed(seed)
    longitude = torch.arange(2 * height) / (2 * height) * 2 * torch.pi
    phases, latitude = torch.rand(count, 4, 2, generator=generator), torch.linspace(-1, 1, height)
    waves = torch.sin(longitude * torch.tensor([1.0, 2.0])[:, None] + 2 * torch.pi * phases[..., None]).mean(2)
    image = waves[:, :, None, :] * latitude.cos()[:, None] + 0.3 * latitude[:, None]
    return image.movedim(1, -1)[None]


@pytest.mark.parametrize("config", [SMALL, PIXELS, replace(SMALL, factor=8, dim=8)], ids=["vae", "none", "factor 8"])
def test_rolls_with_the_panorama(config, perturb):
    torch.manual_seed(0)
    autoencoder = perturb(make_autoencoder(config)).eval()
    rgbd, skip = frames(), frames(seed=1)
    visibility = (frames(seed=2)[..., 0] > 0).float()
    latents = autoencoder.encode(rgbd)
    factor = config.factor
    assert latents.shape == (1, 2, 16 // factor, 32 // factor, config.latent_channels)
    rolled = autoencoder.encode(rgbd.roll(factor, -2))
    torch.testing.assert_close(rolled, latents.roll(1, -2), atol=1e-5, rtol=1e-5)
    output = autoencoder.decode(latents, skip, visibility)
    turned = latents.roll(1, -2), skip.roll(factor, -2), visibility.roll(factor, -1)
    torch.testing.assert_close(autoencoder.decode(*turned), output.roll(factor, -2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [SMALL, PIXELS], ids=["vae", "none"])
def test_keeps_what_is_visible_before_training(config):
    autoencoder = make_autoencoder(config)
    latents, skip = autoencoder.encode(frames()), frames(seed=1)
    draft = autoencoder.decode(latents)
    assert draft.shape == skip.shape
    visibility = (frames(seed=2)[..., :2] > 0).float()
    expected = torch.cat(
        (
            torch.where(visibility[..., :1] > 0, skip[..., :3], draft[..., :3]),
            torch.where(visibility[..., 1:] > 0, skip[..., 3:], draft[..., 3:]),
        ),
        -1,
    )
    torch.testing.assert_close(autoencoder.decode(latents, skip, visibility), expected)
    one = autoencoder.decode(latents, skip, torch.full(skip.shape[:-1], 0.25))
    torch.testing.assert_close(one, 0.75 * draft + 0.25 * skip)


def test_the_refiner_looks_no_further_than_its_convolutions(perturb):
    refiner = perturb(Refiner(8))
    draft, skip, visibility = frames(height=32), frames(height=32, seed=1), torch.ones(1, 2, 32, 64)
    output = refiner(draft, skip, visibility)
    changed = skip.clone()
    changed[..., 16, 32, :] += 1
    difference = (refiner(draft, changed, visibility) - output).abs().amax((0, 1, 4))
    rows, columns = torch.where(difference > 0)
    assert (rows.min(), rows.max()) == (12, 20) and (columns.min(), columns.max()) == (28, 36)


def test_pixels_are_exact_and_of_about_unit_variance():
    pixels, rgbd = make_autoencoder(PIXELS), frames()
    latents = pixels.encode(rgbd)
    assert torch.equal(pixels.decode(latents), rgbd)
    assert 0.8 < latents.std() < 1.3


def test_training_learns():
    torch.manual_seed(0)
    vae = make_autoencoder(SMALL)
    data, skip = smooth_frames(4), smooth_frames(4, seed=1)
    visibility = torch.zeros(data.shape[:-1])
    visibility[..., :16] = 1
    optimizer = torch.optim.Adam(vae.parameters(), 5e-3)
    first = None
    for _ in range(60):
        parts = vae.loss(data, skip, visibility, generator=torch.Generator().manual_seed(0))
        first = first or {name: part.item() for name, part in parts.items()}
        optimizer.zero_grad()
        sum(parts.values()).backward()
        optimizer.step()
    assert parts.keys() == {"kl", "draft", "refined"}
    assert parts["draft"] < 0.5 * first["draft"] and parts["refined"] < 0.7 * first["refined"]


def test_latents_are_normalised_by_their_running_statistics():
    vae = make_autoencoder(SMALL)
    rgbd = frames()
    spread = 2 * torch.randn(2, 500, SMALL.latent_channels, generator=torch.Generator().manual_seed(0)) + 3
    for raw in spread.expand(400, -1, -1, -1):
        vae.note_statistics(raw)
    torch.testing.assert_close(vae.latent_mean, torch.full((6,), 3.0), atol=0.3, rtol=0)
    torch.testing.assert_close(vae.latent_deviation, torch.full((6,), 2.0), atol=0.2, rtol=0)
    expected = (vae.posterior(rgbd)[0] - vae.latent_mean) / vae.latent_deviation
    torch.testing.assert_close(vae.encode(rgbd), expected)


def test_statistics_are_of_training_alone_and_change_no_draft():
    vae = make_autoencoder(SMALL).eval()
    before = {name: buffer.clone() for name, buffer in vae.named_buffers()}
    vae.loss(frames())
    assert all(torch.equal(buffer, before[name]) for name, buffer in vae.named_buffers())
    draft = vae.decode(vae.encode(frames()))
    vae.train().loss(frames())
    assert not torch.equal(vae.latent_deviation, before["latent_deviation"])
    vae.eval()
    torch.testing.assert_close(vae.decode(vae.encode(frames())), draft, atol=1e-5, rtol=1e-5)


def test_what_is_unknown_teaches_nothing():
    output = frames().requires_grad_()
    known = torch.ones(1, 2, 16, 32, 2)
    known[..., 1] = 0  # a photograph
    known[:, 0] = 0
    reconstruction_loss(output, frames(seed=1), known).backward()
    assert (output.grad[:, 1, ..., :3] != 0).all()
    assert (output.grad[:, 0] == 0).all() and (output.grad[..., 3] == 0).all()


def test_the_poles_count_by_their_area():
    output = torch.zeros(1, 1, 16, 32, 4, requires_grad=True)
    reconstruction_loss(output, torch.ones(1, 1, 16, 32, 4)).backward()
    share = output.grad[0, 0].abs().sum((1, 2))
    latitude = (0.5 - (torch.arange(16) + 0.5) / 16) * torch.pi
    torch.testing.assert_close(share, latitude.cos() / latitude.cos().sum())


def test_gradients_reach_latents_and_skip():
    vae = make_autoencoder(SMALL)
    latents, skip = torch.randn(1, 1, 4, 8, 6, requires_grad=True), frames(count=1).requires_grad_()
    vae.decode(latents, skip, torch.full(skip.shape[:-1], 0.5)).square().sum().backward()
    assert latents.grad.any() and skip.grad.any()


@pytest.mark.parametrize("shape", [(1, 2, 16, 32, 3), (1, 2, 18, 36, 4), (1, 2, 16, 28, 4), (2, 16, 32, 4)])
def test_panoramas_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="PanoramaVAE: rgbd: expected"):
        make_autoencoder(SMALL).encode(torch.zeros(shape))


def test_a_skip_needs_its_visibility():
    with pytest.raises(ValueError, match="expected both or neither"):
        make_autoencoder(PIXELS).decode(torch.zeros(1, 1, 2, 4, 64), skip=torch.zeros(1, 1, 8, 16, 4))


@pytest.mark.parametrize(
    ("options", "name"),
    [({"kind": "vqgan"}, "kind"), ({"factor": 6}, "factor"), ({"kind": "none", "latent_channels": 16}, "latent_chan")],
)
def test_configurations_that_do_not_fit(options, name):
    with pytest.raises(ValueError, match=f"AutoencoderConfig: {name}.*expected"):
        AutoencoderConfig(**options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.1,
    )
    path = tmp_path_factory.mktemp("autoencoder")
    model.save_pretrained(path)
    return str(path)


@pytest.fixture
def pretrained(folder):
    return make_autoencoder(AutoencoderConfig("diffusers", factor=2, latent_channels=8, refiner_dim=8, folder=folder))


@torch.no_grad()
def test_diffusers_autoencoders_become_seamless(pretrained):
    rgbd = frames()
    latents = pretrained.encode(rgbd)
    assert latents.shape == (1, 2, 8, 16, 8)
    torch.testing.assert_close(pretrained.encode(rgbd.roll(6, -2)), latents.roll(3, -2), atol=1e-5, rtol=1e-4)
    output = pretrained.decode(latents)
    assert output.shape == rgbd.shape
    torch.testing.assert_close(pretrained.decode(latents.roll(3, -2)), output.roll(6, -2), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_diffusers_autoencoders_keep_their_weights_and_scale(pretrained, folder):
    from diffusers import AutoencoderKL

    original = AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False)
    assert torch.equal(original.decoder.conv_in.weight, pretrained.frozen.decoder.conv_in.weight)
    assert not any(parameter.requires_grad for parameter in pretrained.frozen.parameters())
    assert not pretrained.train().frozen.training
    rgbd = frames()
    raw = pretrained.frozen.encode(rgbd[0, ..., :3].movedim(-1, 1)).latent_dist.mode()
    torch.testing.assert_close(pretrained.encode(rgbd)[0, ..., :4].movedim(-1, 1), 0.5 * (raw - 0.1))
    flat = pretrained.encode(torch.zeros(1, 1, 16, 32, 4))[0, 0, ..., :4]
    assert flat.flatten(0, 1).std(0).max() < 1e-5, "zeros beyond the borders would show"


def test_diffusers_folders_that_do_not_fit(folder, tmp_path):
    config = AutoencoderConfig("diffusers", factor=2, latent_channels=8, folder=folder)
    with pytest.raises(ValueError, match="factor: expected 2, what .* has, got 4"):
        make_autoencoder(replace(config, factor=4))
    with pytest.raises(ValueError, match="latent_channels: expected 8"):
        make_autoencoder(replace(config, latent_channels=4))
    with pytest.raises(ValueError, match=r"folder: expected a folder that AutoencoderKL.save_pretrained wrote"):
        make_autoencoder(replace(config, folder=str(tmp_path)))
