"""--kv-policy h2o in the real engine: tokens of an independent simulation, and the budget kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from testbench.small_requests import make_prompts
from tests.engine.scenario import run_scenario
from vllm_headaware.plan.plan_json import plan_from_dict

pytestmark = pytest.mark.engine

POLICY: dict[str, Any] = {
    "kv_policy": "h2o",
    "kv_budget": 200,
    "kv_sink": 20,
    "kv_local_dtype": "float32",
}
NEW = 24


@torch.inference_mode()
def simulate(model: Any, prompt: list[int], block: int, sinks: int, budget: int) -> list[int]:
    """Greedy tokens of a model that forgets its lightest blocks after every step.

    Args:
        block: tokens per block.
        sinks, budget: blocks that always stay, and blocks kept in all; half of these are the
            latest.
    """
    cache, mass = DynamicCache(), torch.zeros(4096)
    gone: set[int] = set()
    ids, tokens = list(prompt), list[int]()
    while len(tokens) < NEW:
        length = len(prompt) + len(tokens)
        position = torch.arange(length)
        hidden = torch.tensor([place // block in gone for place in range(length)])
        query = position[-len(ids) :, None]
        blocked = (position[None] > query) | hidden[None]
        mask = torch.where(blocked, torch.finfo(torch.float32).min, 0.0)[None, None]
        out = model(
            torch.tensor([ids]),
            attention_mask=mask,
            position_ids=query.T,
            past_key_values=cache,
            output_attentions=True,
        )
        for weights in out.attentions:
            mass[:length] += weights[0].sum((0, 1))
        blocks = -(-length // block)
        scores = [float(mass[b * block : (b + 1) * block].sum()) for b in range(blocks)]
        old = [b for b in range(sinks, blocks - budget // 2) if b not in gone]
        surplus = max(blocks - len(gone) - budget, 0)
        gone |= set(sorted(old, key=lambda b: scores[b])[:surplus])
        ids = [int(out.logits[0, -1].argmax())]
        tokens += ids
    return tokens


def test_it_forgets_the_lightest_blocks(model: Path, stock: Any) -> None:
    prompts = make_prompts(211, (97, 400, 750, 31, 900))
    engine = {**POLICY, "max_num_batched_tokens": 4096, "max_num_seqs": 5}
    report = run_scenario(model, rounds=[prompts], engine=engine, max_tokens=NEW)
    plan = plan_from_dict(report["plan"])
    (heavy,) = plan.classes
    assert report["held_at_end"] == 0
    assert report["preemptions"] == 0
    reference = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    for index, prompt in enumerate(prompts):
        expected = simulate(
            reference, prompt, heavy.block_tokens, heavy.sink_blocks, heavy.heavy_hitter_blocks
        )
        assert report["tokens"][f"0/{index}"] == expected, len(prompt)
        most = report["most_held"][f"0/{index}"]
        assert most <= heavy.heavy_hitter_blocks, f"{len(prompt)} tokens held {most} blocks"
    assert report["most_held"]["0/4"] == heavy.heavy_hitter_blocks
