"""Gradient penalties. They run in float32 outside autocast: double backward through bf16 is 5 % off (P 12.2)."""

from collections.abc import Callable

import torch
from torch import Tensor


def gradient_penalty(critic: Callable[[Tensor], Tensor], reals: Tensor, fakes: Tensor) -> Tensor:
    """Mean of (|grad| - 1)^2 at a random point between each of the fakes [N, C, H, W] and its real, or the only one (Gulrajani
    et al. 2017); the norm is that of each pixel's channels, as in SinGAN's released code, not of the image, as originally."""
    with torch.autocast(reals.device.type, enabled=False):
        mix = torch.rand(len(fakes), 1, 1, 1, device=reals.device)
        between = torch.lerp(fakes.detach().float(), reals.detach().float(), mix).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        return (gradient.norm(2, dim=1) - 1).square().mean()


def r1_penalty(discriminate: Callable[[Tensor], Tensor], reals: Tensor) -> Tensor:
    """Mean over images of the squared gradient of the logit (Mescheder et al. 2018); maps of logits count by their mean."""
    with torch.autocast(reals.device.type, enabled=False):
        reals = reals.detach().float().requires_grad_()
        logits = discriminate(reals)
        (gradient,) = torch.autograd.grad(logits.flatten(1).mean(1).sum(), reals, create_graph=True)
        # 0 · D(x) gives parameters without influence on the gradient, such as the last bias, a gradient of zero.
        return gradient.square().sum((1, 2, 3)).mean() + 0 * logits.sum()


def path_lengths(synthesize: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    """Path length [N] of each latent [N, L, D] (Karras et al. 2020): root of the mean over layers of |J^T y|^2 for images y of
    Gaussian noise, scaled by 1 / sqrt(H W)."""
    with torch.autocast(latents.device.type, enabled=False):
        latents = latents.float()
        if not latents.requires_grad:
            latents = latents.requires_grad_()
        images = synthesize(latents)
        noise = torch.randn_like(images) / (images.shape[-2] * images.shape[-1]) ** 0.5
        (gradient,) = torch.autograd.grad((images * noise).sum(), latents, create_graph=True)
        return gradient.square().sum(2).mean(1).sqrt() + 0 * images.sum()
