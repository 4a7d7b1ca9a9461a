"""A device that is not the CPU, on machines without one: what is left behind on the CPU is found all the same.

Tensors of class `Elsewhere` say that they are on the meta device, have their numbers in a tensor on the CPU, and refuse
what CUDA refuses: an operation with a tensor of the CPU (unless of no dimension, or an index), a generator of the
CPU, and numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import lightning.pytorch as lightning
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")

_aten = torch.ops.aten
_BETWEEN_DEVICES = (_aten.copy_.default, _aten._to_copy.default)
_TAKE_INDICES = (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default)


class Elsewhere(torch.Tensor):
    """See above."""

    held: Tensor
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        wrapper: Elsewhere = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        wrapper.held = held
        return wrapper

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """torch makes tensors from lists before any operation is seen."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = torch.device(kwargs.pop("device"))
            return func(*args, **kwargs).to(device)
        if func is torch.Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(DEVICE)
        return func(*args, **kwargs)


class _AnAccelerator(Accelerator):
    """What Lightning wants to know."""

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [DEVICE]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return DEVICE.type

    def setup_device(self, device: torch.device) -> None:
        pass

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    def teardown(self) -> None:
        pass


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """While the context is open, `.to(device)` of the device that is given makes tensors that are elsewhere.

    Lightning trains there, and files are read back onto the CPU.
    """
    trainer = lightning.Trainer

    def on_it(**options: Any) -> lightning.Trainer:
        if options["accelerator"] != DEVICE.type:
            return trainer(**options)
        strategy = SingleDeviceStrategy(DEVICE, accelerator=_AnAccelerator())
        return trainer(**{**options, "accelerator": "auto", "devices": 1, "strategy": strategy})

    save = torch.save

    def saved(content: Any, *arguments: Any, **options: Any) -> None:
        save(tree_map(_held, content), *arguments, **options)

    with (
        patch.object(lightning, "Trainer", on_it),
        patch.object(torch, "save", saved),
        _Constructors(),
        _Operations(),
    ):
        yield DEVICE


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    away = any(isinstance(tensor, Elsewhere) for tensor in tensors)
    if func in (*_BETWEEN_DEVICES, *_TAKE_INDICES):
        away = isinstance(args[0], Elsewhere)
    if away and func not in _BETWEEN_DEVICES:
        known = tensors if func not in _TAKE_INDICES else [args[0]]
        left = [tensor for tensor in known if not isinstance(tensor, Elsewhere) and tensor.ndim]
        if left:
            raise RuntimeError(f"{func}: {len(left)} of its tensors are on the CPU, the others are not")
    elif func in _TAKE_INDICES and any(isinstance(tensor, Elsewhere) for tensor in tensors):
        raise RuntimeError(f"{func}: a tensor on the CPU takes no indices from elsewhere")
    if kwargs.get("device") is not None:
        away = torch.device(kwargs["device"]) == DEVICE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if away and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: the generator is on the CPU, the tensor is not")
    wrappers = {id(one.held): one for one in tensors if isinstance(one, Elsewhere)}
    results = func(*tree_map(_held, args), **tree_map(_held, kwargs))

    def given(result: Any) -> Any:
        if not isinstance(result, Tensor) or not away:
            return result
        return wrappers[id(result)] if id(result) in wrappers else Elsewhere(result)

    return tree_map(given, results)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value
