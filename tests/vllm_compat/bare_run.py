"""Requests through vLLM's scheduler without a model, in whichever vLLM is first on the path.

Run as `python -m tests.vllm_compat.bare_run '{}'`. Reports what was held after every step, and what
was not as planned.
"""

from __future__ import annotations

import random
from typing import Any

from tests.engine.child import report

GEOMETRY = {"layers": 4, "query_heads": 8, "kv_heads": 4, "head_size": 64}


def main() -> None:
    """Run and report."""
    import vllm
    import vllm.platforms
    from vllm.platforms.cpu import CpuPlatform

    # Sources alone are no installation that a platform could be told by.
    platforms: Any = vllm.platforms
    platforms._current_platform = CpuPlatform()
    from testbench.bare_scheduler import BareScheduler

    bare = BareScheduler(
        "headaware",
        1500,
        geometry=GEOMETRY,
        blocks=60,
        max_num_seqs=8,
        max_num_batched_tokens=256,
        kv_window=100,
        kv_induction_window=300,
        kv_floor=0.5,
    )
    from vllm_headaware.vllm_compat.engine_core.admission import budgets_of

    scheduler, rng = bare.scheduler, random.Random(5)
    plan: Any = bare.plan
    budgets: Any = budgets_of(scheduler)
    shared = [rng.randrange(10, 200) for _ in range(400)]
    hits: list[int] = []
    start = budgets.start

    def noted(request: Any, blocks: Any, num_hit_tokens: int) -> None:
        hits.append(num_hit_tokens)
        start(request, blocks, num_hit_tokens)

    budgets.start = noted
    for number in range(14):
        own = [rng.randrange(10, 200) for _ in range(rng.randrange(1, 500))]
        extra = {"kv_policy": "full"} if number == 5 else None
        prompt = [*shared[: rng.choice([0, 400])], *own]
        bare.add(f"r{number}", prompt, 60, extra)
    managers = scheduler.kv_cache_manager.coordinator.single_type_managers
    pool = scheduler.kv_cache_manager.block_pool
    held, faults = [], []
    for step in range(2000):
        if not scheduler.requests:
            break
        bare.step()
        for request in scheduler.running:
            blocks = [m.req_to_blocks[request.request_id] for m in managers]
            now = [sum(not block.is_null for block in own) for own in blocks]
            after = plan.blocks(
                request.num_computed_tokens,
                request.num_computed_tokens - 1,
                budgets.budget_of(request).regimes.at(request.num_computed_tokens - 1),
            )
            # A chunk of a prompt is held until the next step gives back what it left behind.
            if request.num_output_tokens > 1 and now != list(after.values()):
                faults.append(f"step {step}: {request.request_id} holds {now}, planned {after}")
        held.append(pool.num_gpu_blocks - 1 - pool.get_num_free_blocks())
    report(
        {
            "folder": str(vllm.__path__[0]),
            "held": held,
            "faults": faults[:5],
            "unfinished": len(scheduler.requests),
            "left": budgets.left(),
            "blocks": pool.num_gpu_blocks - 1,
            "hit_tokens": sum(hits),
        }
    )


if __name__ == "__main__":
    main()
