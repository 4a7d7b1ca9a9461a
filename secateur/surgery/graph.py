"""Unit maps by tracing: torch-pruning's dependency graph, turned into `UnitGroup`s.

torch-pruning (DepGraph, Fang et al., arXiv 2301.12900) says which layers' channels hang together, and how an index
moves through concatenations, splits and flattening. From that this module takes the closure itself, because
torch-pruning's own groups forget which channels are coupled *within* a layer (a GEGLU's value and gate): channels that
reach the same row of any layer are one unit, as are the channels of a norm group, and equal offsets in the groups of a
grouped convolution.
What tracing gets wrong is caught by running it: each group's mask and cut have to agree on the example inputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning.dependency.node import Node
from torch_pruning.ops import OPTYPE, _OutputOp

from secateur.surgery.attention import multihead_attention_group
from secateur.surgery.closure import Pruning, Reached, closure, rows_by_unit, units_of
from secateur.surgery.cost import evaluating, run_example
from secateur.surgery.cut import Count
from secateur.surgery.layer_members import Unsupported, coupled_rows, members_of
from secateur.surgery.layers import find_quantised, shared_names
from secateur.surgery.network import Network, reads_units
from secateur.surgery.verify import find_miscut
from secateur.units import UnitGroup


def trace(
    module: nn.Module, example_inputs: Any, *, ignored: Iterable[str | nn.Module] = (), check: bool = True
) -> Network:
    """Find the units of a network by tracing it.

    A unit is an output channel of a convolution or linear layer, or a hidden state of a recurrent layer of one
    direction and depth, with all that depends on it; and each head of an `nn.MultiheadAttention`. Groups are named
    after their first layer. Layers whose channels are in no group, because they reach the network's output or cannot go
    one by one, are in `Network.left_out` with the reason.

    Args:
        module: the network, which is left as it is. It runs once in evaluation mode.
        example_inputs: what it is called with: a tensor, or a tuple of arguments, or a dict of them by name.
        ignored: layers (or their names) that keep all their outputs; a container's name stands for all in it.
        check: run the masked and the cut network on the example inputs, and leave out groups where they disagree.

    Raises:
        ValueError: the module is quantised, `ignored` names nothing, or the forward fails.
    """
    quantised = next(find_quantised(module), None)
    if quantised is not None:
        raise ValueError(f"{quantised!r} is quantised; trace and cut first, quantise afterwards")
    kept_whole = _ignored_names(module, ignored)
    graph = _build(module, example_inputs)
    tracer = _Tracer(module, graph, kept_whole)
    tracer.run()
    network = _network(module, tracer, example_inputs)
    if not check:
        return network
    miscut = find_miscut(network)
    if not miscut:
        return network
    tracer.groups = [group for group in tracer.groups if group.name not in miscut]
    tracer.left_out |= miscut
    return _network(module, tracer, example_inputs)


def _network(module: nn.Module, tracer: _Tracer, example_inputs: Any) -> Network:
    names = {group.name for group in tracer.groups}
    counts = [count for count in tracer.counts if count.group in names]
    return Network(module, tracer.groups, example_inputs, counts=counts, left_out=tracer.left_out)


def _ignored_names(module: nn.Module, ignored: Iterable[str | nn.Module]) -> set[str]:
    named = dict(module.named_modules())
    by_id = {id(child): name for name, child in named.items()}
    found = set()
    for entry in ignored:
        name = entry if isinstance(entry, str) else by_id.get(id(entry))
        if name is None or name not in named:
            raise ValueError(f"ignored: the network has no module {entry!r}")
        found |= {inner for inner in named if inner == name or inner.startswith(f"{name}.") or not name}
    return found


class _RecurrentWidths(torch_pruning.BasePruningFunc):
    """Tells torch-pruning how wide recurrent layers are; the cutting is done here, not there."""

    def prune_out_channels(self, layer: nn.RNNBase, idxs: Any) -> nn.RNNBase:
        return layer

    def prune_in_channels(self, layer: nn.RNNBase, idxs: Any) -> nn.RNNBase:
        return layer

    def get_out_channels(self, layer: nn.RNNBase) -> int:
        return layer.hidden_size

    def get_in_channels(self, layer: nn.RNNBase) -> int:
        return layer.input_size


def _build(module: nn.Module, example_inputs: Any) -> torch_pruning.DependencyGraph:
    """torch-pruning's graph of the module, whose modes and frozen parameters are as before afterwards."""

    def forward(model: nn.Module, inputs: Any) -> Any:
        try:
            return run_example(model, inputs)
        except Exception as error:
            raise ValueError(f"{type(model).__name__} cannot be traced: {_where(error, model)}{error}") from error

    recurrent = {kind: _RecurrentWidths() for kind in (nn.GRU, nn.RNN, nn.LSTM)}
    with ExitStack() as stack:
        for context in (evaluating(module), _thawed(module), _opaque(module), _without_fast_path()):
            stack.enter_context(context)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        return torch_pruning.DependencyGraph().build_dependency(
            module, example_inputs, forward_fn=forward, customized_pruners=recurrent, verbose=False
        )


def _where(error: BaseException, module: nn.Module) -> str:
    """The innermost module of the traceback, for the message."""
    names = {id(child): name for name, child in module.named_modules()}
    found = ""
    step = error.__traceback__
    while step is not None:
        owner = step.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and names.get(id(owner)):
            found = f"module {names[id(owner)]!r}: "
        step = step.tb_next
    return found


