"""What stands in the place of a block that was cut out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.surgery.layers import split_name
from secateur.surgery.scatter import ScatterLinear
from secateur.surgery.selecting import plain_kind
from secateur.surgery.slim_attention import SlimAttention

Leaves = Literal["nothing", "input", "empty", "pointwise"]
"""What a block that was cut out leaves: zeros (a branch that is added), its input (a whole residual block), features of
width 0 (a branch that is concatenated), or what a 1x1 convolution makes of the input (a convolution)."""


@dataclass(frozen=True, slots=True)
class Block:
    """A module that goes as a whole, its last bias too unless that is named.

    Args:
        module: its qualified name.
        leaves: what stands in its place once it is gone.
        outputs: 1 where the module returns a tensor; the length of the tuple where it returns one, whose first entry
            counts (the others become None).
        arguments: for a module that returns a tuple of several streams: for each entry, the argument of its `forward`
            in whose place it stands; "" for an entry that becomes None.
        part: a submodule that the input still passes through (the shortcut of a residual block); "" for none.
        biases: for each output, the 1-d parameter that is still added to its features; "" for none.
        held: submodules that stay because something outside of the block uses them.
        features_last: pictures that the module reads have their features in the last dimension (SAM's), not in
            dimension 1, so that is where biases are added.
    """

    module: str
    leaves: Leaves = "nothing"
    outputs: int = 1
    arguments: tuple[str, ...] = ()
    part: str = ""
    biases: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    features_last: bool = False

    def pieces(self) -> tuple[str, ...]:
        """Qualified names of the submodules and parameters of the block that stay."""
        names = filter(None, (self.part, *self.biases, *self.held))
        return tuple(f"{self.module}.{name}" for name in names)


def gone_with(name: str, blocks: Mapping[str, Block]) -> bool:
    """Whether a tensor or module of that name goes with one of the blocks (by name), so lies in none that stays."""
    return any(
        name.startswith(f"{block.module}.")
        and not any(name == piece or name.startswith(f"{piece}.") for piece in block.pieces())
        for block in blocks.values()
    )


def stand_in(module: nn.Module, block: Block) -> nn.Module:
    """What stands in the place of `module`; it shares the parameters that stay with it, under their names.

    Raises:
        ValueError: the block names a part, bias or argument that the module lacks, or is no convolution that a 1x1
            convolution could follow.
    """
    made = Pointwise(module, block) if block.leaves == "pointwise" else Gone(module, block)
    return made.train(module.training)


def kind_of(module: nn.Module) -> str:
    """The class name that the module had when it was dense."""
    if isinstance(module, Gone | Pointwise | _Held):
        return module.kind
    dense = {SlimAttention: nn.MultiheadAttention, ScatterLinear: nn.Linear}
    kind = plain_kind(type(module))
    return dense.get(kind, kind).__name__


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The first positional argument, or the first by name."""
    return args[0] if args else next(iter(kwargs.values()))


class Gone(nn.Module):
    """It returns zeros, features of width 0, or what it was given, with the bias that is left."""

    # nn.TransformerEncoderLayer asks its attention for these before it takes its fast path, which this bars.
    batch_first = False
    in_proj_bias = None

    def __init__(self, module: nn.Module, block: Block) -> None:
        super().__init__()
        self.kind = kind_of(module)
        self.block = block
        self.parameters_of_forward = _arguments(module)
        self.batch_first = getattr(module, "batch_first", False)
        for argument in filter(None, block.arguments):
            if argument not in self.parameters_of_forward:
                raise ValueError(f"{block.module}: its forward has no argument {argument!r}")
        for name in filter(None, (block.part, *block.held)):
            _put(self, name, _found(module, name, block, nn.Module), module)
        for name in filter(None, block.biases):
            _put(self, name, _found(module, name, block, nn.Parameter), module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What is left, in a tuple where the block returned one."""
        block = self.block
        if block.arguments:
            return tuple(
                self._left(self._argument(name, args, kwargs), index) if name else None
                for index, name in enumerate(block.arguments)
            )
        left = self._left(first_input(args, kwargs), 0)
        return left if block.outputs == 1 else (left, *[None] * (block.outputs - 1))

    def _left(self, given: Tensor, index: int) -> Tensor:
        block = self.block
        if block.leaves == "empty":
            return given[..., :0]
        left = given if block.leaves == "input" else torch.zeros_like(given)
        if block.part:
            left = self.get_submodule(block.part)(left)
        if index >= len(block.biases) or not block.biases[index]:
            return left
        bias = self.get_parameter(block.biases[index])
        # Most pictures have their features in dimension 1, tokens in the last.
        return left + (bias[:, None, None] if left.dim() == 4 and not block.features_last else bias)

    def _argument(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        position = self.parameters_of_forward.index(name)
        return args[position] if position < len(args) else kwargs[name]

    def extra_repr(self) -> str:
        return f"leaves={self.block.leaves!r}"


class Pointwise(nn.Module):
    """A 1x1 convolution in the place of a larger one, with its stride: at first the sum of the larger one's taps.

    The neural implant of Hessian-aware pruning (HAP, Yu et al., arXiv 2101.08940), which replaces convolutions of
    middling sensitivity (`secateur.importance.curvature`) and removes those below. To start from the taps is ours: it
    is what the convolution itself makes of a picture that is constant within its reach. It reads the pixel that lies
    under the larger kernel's centre, so the output keeps its size.
    """

    def __init__(self, module: nn.Module, block: Block) -> None:
        super().__init__()
        self.kind = kind_of(module)
        self.block = block
        self.weight: nn.Parameter
        self.bias: Tensor | None
        self.stride: tuple[int, ...]
        self.margins: list[tuple[int, int]]
        if isinstance(module, Pointwise):
            self.weight = module.weight
            self.bias = module.bias
            self.stride, self.margins = module.stride, module.margins
            return
        if not isinstance(module, nn.Conv2d) or not has_pointwise(module):
            raise ValueError(f"{block.module}: no plain 2d convolution, so no 1x1 convolution can follow it")
        summed = module.weight.detach().sum(dim=(2, 3), keepdim=True)
        self.weight = nn.Parameter(summed, requires_grad=module.weight.requires_grad)
        self.bias = module.bias
        self.stride = module.stride
        self.margins = [(size // 2 - pad, (size - 1) // 2 - pad) for size, pad in _kernel(module)]

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """(N, out, height, width) of x (N, in, height, width), of the size that the larger convolution gives."""
        return F.conv2d(self.centres(x), self.weight, self.bias)

    def centres(self, x: Tensor) -> Tensor:
        """The pixels that it reads, one for each pixel of the output."""
        (top, bottom), (left, right) = self.margins
        down, across = self.stride
        return x[:, :, top : x.shape[2] - bottom : down, left : x.shape[3] - right : across]


def has_pointwise(convolution: nn.Conv2d) -> bool:
    """Whether a 1x1 convolution can take its place and is smaller."""
    plain = convolution.groups == 1 and set(convolution.dilation) == {1} and not isinstance(convolution.padding, str)
    larger = plain and max(convolution.kernel_size) > 1
    return larger and all(pad <= (size - 1) // 2 for size, pad in _kernel(convolution))


def _kernel(convolution: nn.Conv2d) -> list[tuple[int, int]]:
    """(size, padding) of each dimension of the kernel."""
    paddings: Any = convolution.padding
    return list(zip(convolution.kernel_size, paddings, strict=True))


def kept_elements(name: str, shape: tuple[int, ...] | torch.Size, block: Block) -> int:
    """Elements of a tensor in the block, of that name and shape, that are left once the block is gone."""
    if block.leaves == "pointwise":
        return int(torch.Size(shape[:2]).numel())
    return 0 if gone_with(name, {"": block}) else int(torch.Size(shape).numel())


def _arguments(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, Gone):
        return module.parameters_of_forward
    return tuple(inspect.signature(module.forward).parameters)


def _found(module: nn.Module, name: str, block: Block, kind: type) -> Any:
    owner, last = split_name(name)
    found: Any = None
    try:
        parent = module.get_submodule(owner)
        found = parent._modules.get(last) if kind is nn.Module else parent._parameters.get(last)
    except AttributeError:
        pass
    if found is None:
        what = "submodule" if kind is nn.Module else "parameter"
        raise ValueError(f"{block.module}: it has no {what} {name!r}")
    return found


class _Held(nn.Module):
    """What is left of a module of which a part stays."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind


def _put(root: nn.Module, name: str, value: nn.Module | nn.Parameter, dense: nn.Module) -> None:
    """Give `root` the module or parameter under its dotted name in `dense`, through modules that hold nothing else."""
    owner, last = split_name(name)
    holder = root
    for step in filter(None, owner.split(".")):
        dense = dense._modules[step]  # type: ignore[assignment]
        if step not in holder._modules:
            holder.add_module(step, _Held(kind_of(dense)))
        holder = holder._modules[step]  # type: ignore[assignment]
    if isinstance(value, nn.Module):
        holder.add_module(last, value)
    else:
        holder.register_parameter(last, value)
