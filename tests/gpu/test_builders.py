"""Builders and slots as CUDA graphs need them: nothing asks the device, addresses stay."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vllm_headaware.attention.cuda import Step, TritonMetadataBuilder
from vllm_headaware.attention.slots import RequestSlots, SlotValues

pytestmark = pytest.mark.gpu
CLASSES = ("retrieval", "induction", "local")


def common(starts: torch.Tensor, device: str, number: int = 0) -> Any:
    """A group's metadata as runner V2 makes it: groups share their starts."""
    return SimpleNamespace(
        query_start_loc=starts,
        seq_lens=torch.zeros(4, dtype=torch.int32, device=device),
        block_table_tensor=torch.zeros(4, 8, dtype=torch.int32, device=device),
        max_query_len=1,
        number=number,
    )


def builders() -> list[TritonMetadataBuilder]:
    """Two of each class, as layers with different head counts have them."""
    made = []
    for name in CLASSES:
        for _ in range(2):
            builder = TritonMetadataBuilder.__new__(TritonMetadataBuilder)
            spec: Any = SimpleNamespace(head_class=name)
            builder.kv_cache_spec = spec
            made.append(builder)
    return made


def one_step(made: list[TritonMetadataBuilder], device: str) -> Step:
    starts = torch.zeros(5, dtype=torch.int32, device=device)
    groups = [common(starts, device) for _ in CLASSES]
    steps = [builder.build(0, groups[index // 2]) for index, builder in enumerate(made)]
    assert all(step is steps[0] for step in steps), "one step for all classes"
    return steps[0]


def test_a_step_is_shared_by_its_classes_and_by_no_other_step() -> None:
    made = builders()
    first, second = one_step(made, "cpu"), one_step(made, "cpu")
    assert first is not second
    assert set(second.classes) == set(CLASSES)


def test_the_same_starts_do_not_make_two_steps_one() -> None:
    """Dummy runs may hand the very same tensors to the next step."""
    made, starts = builders(), torch.zeros(5, dtype=torch.int32)
    steps = []
    for _ in range(2):
        groups = [common(starts, "cpu") for _ in CLASSES]
        steps.append([b.build(0, groups[index // 2]) for index, b in enumerate(made)])
    assert steps[0][0] is steps[0][-1]
    assert steps[0][0] is not steps[1][0]


def test_nothing_asks_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors of "cuda" that have no data; a look at any would raise."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a builder asked the device")

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    with FakeTensorMode():
        made = builders()
        for _ in range(3):
            assert set(one_step(made, "cuda").classes) == set(CLASSES)


def test_slots_keep_their_addresses_over_50_steps() -> None:
    slots = RequestSlots(len(CLASSES), 9, torch.device("cpu"))
    tensors = [slots.prompts, slots.order, *slots.windows, *slots.reading]
    places = [tensor.data_ptr() for tensor in tensors]
    for step in range(50):
        slot = step % 8
        slots.write({slot: SlotValues((step, 0, 5), (0, 0, 7), 100 + step)})
        slots.arrange(torch.tensor([slot, (slot + 1) % 8]))
        now = [slots.prompts, slots.order, *slots.windows, *slots.reading]
        assert [tensor.data_ptr() for tensor in now] == places
        assert [int(w[slot]) for w in slots.windows] == [step, 0, 5]
        assert [int(r[slot]) for r in slots.reading] == [0, 0, 7]
        assert int(slots.prompts[slot]) == 100 + step
        assert slots.order[:2].tolist() == [slot, (slot + 1) % 8]


def test_slots_that_nobody_wrote_to_stay() -> None:
    slots = RequestSlots(1, 4, torch.device("cpu"))
    slots.write({1: SlotValues((5,), (6,), 7)})
    slots.write({2: SlotValues((8,), (9,), 10)})
    assert slots.windows.tolist() == [[0, 5, 8, 0]]
    assert slots.prompts.tolist() == [0, 7, 10, 0]
