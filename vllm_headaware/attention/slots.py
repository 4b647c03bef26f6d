"""What kernels need to know of requests, by the slot that a model runner gave each.

Tensors have fixed addresses and are written when a request starts or its windows change, never per
step, so that CUDA graphs replay them. One row for each slot, and one more that padding points to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SlotValues:
    """A request's windows.

    Attributes:
        windows, reading: tokens of each class, 0 or less: everything from token -window on;
            `reading` while its prompt is read.
        prompt: tokens of its prompt.
    """

    windows: Sequence[int]
    reading: Sequence[int]
    prompt: int


class RequestSlots:
    """Windows and prompt lengths of all requests that a runner has, on its device.

    Attributes:
        windows, reading: int32 [classes, slots].
        prompts: int32 [slots].
        order: int32 [requests of a step], the slot of each.
    """

    def __init__(self, num_classes: int, num_slots: int, device: torch.device) -> None:
        self._host = torch.zeros(2 * num_classes + 1, num_slots, dtype=torch.int32)
        self._device = self._host.to(device)
        self.windows = self._device[:num_classes]
        self.reading = self._device[num_classes : 2 * num_classes]
        self.prompts = self._device[-1]
        self.order = torch.zeros(num_slots, dtype=torch.int32, device=device)

    def write(self, values: Mapping[int, SlotValues]) -> None:
        """Take over what changed, by slot; one copy to the device for all."""
        if not values:
            return
        for slot, value in values.items():
            column = [*value.windows, *value.reading, value.prompt]
            self._host[:, slot] = torch.tensor(column, dtype=torch.int32)
        # A copy of its own: the one before may still be on its way.
        staged = self._host.clone()
        if self._device.is_cuda:
            staged = staged.pin_memory()
        self._device.copy_(staged, non_blocking=True)

    def arrange(self, order: torch.Tensor) -> None:
        """Set the slots of a step's requests, int [requests], on the device."""
        self.order[: order.shape[0]].copy_(order)


_slots: RequestSlots | None = None


def use_slots(slots: RequestSlots) -> None:
    """Set what slots() gives; a process has one model runner."""
    global _slots
    _slots = slots


def slots() -> RequestSlots:
    """The model runner's."""
    assert _slots is not None, "the model runner sets them before it builds metadata"
    return _slots
