"""What a network and its units cost: parameters, bytes, multiply-adds, time.

Multiply-adds are those of one forward of given inputs, attention's products between activations included, which torch's
own counter misses where a CPU runs attention fused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.metrics.speed import Speed, measure_speed
from secateur.surgery.cut import Count
from secateur.surgery.layers import owned_elements
from secateur.surgery.stand_in import Block, gone_with, kept_elements
from secateur.units import UnitGroup

_MATRIX_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm}
_ATTENTIONS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    torch.ops.aten._scaled_dot_product_flash_attention,
    torch.ops.aten._scaled_dot_product_efficient_attention,
    torch.ops.aten._scaled_dot_product_cudnn_attention,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable,
}


@dataclass(frozen=True, slots=True)
class Usage:
    """How one forward uses the weights.

    Args:
        products: parameter name -> multiply-adds that each of its elements takes part in.
        mixing: module name -> multiply-adds between activations in that module itself (attention's QK^T and AV).
        macs: all of them together.
    """

    products: Mapping[str, float]
    mixing: Mapping[str, float]
    macs: float


def run_example(module: nn.Module, example_inputs: Any) -> Any:
    """Call the module with a tensor, a tuple of arguments, or a dict of them by name."""
    if isinstance(example_inputs, Mapping):
        return module(**example_inputs)
    return module(*example_inputs) if isinstance(example_inputs, tuple | list) else module(example_inputs)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """While the context is open, every layer is in evaluation mode; each then returns to the mode it was in."""
    training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        yield
    finally:
        for child in training:
            child.training = True


def count_params(module: nn.Module) -> int:
    """Elements of all parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones once."""
    held: Iterable[Tensor] = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def count_macs(module: nn.Module, example_inputs: Any) -> int:
    """Multiply-adds of a forward of the example inputs, attention included."""
    return round(measure_usage(module, example_inputs).macs)


def measure_latency(module: nn.Module, example_inputs: Any, *, repeats: int = 5, threads: int | None = None) -> Speed:
    """The time of a forward of the example inputs, without gradients, in evaluation mode."""
    with evaluating(module), torch.no_grad():
        return measure_speed(lambda _frame: run_example(module, example_inputs), 1, repeats=repeats, threads=threads)


def measure_usage(module: nn.Module, example_inputs: Any) -> Usage:
    """Run a forward of the example inputs and note how often each weight is used. Works on the meta device."""
    counter = _Counter(module)
    with evaluating(module), torch.no_grad(), counter.watching():
        run_example(module, example_inputs)
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    macs = counter.products | counter.recurrent
    products = {name: amount / sizes[name] for name, amount in macs.items() if sizes[name]}
    return Usage(products, counter.mixing, sum(macs.values()) + sum(counter.mixing.values()))


class _Counter(TorchDispatchMode):
    """Sees every product of matrices that torch runs, on which weight, and in which module.

    A weight is known by its storage, so that views and transposes of it count too.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.names = {_storage(parameter): name for name, parameter in module.named_parameters()}
        self.products: dict[str, float] = {}
        self.recurrent: dict[str, float] = {}
        self.mixing: dict[str, float] = {}
        self.places: list[str] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what runs while the context is open."""
        fast_path = torch.backends.mha.get_fastpath_enabled()
        with ExitStack() as stack:
            for name, child in self.module.named_modules():
                stack.enter_context(_hooked(child.register_forward_pre_hook(lambda *_, name=name: self._enter(name))))
                stack.enter_context(_hooked(child.register_forward_hook(self._leave, always_call=True)))
                if isinstance(child, nn.RNNBase):
                    stack.enter_context(_hooked(child.register_forward_hook(self._recur)))
            # The fast path of torch's transformer layers is one operation that shows none of its products.
            torch.backends.mha.set_fastpath_enabled(False)
            stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
            stack.enter_context(self)
            yield

    def _enter(self, name: str) -> None:
        self.places.append(name)

    def _leave(self, *_: Any) -> None:
        self.places.pop()

    def _recur(self, layer: nn.RNNBase, args: tuple[Any, ...], _output: Any) -> None:
        """A recurrent layer uses each weight once for each step of each sequence; what it runs fused shows nothing."""
        steps = args[0].data.numel() / args[0].data.shape[-1]
        for name, parameter in layer.named_parameters(recurse=False):
            if name.startswith("weight"):
                _add(self.recurrent, self.names[_storage(parameter)], steps * parameter.numel())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in _MATRIX_PRODUCTS:
            left, right = args[-2:]
            self._count(left.numel() * right.shape[-1], left, right)
        elif packet is torch.ops.aten.convolution:
            positions = args[0] if args[6] else output
            weight = args[1]
            batched = positions.dim() == weight.dim()
            places = positions.numel() / positions.shape[1 if batched else 0]
            self._count(places * weight.numel(), weight)
        elif str(packet) == "secateur.block_product":
            self._count(len(args[0]) * args[1].numel(), args[1])
        elif packet in _ATTENTIONS:
            q, k, v = args[:3]
            _add(self.mixing, self._place(), q.numel() * k.shape[-2] * (1 + v.shape[-1] / q.shape[-1]))
        return output

    def _count(self, macs: float, *operands: Tensor) -> None:
        names = [self.names[_storage(operand)] for operand in operands if _storage(operand) in self.names]
        if names:
            _add(self.products, names[0], macs)
        else:
            _add(self.mixing, self._place(), macs)

    def _place(self) -> str:
        return self.places[-1] if self.places else ""


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _add(totals: dict[str, float], name: str, amount: float) -> None:
    totals[name] = totals.get(name, 0) + amount


@contextmanager
def _hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def with_costs(
    groups: Sequence[UnitGroup],
    tensors: Mapping[str, Tensor],
    usage: Usage | None,
    counts: Sequence[Count],
    blocks: Mapping[str, Sequence[Block]],
) -> tuple[UnitGroup, ...]:
    """The groups with what removing one unit of each saves: "params", "bytes", and "macs" where the usage is known.

    Other costs that a group names (time, say) stay as they are. Multiply-adds between activations in a module go to the
    groups whose units that module counts (attention's to its heads), and to those that remove it whole. What a block
    holds for others counts as used by them alone.
    """
    costed = []
    for group in groups:
        owned = _owned(group, tensors, blocks.get(group.name))
        parameters = (count for name, count in owned.items() if isinstance(tensors[name], nn.Parameter))
        costs = {
            "params": _sum(parameters, group.size),
            "bytes": _sum((count * tensors[name].element_size() for name, count in owned.items()), group.size),
        }
        if usage is not None:
            products = (count * usage.products[name] for name, count in owned.items() if name in usage.products)
            costs["macs"] = _sum(products, group.size) + _mixing(group, usage, counts, blocks.get(group.name))
        costed.append(replace(group, cost=dict(group.cost) | costs))
    return tuple(costed)


def _mixing(group: UnitGroup, usage: Usage, counts: Sequence[Count], blocks: Sequence[Block] | None) -> Tensor:
    """(size,) multiply-adds between activations that go with each unit."""
    if blocks is not None:
        each = [sum(n for name, n in usage.mixing.items() if gone_with(f"{name}.", {"": block})) for block in blocks]
        return torch.tensor(each, dtype=torch.float64)
    modules = {count.module for count in counts if count.group == group.name}
    share = sum(usage.mixing.get(module, 0.0) for module in modules) / group.size
    return torch.full((group.size,), share, dtype=torch.float64)


def _owned(group: UnitGroup, tensors: Mapping[str, Tensor], blocks: Sequence[Block] | None) -> dict[str, Tensor]:
    """Tensor name -> (size,) elements that each unit owns; what it owns along two dimensions counts once."""
    if blocks is not None:
        return {
            name: torch.tensor([_lost_elements(name, tensor, block) for block in blocks]).double()
            for name, tensor in tensors.items()
        }
    rows: dict[str, dict[int, int]] = {}
    for member in group.members:
        each = 1 if member.rows is None else member.rows.shape[1]
        dims = rows.setdefault(member.param, {})
        dims[member.dim] = dims.get(member.dim, 0) + each
    return {
        name: torch.full((group.size,), float(owned_elements(dims, tensors[name].shape)), dtype=torch.float64)
        for name, dims in rows.items()
    }


def _lost_elements(name: str, tensor: Tensor, block: Block) -> int:
    inside = name.startswith(f"{block.module}.")
    return tensor.numel() - kept_elements(name, tensor.shape, block) if inside else 0


def _sum(amounts: Iterable[Tensor], size: int) -> Tensor:
    return sum(amounts, torch.zeros(size, dtype=torch.float64))
