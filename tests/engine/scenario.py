"""One engine in one process: serve prompts, look into the scheduler at every step, report as JSON.

Run as `python -m tests.engine.scenario '{"model": ..., "engine": {...}, "rounds": [[prompt,
...]]}'`. A round starts when the one before has ended, so that a later round can hit its prefix
cache.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.engine.child import report, run_child


def run_scenario(model: Path, environment: dict[str, str] | None = None, **options: Any) -> Any:
    """Run a scenario in a process of its own and return its report; see run_child."""
    fresh = options.get("runner") == "v2"  # Triton is told to interpret before it is imported
    argument = {"model": str(model), **options}
    return run_child("tests.engine.scenario", argument, environment, fresh)


class StepWatcher:
    """Compares what every request holds with the plan, after every step."""

    def __init__(self, scheduler: Any, plan: Any) -> None:
        from vllm_headaware.cache.census import take_census
        from vllm_headaware.vllm_compat.engine_core.admission import budgets_of

        self.scheduler, self.plan = scheduler, plan
        self.budgets: Any = budgets_of(scheduler)
        self.windows: dict[str, Any] = {}
        self.passes: dict[str, Any] = {}
        self.levels: dict[str, int] = {}
        self.most_held: dict[str, int] = {}
        self.take_census = take_census
        self.managers = scheduler.kv_cache_manager.coordinator.single_type_managers
        self.processed: dict[str, int] = {}
        self.drafts = scheduler.num_spec_tokens
        self.slots: dict[tuple[str, int], int] = {}
        self.steps_checked = self.max_running = self.own_short = 0
        self.faults: list[str] = []
        first = self.managers[0]
        original = first.remove_skipped_blocks

        def remember(request_id: str, processed: int, num_prompt_tokens: int | None = None) -> None:
            self.processed[request_id] = processed
            original(request_id, processed, num_prompt_tokens)

        first.remove_skipped_blocks = remember

    def check(self) -> None:
        """Record every difference between blocks held and plan, and between census and pool."""
        running = self.scheduler.running
        self.max_running = max(self.max_running, len(running))
        for request in running:
            name = request.request_id.rpartition("-")[0] or request.request_id
            budget = self.budgets.budget_of(request)
            windows, self.levels[name] = budget.windows, budget.level
            self.passes[name] = [(start, own.changes) for start, own in budget.passes]
            may_change = self.budgets.squeezes or self.budgets.compactions
            if self.windows.setdefault(name, windows) != windows and not may_change:
                self.faults.append(f"the windows of {name} changed to {windows}")
            processed = self.processed[request.request_id]
            # Slots of drafts that were rejected wait for the tokens that come instead.
            computed, own_windows = request.num_computed_tokens, budget.regimes.at(processed)
            expected = [
                self.plan.blocks(slots, processed, own_windows)
                for slots in {computed, computed + self.drafts}
            ]
            if request.num_computed_tokens >= request.num_prompt_tokens:
                own = [m.req_to_blocks[request.request_id] for m in self.managers]
                held = sum(not block.is_null for blocks in own for block in blocks)
                self.most_held[name] = max(self.most_held.get(name, 0), held)
            for head_class, manager in zip(self.plan.classes, self.managers, strict=True):
                blocks = manager.req_to_blocks[request.request_id]
                held = sum(not block.is_null for block in blocks)
                alone = manager.own_blocks(request.request_id)
                real = len(blocks)
                if manager.gives_back(request.request_id):
                    real = sum(block.ref_cnt == 1 and not block.is_null for block in blocks)
                if alone > real:
                    self.faults.append(f"{name} is said to hold {alone} alone, but holds {real}")
                self.own_short = max(self.own_short, real - alone)
                planned = [blocks[head_class.name] for blocks in expected]
                if held not in planned:
                    self.faults.append(
                        f"{head_class.name} holds {held}, planned {planned} at {computed} tokens"
                    )
            self.steps_checked += 1
        census = self.take_census(self.scheduler, self.plan)
        by_head = sum(
            self.plan.head_bytes(index, census.held[self.plan.classes[index].name])
            for row in self.plan.assignment
            for index in row
        )
        used = census.used * self.plan.block_bytes
        if census.pending or abs(by_head - used) > 1 or min(census.held.values()) < 0:
            self.faults.append(f"heads hold {by_head} bytes, the pool {used}: {census}")


def watch_moves() -> list[dict[str, Any]]:
    """Every compaction of this process as it is carried out: tokens there were, and those that stay
    of every "layer.head", on which the worker alone decides."""
    from vllm_headaware.attention import compaction
    from vllm_headaware.vllm_compat.worker import compactions

    carry_out, choose, moved = compactions.compact, compaction.choose, []

    def watched(splits: Any, plan: Any, move: Any, weights: Any, rank: int) -> None:
        splits, chosen = list(splits), []

        def noted(*args: Any) -> Any:
            chosen.append(choose(*args))
            return chosen[-1]

        compaction.choose = noted  # type: ignore[assignment]
        carry_out(splits, plan, move, weights, rank)
        name = plan.classes[move.class_index].name
        heads = [
            [(split.layer, head) for head in own]
            for split in splits
            for child, own in zip(split.by_class, split.heads, strict=True)
            if child.head_class.name == name
        ]
        kept = {
            f"{layer}.{head}": tokens
            for own, rows in zip(heads, chosen, strict=True)
            for (layer, head), tokens in zip(own, rows.tolist(), strict=True)
        }
        moved.append({"num_tokens": move.num_tokens, "kept": kept})

    compactions.compact = watched
    return moved


def main() -> None:
    """Serve the rounds and print the report."""
    options = json.loads(sys.argv[1])
    if options.get("runner") == "v2":
        from testbench.triton_interpreter import enable

        enable(runner=True)
    moved = watch_moves()
    from testbench.engine import SteppedEngine

    if first_guess := options.get("first_guess"):
        from vllm_headaware.cache import growth

        growth.FIRST_GUESS = first_guess
    engine_args = {"max_model_len": 1024, "enforce_eager": True, **options.get("engine", {})}
    engine = SteppedEngine(
        options["model"],
        engine_args.pop("kv_policy", None),
        plugins=options.get("plugins", True),
        **engine_args,
    )
    llm = engine.llm
    scheduler = engine._scheduler
    from vllm_headaware.plan.plan_json import plan_to_dict
    from vllm_headaware.vllm_compat.carrier import get_plan

    plan = get_plan(llm.llm_engine.vllm_config)
    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    if options.get("poison"):
        layers = llm.llm_engine.vllm_config.compilation_config.static_forward_context.values()
        for layer in layers:
            if getattr(layer, "kv_cache", None) is not None:
                layer.kv_cache.fill_(float("nan"))
    watcher = StepWatcher(scheduler, plan) if plan else None
    tokens: dict[str, list[int]] = {}
    cached: dict[str, int] = {}
    logprobs: dict[str, list[dict[int, float]]] = {}
    preemptions, steps_of_rounds = 0, []
    count = options.get("max_tokens", 12)
    for number, prompts in enumerate(options["rounds"]):
        for index, prompt in enumerate(prompts):
            name = f"{number}/{index}"
            extra = options.get("extra_args", {}).get(name)
            engine.add(name, prompt, count, extra, options.get("logprobs"))
        steps = 0
        while llm.llm_engine.has_unfinished_requests():
            outputs: Any = llm.llm_engine.step()
            steps += 1
            if aborted := options.get("abort", {}).get(str(steps)):
                llm.llm_engine.abort_request(aborted)
            if steps in options.get("preempt_at", ()):
                scheduler.reset_prefix_cache(reset_running_requests=True)
            preemptions = max(
                preemptions, *(r.num_preemptions for r in scheduler.requests.values()), 0
            )
            for output in outputs:
                tokens[output.request_id] = list(output.outputs[0].token_ids)
                cached[output.request_id] = output.num_cached_tokens or 0
                logprobs[output.request_id] = [
                    {token: value.logprob for token, value in row.items()}
                    for row in output.outputs[0].logprobs or ()
                ]
            if watcher:
                watcher.check()
        steps_of_rounds.append(steps)
    config = scheduler.kv_cache_config
    values = {
        "tokens": tokens,
        "cached": cached,
        "logprobs": logprobs,
        "preemptions": preemptions,
        "steps": steps_of_rounds,
        "num_blocks": config.num_blocks,
        "block_bytes": engine.block_bytes,
        "block_sizes": [group.kv_cache_spec.block_size for group in config.kv_cache_groups],
        "held_at_end": engine.held_blocks,
        "modules": [f"{n}:{type(m).__name__}" for n, m in runner.model.named_modules()],
        "plan": plan_to_dict(plan) if plan else None,
        "planned_block_bytes": plan.block_bytes if plan else None,
        "steps_checked": watcher.steps_checked if watcher else 0,
        "max_running": watcher.max_running if watcher else 0,
        "faults": watcher.faults[:5] if watcher else [],
        "windows": watcher.windows if watcher else {},
        "passes": watcher.passes if watcher else {},
        "events": watcher.budgets.events if watcher else {},
        "most_held": watcher.most_held if watcher else {},
        "levels": watcher.levels if watcher else {},
        "own_short": watcher.own_short if watcher else 0,
        "left_at_end": watcher.budgets.left() if watcher else 0,
        "remembered": sum(len(m.regimes) for m in watcher.managers) if watcher else 0,
        "level_at_end": watcher.budgets.monitor.level if watcher else 0,
        "changes": watcher.budgets.monitor.changes if watcher else {},
        "moved": moved,
    }
    report(values)


if __name__ == "__main__":
    main()
