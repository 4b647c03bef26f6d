"""Heads measured in vLLM: the same numbers as from transformers, whatever the weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from testbench.families import FAMILIES, make_family_model
from testbench.quantised import EXACT, SATURATES, make_quantised, quantise_like
from testbench.small_requests import make_prompts
from tests.engine.child import run_child
from vllm_headaware.plan.geometry import layer_windows
from vllm_headaware.profile.induction import induction_scores
from vllm_headaware.profile.probe import native_attention, sink_window_attention, watch_attention

pytestmark = pytest.mark.engine

IDS = make_prompts(211, (333,))[0]
ROWS, SINK, WINDOW = 21, 7, 40
QUANTISED = pytest.param("quantised", marks=pytest.mark.skipif(not EXACT, reason=SATURATES))


def measured(model: Path, **engine: Any) -> tuple[dict[int, Any], dict[int, Any]]:
    once = torch.randint(211, (40,), generator=torch.Generator().manual_seed(5)).tolist()
    asked: dict[str, Any] = {"model": str(model), "ids": IDS, "once": once, "engine": engine}
    asked |= {"rows": ROWS, "sink": SINK, "window": WINDOW}
    # Ranks may share cores.
    found = run_child("tests.engine.measured", asked, {"VLLM_CPU_OMP_THREADS_BIND": "nobind"})
    change, induction = ({int(y): torch.tensor(row) for y, row in of.items()} for of in found)
    return change, induction


@torch.no_grad()
def expected(model: Any) -> dict[int, torch.Tensor]:
    """The same from transformers' modules."""
    windows, layers = layer_windows(model.config), model.model.layers
    streams: dict[int, torch.Tensor] = {}
    scores: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(
            lambda _, args, index=index: streams.update({index: args[0][0, -ROWS:]})
        )

    def watch(
        index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        whole = native_attention(query, key, value, scale, windows[index])
        if windows[index] is None:
            change = whole - sink_window_attention(query, key, value, scale, SINK, WINDOW)
            rows = change[0, :, -ROWS:].transpose(0, 1).unflatten(1, (key.shape[1], -1))
            project = layers[index].self_attn.o_proj
            added = []
            for head in range(key.shape[1]):
                alone = torch.zeros_like(rows)
                alone[:, head] = rows[:, head]
                added.append(project(alone.flatten(1)).norm(dim=-1))
            lengths = streams[index].norm(dim=-1)
            scores[index] = (torch.stack(added) / lengths).mean(1)
        return whole

    with watch_attention(model, watch):
        model(torch.tensor([IDS]), use_cache=False)
    return scores


@pytest.mark.parametrize("which", ["Llama", "Gemma-3", QUANTISED, "two ranks"])
def test_scores_are_those_of_transformers(model: Path, tmp_path: Path, which: str) -> None:
    served, engine = model, {}
    if which in FAMILIES:
        served = make_family_model(tmp_path, FAMILIES[which])
    reference: Any = AutoModelForCausalLM.from_pretrained(served, dtype=torch.float32)
    if which == "quantised":
        served = make_quantised(model, tmp_path / "child")
        quantise_like(reference)
    if which == "two ranks":
        engine = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    change, induction = measured(served, **engine)
    wanted = expected(reference)
    full = [y for y, window in enumerate(layer_windows(reference.config)) if window is None]
    assert sorted(change) == sorted(wanted) == full
    close = 0.05 if which == "quantised" else 1e-3  # a step of int8 may be taken or not
    for layer, row in wanted.items():
        torch.testing.assert_close(change[layer], row, rtol=close, atol=1e-5)
    assert min(float(row.min()) for row in wanted.values()) > 1e-3, "heads look far back"
    repeats = induction_scores(reference, 211, 40, torch.Generator().manual_seed(5))
    found = torch.stack([induction[layer] for layer in full])
    torch.testing.assert_close(found, repeats[full], rtol=close, atol=1e-4)
