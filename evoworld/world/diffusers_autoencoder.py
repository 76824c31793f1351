"""A pretrained autoencoder of diffusers for RGB-D panoramas: made seamless, and left as it was trained."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from evoworld.nn import SphericalPad2d, replace_conv2d

from .autoencoder import Autoencoder, AutoencoderConfig, from_planes, to_planes

DEPTH_CHANNELS = 3  # of the image that the depth is shown as, three times the same


class DiffusersAutoencoder(Autoencoder):
    """An AutoencoderKL from a local folder: colours as one image, log-depth as a second, grey one.

    Its convolutions become spherical, those of stride 2 with their padding to one side too. Its weights are not
    trained, and are not part of a saved model, which names the folder; the `Refiner` after it is ours.

    Args:
        config: of kind "diffusers", with the folder that ``AutoencoderKL.save_pretrained`` wrote, the factor, and
            latent_channels twice those of the autoencoder.

    Raises:
        ModuleNotFoundError: diffusers is not installed.
        ValueError: the folder holds no model of diffusers, or an autoencoder of other sizes.
        OSError: its weights are missing or damaged.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        frozen = load_autoencoder_kl(config.folder)
        scale = 1 / frozen.config.scaling_factor
        super().__init__(config, deviation=scale, mean=frozen.config.shift_factor or 0.0)
        factor = 2 ** (len(frozen.config.block_out_channels) - 1)
        for name, found in (("factor", factor), ("latent_channels", 2 * frozen.config.latent_channels)):
            if getattr(config, name) != found:
                raise ValueError(
                    f"DiffusersAutoencoder: {name}: expected {found}, what {config.folder} has, "
                    f"got {getattr(config, name)}"
                )
        self.frozen = make_spherical(frozen).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> DiffusersAutoencoder:
        super().train(mode)
        self.frozen.eval()
        return self

    def posterior(
        self,
        rgbd: Tensor,  # [B, T, H, W, 4]
    ) -> tuple[Tensor, None]:  # [B, T, h, w, C]
        colour, depth = rgbd[..., :3], rgbd[..., 3:].expand(*rgbd.shape[:-1], DEPTH_CHANNELS)
        latents = [self.frozen.encode(to_planes(image)).latent_dist.mode() for image in (colour, depth)]
        return from_planes(torch.cat(latents, 1), rgbd.shape[:2]), None

    def draft_raw(
        self,
        raw: Tensor,  # [B, T, h, w, C]
    ) -> Tensor:  # [B, T, H, W, 4]
        colour, depth = (self.frozen.decode(half).sample for half in to_planes(raw).chunk(2, 1))
        return from_planes(torch.cat((colour, depth.mean(1, keepdim=True)), 1), raw.shape[:2])


def load_autoencoder_kl(folder: str) -> nn.Module:
    try:
        from diffusers import AutoencoderKL
    except ModuleNotFoundError as error:
        message = "diffusers is missing, which reads its autoencoders; pip install 'evoworld[diffusers]'"
        raise ModuleNotFoundError(message, name=error.name) from None
    if not (Path(folder) / "config.json").is_file():
        expected = "a folder that AutoencoderKL.save_pretrained wrote"
        raise ValueError(f"DiffusersAutoencoder: folder: expected {expected}, got {folder!r}")
    return AutoencoderKL.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)


def make_spherical(autoencoder: nn.Module) -> nn.Module:
    """Spherical convolutions throughout; halvings that pad by a function of their own get a module for it instead."""
    from diffusers.models.downsampling import Downsample2D

    for module in autoencoder.modules():
        if isinstance(module, Downsample2D) and module.use_conv and module.padding == 0:
            module.conv = nn.Sequential(SphericalPad2d((0, 1, 0, 1)), module.conv)
            module.padding = 1  # so that it does not pad with zeros
    return replace_conv2d(autoencoder)
