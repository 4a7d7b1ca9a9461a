"""Linear layers that hold and multiply only the blocks of their weight that stay.

    keep = {name: mask of blocks}                     # LPViT, block movement, or any other choice
    small = with_blocks(model, keep)                  # nn.Linear -> BlockSparseLinear where that is faster
    save_block_sparse(small, path); load_block_sparse(path, build)      # secateur.block_sparse_files

On a CPU in float32 the product runs over kept blocks alone (`secateur.block_sparse_kernels`), forward and backward;
elsewhere it is a dense product with a weight that is put together from the blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from secateur.blocks import BlockedCSR, from_blocked_csr, to_blocked_csr

DENSE_FROM = 0.9
"""Share of kept blocks from which `with_blocks` leaves a layer dense.

With vectors of 16 numbers the kernel is as fast as torch's product even where all blocks stay (1.0 to 1.4 times for
16 x 16, 1.5 to 2.2 for wider ones, in scripts/bench/results/block_sparse.json, on a processor for which MKL takes
vectors of 8). Held to vectors of 8 itself, it breaks even at this share. Below it is faster whatever the blocks.
"""


class BlockSparseLinear(nn.Module):
    """y = x W^T + b with the blocks of W that are held; fine-tuned, it learns these.

    Args:
        matrix: W, (out_features, in_features). Its values are copied.
        bias: (out_features,) or None; copied.

    Raises:
        ValueError: the bias does not fit.
    """

    columns: Tensor
    starts: Tensor

    def __init__(self, matrix: BlockedCSR, bias: Float[Tensor, " out"] | None = None) -> None:
        super().__init__()
        _, rows, width = matrix.values.shape
        self.out_features = (len(matrix.crow_indices) - 1) * rows
        self.in_features = matrix.wide * width
        if bias is not None and bias.shape != (self.out_features,):
            raise ValueError(f"the bias must be ({self.out_features},), got {tuple(bias.shape)}")
        # Transposed: outputs lie next to one another, as the kernel's vectors do.
        values = matrix.values.detach().transpose(1, 2).clone(memory_format=torch.contiguous_format)
        self.blocks = nn.Parameter(values)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.register_buffer("columns", matrix.col_indices.clone())
        self.register_buffer("starts", matrix.crow_indices.clone())

    @classmethod
    def of(cls, layer: nn.Linear, keep: Bool[Tensor, "high wide"]) -> BlockSparseLinear:
        """The layer without the blocks that go.

        Raises:
            ValueError: its weight has no such whole blocks.
        """
        sparse = cls(to_blocked_csr(layer.weight.detach(), keep.to(layer.weight.device)), layer.bias)
        return sparse.train(layer.training)

    def matrix(self) -> BlockedCSR:
        """W, differentiable in the blocks."""
        wide = self.in_features // self.blocks.shape[1]
        return BlockedCSR(self.blocks.transpose(1, 2), self.columns, self.starts, wide)

    def to_linear(self) -> nn.Linear:
        """A dense layer with zeros where no block is held."""
        weight = from_blocked_csr(self.matrix()).detach()
        layer = nn.utils.skip_init(
            nn.Linear, self.in_features, self.out_features, bias=self.bias is not None, device=weight.device,
            dtype=weight.dtype,
        )  # fmt: skip
        layer.weight.data = weight
        if self.bias is not None:
            layer.bias.data = self.bias.detach().clone()
        return layer.train(self.training)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"inputs must end in {self.in_features} features, got shape {tuple(x.shape)}")
        if x.is_cpu and x.dtype == self.blocks.dtype == torch.float32 and x.numel() and has_kernel(self.blocks.shape):
            flat = x.reshape(-1, self.in_features)
            return block_product(flat, self.blocks, self.columns, self.starts, self.bias).view(*x.shape[:-1], -1)
        return nn.functional.linear(x, from_blocked_csr(self.matrix()), self.bias)

    def multiply_adds(self) -> int:
        """Of one row of the input."""
        return self.blocks.numel()

    def extra_repr(self) -> str:
        kept, width, rows = self.blocks.shape
        blocks = self.in_features * self.out_features // (width * rows)
        return f"{self.in_features}, {self.out_features}, {kept} of {blocks} blocks of {rows} x {width}"


def has_kernel(shape: torch.Size) -> bool:
    """Whether products with blocks of these last two sizes have a kernel: whole vectors, in both directions."""
    from secateur.block_sparse_kernels import LANES

    return shape[-1] % LANES == 0 == shape[-2] % LANES


def with_blocks(
    module: nn.Module, keep: Mapping[str, Bool[Tensor, "high wide"]], dense_from: float = DENSE_FROM
) -> nn.Module:
    """A copy of the module whose linear layers hold only the blocks that stay; `module` is left as it is.

    Layers that keep everything are left as they are, bit for bit. Those that keep `dense_from` of their blocks or more
    stay dense, with zeros; and so do those whose blocks have no kernel.

    Args:
        module: the network.
        keep: name of a linear layer -> which of its blocks stay; the mask's shape says how large a block is.
        dense_from: see above; above 1: every layer that loses a block becomes sparse.

    Raises:
        ValueError: there is no linear layer of that name, its weight is shared, or it has no such whole blocks.
    """
    layers = {name: _linear(module, name) for name in keep}
    weights = [id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False)]
    shared = [name for name, layer in layers.items() if weights.count(id(layer.weight)) > 1]
    if shared:
        raise ValueError(f"the weight of {shared[0]!r} is used by another layer too; blocks cannot go from one of them")
    memo: dict[int, Any] = {}
    for name, layer in layers.items():
        kept = keep[name]
        if not bool(kept.all()):
            sparse = BlockSparseLinear.of(layer, kept)
            share = float(kept.double().mean())
            fast = share < dense_from and (dense_from > 1 or has_kernel(sparse.blocks.shape))
            memo[id(layer)] = sparse if fast else sparse.to_linear()
    return copy.deepcopy(module, memo)


def _linear(module: nn.Module, name: str) -> nn.Linear:
    layer = dict(module.named_modules()).get(name)
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"the network has no linear layer {name!r}: it is {type(layer).__name__}")
    return layer


@torch.library.custom_op("secateur::block_product", mutates_args=())
def block_product(
    x: torch.Tensor, blocks: torch.Tensor, columns: torch.Tensor, starts: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """x W^T + bias over kept blocks, differentiable in x, blocks and bias.

    Args:
        x: (n, d_in) float32 on the CPU, like all of these.
        blocks: (kept, width, height) transposed blocks, in the order of blocked CSR.
        columns: (kept,) int64.
        starts: (high + 1,) int64.
        bias: (high * height,) or None.

    Returns:
        (n, high * height).
    """
    from secateur.block_sparse_kernels import TILE_ROWS, multiply

    n, outputs = len(x), (len(starts) - 1) * blocks.shape[2]
    added = x.new_zeros(outputs) if bias is None else bias.detach().contiguous()
    rows = x.detach().contiguous()
    if n < TILE_ROWS:
        rows = nn.functional.pad(rows, (0, 0, 0, TILE_ROWS - n))
    y = x.new_empty(len(rows), outputs)
    multiply(
        rows.numpy(), blocks.detach().contiguous().numpy(), columns.numpy(), starts.numpy(), added.numpy(), y.numpy()
    )
    return y if len(y) == n else y[:n].clone()


@block_product.register_fake
def _(
    x: torch.Tensor, blocks: torch.Tensor, columns: torch.Tensor, starts: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return x.new_empty(x.shape[0], (starts.shape[0] - 1) * blocks.shape[2])


@torch.library.custom_op("secateur::block_product_blocks", mutates_args=())
def _product_of_blocks(
    x: torch.Tensor, gradient: torch.Tensor, blocks: torch.Tensor, columns: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    """The gradient in the blocks, shaped like them, of which only the shape is looked at."""
    from secateur.block_sparse_kernels import block_gradients

    rows = torch.arange(len(starts) - 1).repeat_interleave(starts.diff())
    out = torch.zeros(blocks.shape)
    block_gradients(
        x.detach().contiguous().numpy(), gradient.detach().contiguous().numpy(), rows.numpy(), columns.numpy(),
        out.numpy(),
    )  # fmt: skip
    return out


@_product_of_blocks.register_fake
def _(
    x: torch.Tensor, gradient: torch.Tensor, blocks: torch.Tensor, columns: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    return torch.empty_like(blocks)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, blocks, columns, starts, bias = inputs
    ctx.save_for_backward(x, blocks, columns, starts)
    ctx.biased = bias is not None


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, blocks, columns, starts = ctx.saved_tensors
    into_x = into_blocks = into_bias = None
    if ctx.needs_input_grad[0]:
        into_x = block_product(gradient, *_transposed(blocks, columns, starts, x.shape[1]), None)
    if ctx.needs_input_grad[1]:
        into_blocks = _product_of_blocks(x, gradient, blocks, columns, starts)
    if ctx.biased and ctx.needs_input_grad[4]:
        into_bias = gradient.sum(0)
    return into_x, into_blocks, None, None, into_bias


block_product.register_autograd(_backward, setup_context=_remember)


def _transposed(blocks: Tensor, columns: Tensor, starts: Tensor, d_in: int) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks, columns and starts of W^T: column by column of W."""
    order = columns.argsort(stable=True)
    rows = torch.arange(len(starts) - 1, device=columns.device).repeat_interleave(starts.diff())
    counts = torch.bincount(columns, minlength=d_in // blocks.shape[1])
    return blocks[order].transpose(1, 2).contiguous(), rows[order], torch.cat([counts.new_zeros(1), counts.cumsum(0)])
