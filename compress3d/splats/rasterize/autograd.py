"""The differentiable steps of the CPU rasteriser: projection, colours, compositing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compress3d.splats.rasterize.blend_backward import blend_backward
from compress3d.splats.rasterize.cpu import Gaussians, Lens, View, as_array, blend_view, project_arrays
from compress3d.splats.rasterize.harmonics import project_colors, project_colors_backward
from compress3d.splats.rasterize.project_backward import project_backward
from compress3d.splats.rasterize.tiles import TileLists


class Project(torch.autograd.Function):
    """(means, quats, scales, opacities, viewmat, view, lens) -> means2d, conics, depths, peaks, radii of one camera.

    The radii are not differentiable; `view` is the same camera as numpy.
    """

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        viewmat: Tensor,
        view: View,
        lens: Lens,
    ) -> tuple[Tensor, ...]:
        gaussians = Gaussians(as_array(means), as_array(quats), as_array(scales), as_array(opacities))
        outputs = tuple(torch.from_numpy(array) for array in project_arrays(*gaussians, view, lens))
        ctx.gaussians, ctx.view, ctx.lens = gaussians, view, lens
        ctx.save_for_backward(outputs[1], outputs[3], outputs[4])
        ctx.mark_non_differentiable(outputs[4])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        view, lens = ctx.view, ctx.lens
        camera = (view.viewmat, view.K, view.width, view.height, np.float32(lens.eps2d), lens.antialiased)
        outputs = (tensor.numpy() for tensor in ctx.saved_tensors)
        incoming = (as_array(gradient) for gradient in gradients[:4])
        arguments: tuple[Any, ...] = (*ctx.gaussians, *camera, *outputs, *incoming)
        return (*(torch.from_numpy(array) for array in project_backward(*arguments)), None, None)


class Harmonics(torch.autograd.Function):
    """(means, sh0, shN, viewmat, degree, view, order) -> (M, D) colours towards one camera."""

    @staticmethod
    def forward(
        ctx: Any, means: Tensor, sh0: Tensor, shN: Tensor, viewmat: Tensor, degree: int, view: View, order: np.ndarray
    ) -> Tensor:
        arrays: tuple[Any, ...] = (as_array(means), as_array(sh0), as_array(shN), view.position, degree, order)
        colors = project_colors(*arrays)
        ctx.arrays, ctx.viewmat, ctx.colors = arrays, view.viewmat, colors
        return torch.from_numpy(colors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_colors: Tensor) -> tuple[Tensor | None, ...]:
        arguments: tuple[Any, ...] = (*ctx.arrays, ctx.colors, as_array(v_colors))
        v_means, v_sh0, v_shN, v_camera = (torch.from_numpy(array) for array in project_colors_backward(*arguments))
        # The camera's centre is -R^-1 t, as gsplat differentiates it: not only along rotations.
        turned = torch.from_numpy(ctx.viewmat[:3, :3]) @ v_camera
        v_viewmat = torch.zeros(4, 4)
        v_viewmat[:3, :3] = -turned[:, None] * torch.from_numpy(ctx.arrays[3])
        v_viewmat[:3, 3] = -turned
        return v_means, v_sh0, v_shN, v_viewmat, None, None, None


class Blend(torch.autograd.Function):
    """(means2d, conics, peaks, colors, background, tiles, view, absgrad) -> image (H, W, D), alphas (H, W).

    `tiles` are the lists of the first three; `colors` (M, D) are in their order. `absgrad` is None or the (N, 2) tensor
    that takes the sum over pixels of |d loss / d means2d| in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, means2d: Tensor, conics: Tensor, peaks: Tensor, colors: Tensor, background: Tensor, tiles: TileLists,
        view: View, absgrad: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        features = as_array(colors)
        image, alphas = blend_view(tiles, features, as_array(background), view)
        ctx.arrays, ctx.count, ctx.absgrad = (tiles, features, image, alphas), len(means2d), absgrad
        return torch.from_numpy(image), torch.from_numpy(alphas)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_image: Tensor, v_alphas: Tensor) -> tuple[Tensor | None, ...]:
        v_pixels = as_array(v_image)
        arguments: tuple[Any, ...] = (*ctx.arrays, v_pixels, as_array(v_alphas), ctx.count, ctx.absgrad is not None)
        gradients = blend_backward(*arguments)
        if ctx.absgrad is not None:
            ctx.absgrad.copy_(torch.from_numpy(gradients.absolute))
        # Not BLAS: its threads spin for a while after each call and take the cores from the next kernel.
        v_background = torch.from_numpy(np.einsum("hw,hwd->d", np.float32(1.0) - ctx.arrays[3], v_pixels))
        arrays = (gradients.means2d, gradients.conics, gradients.peaks, gradients.colors)
        return (*(torch.from_numpy(array) for array in arrays), v_background, None, None, None)
