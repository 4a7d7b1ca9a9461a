"""Messages between the patches of one image: waited for, or read a step later while the next ones travel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Traffic:
    """Bytes that this rank received in each call of the denoiser, by what they were.

    The kinds are "halo" (rows at the border of convolutions), "attention" (keys and values), "group_norm" (statistics)
    and "output" (the prediction).

    Attributes:
        waited: received before the layer could go on.
        overlapped: received while the rank worked, for use at the next step.
    """

    waited: list[Counter[str]] = field(default_factory=list)
    overlapped: list[Counter[str]] = field(default_factory=list)

    def begin(self) -> None:
        """A call of the denoiser begins."""
        self.waited.append(Counter())
        self.overlapped.append(Counter())

    def add(self, kind: str, size: int, waited: bool) -> None:
        """`size` bytes of a kind arrive in this call."""
        (self.waited if waited else self.overlapped)[-1][kind] += size

    def total(self, kinds: Sequence[str] | None = None) -> int:
        """Bytes of all calls; of these kinds, or of all."""
        calls = [*self.waited, *self.overlapped]
        return sum(size for call in calls for kind, size in call.items() if kinds is None or kind in kinds)


class Message:
    """Tensors under way to other ranks, and those that come from them in return, shaped alike."""

    def __init__(self, outgoing: Mapping[int, Tensor], group: Any, tag: int) -> None:
        # Kept until they have left: the operations do not own what they send.
        self._sent = {peer: tensor.detach().contiguous() for peer, tensor in outgoing.items()}
        self._received = {peer: torch.empty_like(tensor) for peer, tensor in self._sent.items()}
        operations = []
        for peer in self._sent:
            place = peer if group is None else dist.get_global_rank(group, peer)
            operations.append(dist.P2POp(dist.isend, self._sent[peer], place, group, tag))
            operations.append(dist.P2POp(dist.irecv, self._received[peer], place, group, tag))
        self._works = dist.batch_isend_irecv(operations) if operations else []

    @property
    def size(self) -> int:
        """Bytes that come in."""
        return sum(tensor.nbytes for tensor in self._received.values())

    def wait(self) -> dict[int, Tensor]:
        """What came, by rank."""
        for work in self._works:
            work.wait()
        self._works = []
        return self._received


@dataclass
class _Kept:
    """The last message of a layer, and the shape of what this rank had then."""

    message: Message
    shape: tuple[int, ...]


class Exchange:
    """What one rank tells the others and hears of them. All ranks make the same calls in the same order.

    Args:
        group: of `torch.distributed`; None is the default group.

    Attributes:
        rank: this rank in the group.
        ranks: how many there are.
        traffic: what was received.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group) if dist.is_initialized() else 0
        self.ranks = dist.get_world_size(group) if dist.is_initialized() else 1
        self.traffic = Traffic()
        self._kept: dict[Any, _Kept] = {}
        self._number = 0

    @property
    def others(self) -> list[int]:
        """All ranks but this one."""
        return [rank for rank in range(self.ranks) if rank != self.rank]

    def now(self, kind: str, outgoing: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Send, and wait for what comes in return.

        Args:
            kind: for the traffic.
            outgoing: rank -> what it gets; it sends something of the same shape.
        """
        message = self._send(outgoing)
        self.traffic.add(kind, message.size, waited=True)
        return message.wait()

    def displaced(
        self, key: Any, kind: str, own: Tensor, outgoing: Mapping[int, Tensor], fresh: bool
    ) -> dict[int, Tensor]:
        """Send, and get what the last call with this key sent; or this one, where it is fresh, or there was none.

        Args:
            key: names the layer, the same on all ranks.
            kind: for the traffic.
            own: what this rank has; where its shape is not that of the last call, nothing old fits it.
            outgoing: rank -> what it gets.
            fresh: wait for this call's.
        """
        before = self._kept.pop(key, None)
        old = None if before is None else before.message.wait()
        fits = before is not None and before.shape == tuple(own.shape)
        message = self._send(outgoing)
        self._kept[key] = _Kept(message, tuple(own.shape))
        if fresh or old is None or not fits:
            self.traffic.add(kind, message.size, waited=True)
            return message.wait()
        self.traffic.add(kind, message.size, waited=False)
        return old

    def gathered(self, kind: str, own: Tensor, dim: int) -> Tensor:
        """All ranks' parts, waited for and put together along `dim`."""
        return self.joined(self.now(kind, dict.fromkeys(self.others, own)), own, dim)

    def joined(self, received: Mapping[int, Tensor], own: Tensor, dim: int) -> Tensor:
        """Parts in the order of their ranks, this rank's own among them."""
        parts = {**received, self.rank: own}
        return torch.cat([parts[rank] for rank in sorted(parts)], dim=dim)

    def close(self) -> None:
        """Wait for what is still under way."""
        for kept in self._kept.values():
            kept.message.wait()
        self._kept.clear()

    def _send(self, outgoing: Mapping[int, Tensor]) -> Message:
        self._number = (self._number + 1) % (1 << 20)
        return Message(outgoing, self.group, self._number)