@contextmanager
def _thawed(module: nn.Module) -> Iterator[None]:
    """Let every parameter require a gradient while the context is open: the graph is read off autograd's."""
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def _opaque(module: nn.Module) -> Iterator[None]:
    """Show recurrent layers as one step of the graph while the context is open, not as the many that they run."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.RNNBase)]

    def forward(layer: nn.RNNBase) -> Callable[..., Any]:
        def run(x: Tensor, hx: Any = None) -> Any:
            output, *state = _OneStep.apply(lambda given: type(layer).forward(layer, given, hx), x, *layer.parameters())
            return output, state[0] if len(state) == 1 else tuple(state)

        return run

    try:
        for layer in layers:
            layer.forward = forward(layer)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


class _OneStep(torch.autograd.Function):
    """A function of its inputs as one node of autograd's graph, which is only looked at."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor], Any], x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        """The output and the states, in one tuple."""
        output, state = run(x)
        return (output, *state) if isinstance(state, tuple) else (output, state)


@contextmanager
def _without_fast_path() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Tracer:
    """Walks the graph from every layer whose outputs are not yet in a group."""

    def __init__(self, module: nn.Module, graph: torch_pruning.DependencyGraph, ignored: set[str]) -> None:
        self.module = module
        self.graph = graph
        self.ignored = ignored
        self.names = {id(child): name for name, child in module.named_modules()}
        self.parameters = {id(parameter): name for name, parameter in module.named_parameters()}
        self.shared = shared_names(module)
        self.groups: list[UnitGroup] = []
        self.counts: list[Count] = []
        self.left_out: dict[str, str] = {}

    def run(self) -> None:
        """Fill `groups`, `counts` and `left_out`."""
        visited: set[int] = set()
        nodes = {id(layer): node for layer, node in self.graph.module2node.items()}
        for name, layer in self.module.named_modules():
            if isinstance(layer, nn.MultiheadAttention) and name not in self.ignored:
                self._add_heads(name)
            if not isinstance(layer, nn.modules.conv._ConvNd | nn.Linear | nn.RNNBase) or id(layer) in visited:
                continue
            if id(layer) not in nodes:
                continue
            self._add_channels(name, nodes[id(layer)], visited)

    def _add_heads(self, name: str) -> None:
        try:
            group, counts = multihead_attention_group(self.module, name)
        except ValueError as error:
            self.left_out[name] = str(error)
            return
        if group.size > 1:
            self.groups.append(group)
            self.counts.extend(counts)

    def _add_channels(self, name: str, node: Node, visited: set[int]) -> None:
        pruner = self.graph.get_pruner_of_module(node.module)
        size = pruner.get_out_channels(node.module)
        reached = closure(node, pruner.prune_out_channels, size)
        for (target, pruning), _rows in reached.items():
            if pruning == self.graph.get_pruner_of_module(target.module).prune_out_channels:
                visited.add(id(target.module))
        try:
            group, counts = self._group(name, reached, size)
        except Unsupported as reason:
            self.left_out[name] = str(reason)
            return
        self.groups.append(group)
        self.counts.extend(counts)

    def _group(self, name: str, reached: Reached, size: int) -> tuple[UnitGroup, list[Count]]:
        for target, pruning in reached:
            self._refuse(target, pruning)
        unit_of = units_of(size, reached, self._coupled)
        count = int(unit_of.max()) + 1
        if count == 1:
            raise Unsupported(f"its {size} channels can only go together")
        members, counts = [], []
        for (target, pruning), rows in reached.items():
            owned = rows_by_unit(rows, unit_of, self._label(target))
            found = members_of(
                target.module, self._label(target), self._writes(target, pruning), owned, target.pruning_dim
            )
            members += [member for member in found.members if member not in members]
            counts += [Count(self._label(target), attribute, name, each) for attribute, each in found.counts]
        shared = next((self.shared[m.param] for m in members if m.param in self.shared), None)
        if shared is not None:
            raise Unsupported(f"parameter {shared!r} is shared by several layers")
        if not any(reads_units(self.module, member) for member in members):
            raise Unsupported("no layer reads its channels: they are the network's output")
        group = UnitGroup(name, count, tuple(members))
        try:
            Network(self.module, (group,))
        except ValueError as error:
            raise Unsupported(str(error)) from error
        return group, counts

    def _coupled(self, target: Node, pruning: Pruning, rows: Collection[int]) -> Iterable[list[int]]:
        return coupled_rows(target.module, self._writes(target, pruning), rows)

    def _refuse(self, target: Node, pruning: Pruning) -> None:
        layer = target.module
        if isinstance(layer, _OutputOp):
            raise Unsupported("its channels are the network's output")
        if isinstance(layer, nn.MultiheadAttention):
            raise Unsupported(
                f"its channels are the width of {self._label(target)!r}, which its heads divide among them"
            )
        if self._label(target) in self.ignored and self._writes(target, pruning) is not False:
            raise Unsupported(f"{self._label(target)!r} is to be ignored")

    def _writes(self, target: Node, pruning: Pruning) -> bool | None:
        """True where the layer's outputs go, False where its inputs go, None where these are the same."""
        pruner = self.graph.get_pruner_of_module(target.module)
        if pruner.prune_out_channels == pruner.prune_in_channels:
            return None
        return bool(pruning == pruner.prune_out_channels)

    def _label(self, target: Node) -> str:
        if target.type == OPTYPE.PARAMETER:
            return self.parameters[id(target.module)]
        return self.names.get(id(target.module), target.name)
