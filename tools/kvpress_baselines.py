"""Methods of NVIDIA kvpress on the prompts of `vllm-headaware eval quick`, at its bytes.

    .venv/bin/vllm-headaware eval quick MODEL --json > quick.json
    .cache/kvpress/bin/python -m tools.kvpress_baselines quick.json --model MODEL

Runs in an environment of its own (`make kvpress-tool`), because kvpress wants other versions of
what vLLM uses. Every method may keep as many tokens per KV head, mean over the heads, as the
baselines of the quick comparison had bytes for in int8; kvpress does not round, so it is a little
better off. It compresses the whole prompt, question included. Head-wise methods (AdaKV, KVzip,
DuoAttention) only mask what they drop: nothing is freed. There are no trained gates of DuoAttention
for small models; kvpress's own scores on calibration text stand in for them, and as many heads keep
everything as the bytes allow. `none` compresses nothing and must score what `full` does there.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import torch

from vllm_headaware.eval.measure import NEW_TOKENS
from vllm_headaware.tasks.samples import make_samples, score
from vllm_headaware.tasks.text import half_of_text

DUO_TEXTS, DUO_CHARACTERS = 50, 2000
"""What DuoAttention's heads are scored on."""


def presses() -> dict[str, Callable[[float, int], Any]]:
    """Method by name, for the share of tokens that it drops and the tokens there are."""
    import kvpress

    def by_share(press: Callable[[float], Any]) -> Callable[[float, int], Any]:
        return lambda drop, tokens: press(drop)

    return {
        "streamingllm": by_share(kvpress.StreamingLLMPress),
        "snapkv": by_share(kvpress.SnapKVPress),
        # Its 64 last tokens are more text than question in these prompts.
        "snapkv_16": by_share(lambda drop: kvpress.SnapKVPress(drop, window_size=16)),
        "knorm": by_share(kvpress.KnormPress),
        "tova": by_share(kvpress.TOVAPress),
        "expected_attention": by_share(kvpress.ExpectedAttentionPress),
        "adakv_snapkv": by_share(lambda drop: kvpress.AdaKVPress(kvpress.SnapKVPress(drop))),
        "adakv_expected": by_share(
            lambda drop: kvpress.AdaKVPress(kvpress.ExpectedAttentionPress(drop))
        ),
        "kvzip": by_share(kvpress.KVzipPress),
        "duo_attention": duo_attention,
    }


def duo_attention(drop: float, tokens: int) -> Any:
    """DuoAttention with so many streaming heads that the mean over all heads drops the share."""
    from kvpress.presses import duo_attention_press as duo

    def calibration_texts(*_: Any, **__: Any) -> Any:
        import pandas

        text = half_of_text("calibration")
        step = len(text) // DUO_TEXTS
        chapters = [text[i * step :][:DUO_CHARACTERS] for i in range(DUO_TEXTS)]
        frame = pandas.DataFrame({"chapter": chapters})
        return SimpleNamespace(to_pandas=lambda: frame)

    duo.load_dataset = calibration_texts
    kept_by_streaming = 128 + 256  # sinks and recent tokens of on-the-fly patterns
    return duo.DuoAttentionPress(
        min(drop * tokens / (tokens - kept_by_streaming), 1.0), on_the_fly_scoring=True
    )


@torch.inference_mode()
def answer(model: Any, press: Any | None, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """Greedy tokens after a prompt of which all but the last token was read and compressed."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer in model.model.layers:
        layer.self_attn.masked_key_indices = None
    context = torch.tensor([list(prompt[:-1])])
    if press is None:
        model.model(input_ids=context, past_key_values=cache)
    else:
        with press(model):
            model.model(input_ids=context, past_key_values=cache)
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    tokens = [prompt[-1]]
    for position in range(len(prompt) - 1, len(prompt) - 1 + new_tokens):
        output = model(
            torch.tensor([tokens[-1:]]),
            past_key_values=cache,
            position_ids=torch.tensor([[position]]),
        )
        token = int(output.logits[0, -1].argmax())
        if token in ends:
            break
        tokens.append(token)
    return tokens[1:]


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("quick", type=Path, help="output of `vllm-headaware eval quick --json`")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--tasks", nargs="*", help="some of its tasks; all when left out")
    parser.add_argument("--methods", nargs="*", help="some of the methods; all when left out")
    args = parser.parse_args(argv)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quick = json.loads(args.quick.read_text(encoding="utf-8").splitlines()[-1])
    methods = {
        name: make
        for name, make in presses().items()
        if args.methods is None or name in args.methods
    }
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    started, results = time.monotonic(), {}
    for task, asked in quick["tasks"].items():
        if args.tasks and task not in args.tasks:
            continue
        samples = make_samples(
            tokenizer,
            task,
            split=quick["split"],
            count=asked["samples"],
            tokens=asked["tokens"],
            seed=quick["seed"],
        )
        scores: dict[str, float] = {}
        for name, make in {"none": None, **methods}.items():
            got = []
            for sample in samples:
                prompt = sample.prompt_token_ids
                tokens = len(prompt) - 1
                drop = max(1 - asked["baseline_tokens"] / tokens, 0.0)
                ids = answer(model, make and make(drop, tokens), prompt, NEW_TOKENS)
                got.append(score(sample, str(tokenizer.decode(ids))))
            scores[name] = fmean(got)
            seconds = time.monotonic() - started
            print(f"[{seconds:6.1f} s] {task}: {name} {scores[name]:.2f}", file=sys.stderr)
        results[task] = {
            "kept_tokens": asked["baseline_tokens"],
            "kvpress": scores,
            **{name: asked["scores"][name] for name in ("full", "headaware")},
        }
    print(json.dumps({"tasks": results, "seconds": round(time.monotonic() - started, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
