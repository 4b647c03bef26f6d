"""Methods of NVIDIA kvpress on the prompts of `vllm-headaware eval quick`, at equal bytes.

kvpress wants another transformers than vLLM, so it gets an environment of its own:

    python -m venv kvpress-env
    kvpress-env/bin/pip install kvpress==0.5.5
    vllm-headaware eval quick MODEL --json | tail -1 > quick.json
    PYTHONPATH=. kvpress-env/bin/python benchmarks/bench_kvpress.py MODEL quick.json

Every method keeps as many tokens per KV head as the baselines in quick.json, whose int8 bytes are
those of headaware; kvpress keeps them unrounded. Head-wise methods (AdaKV, DuoAttention) mask what
they would not hold. Each method is run twice: `seen` compresses the whole prompt, so that it knows
the question when it evicts; `later` compresses what stands before the question, as when a cache
is reused, which is all that a policy by position ever knows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm

from vllm_headaware.eval.tasks import Sample, make_samples, score

NEW_TOKENS = 12
SINK, RECENT = 32, 96
"""What DuoAttention's streaming heads keep: the sinks and window of headaware's local heads."""
GATE_TEXTS = 8


def presses(num_tokens: int, kept: int, texts: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """Makers of presses that keep `kept` of num_tokens tokens per KV head, on average.

    Args:
        texts: for DuoAttention's gates, which are measured on the fly.
    """
    import kvpress

    ratio = 1 - kept / num_tokens
    streaming_share = min((num_tokens - kept) / (num_tokens - SINK - RECENT), 1.0)
    return {
        "StreamingLLM": lambda: kvpress.StreamingLLMPress(ratio, n_sink=SINK),
        "SnapKV": lambda: kvpress.SnapKVPress(ratio),
        "AdaKV (SnapKV)": lambda: kvpress.AdaKVPress(kvpress.SnapKVPress(ratio)),
        "ExpectedAttention": lambda: kvpress.ExpectedAttentionPress(ratio),
        "AdaKV (ExpectedAttention)": lambda: kvpress.AdaKVPress(
            kvpress.ExpectedAttentionPress(ratio)
        ),
        "DuoAttention": lambda: duo_press(streaming_share, texts),
    }


def duo_press(streaming_share: float, texts: Sequence[str]) -> Any:
    """DuoAttention with gates measured on the fly; kvpress would download text for that."""
    from kvpress.presses import duo_attention_press

    class Texts:
        """As much of a data set as kvpress uses."""

        def to_pandas(self) -> Texts:
            return self

        def sample(self, count: int, random_state: int) -> dict[str, Any]:
            import pandas

            return {"chapter": pandas.Series(list(texts[:count]))}

    class Press(duo_attention_press.DuoAttentionPress):
        def post_init_from_model(self, model: Any) -> None:
            duo_attention_press.load_dataset = lambda *_, **__: Texts()
            super().post_init_from_model(model)
            self.sink_size, self.recent_size = SINK, RECENT

    return Press(head_compression_ratio=streaming_share, on_the_fly_scoring=True)


def question_start(tokenizer: Any, sample: Sample) -> int:
    """Index of the token with which the question begins."""
    text = tokenizer.decode(sample.prompt_token_ids)
    before = text[: text.rindex(sample.prompt_text.rsplit("\n\n", 1)[1])]
    ids = tokenizer.encode(before, add_special_tokens=False)
    same = (a == b for a, b in zip(ids, sample.prompt_token_ids, strict=False))
    return next((i for i, equal in enumerate(same) if not equal), len(ids))


@torch.inference_mode()
def answer(model: Any, press: Any, prompt: Sequence[int], compressed: int) -> list[int]:
    """Greedy answer when the first `compressed` tokens of the prompt are compressed."""
    from transformers import DynamicCache

    for layer in model.model.layers:
        layer.self_attn.masked_key_indices = None
    cache = DynamicCache()

    def step(tokens: Sequence[int], begin: int) -> int:
        positions = torch.arange(begin, begin + len(tokens))
        output = model(
            torch.tensor([list(tokens)]),
            past_key_values=cache,
            position_ids=positions[None],
            cache_position=positions,
            logits_to_keep=1,
        )
        return int(output.logits[0, -1].argmax())

    with press(model):
        token = step(prompt[:compressed], 0)
    if compressed < len(prompt):
        token = step(prompt[compressed:], compressed)
    tokens = [token]
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    while len(tokens) < NEW_TOKENS and tokens[-1] not in ends:
        tokens.append(step(tokens[-1:], len(prompt) + len(tokens) - 1))
    return tokens


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("quick", type=Path, help="report of `vllm-headaware eval quick --json`")
    parser.add_argument("--samples", type=int, default=None, help="prompts per task (as reported)")
    parser.add_argument("--only", default="", metavar="NAME", help="methods whose name has this")
    args = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    started = time.monotonic()
    quick = json.loads(args.quick.read_text())
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    known = make_samples(
        tokenizer, "single_needle", split="calibration", count=GATE_TEXTS, tokens=1000
    )
    texts = [sample.prompt_text for sample in known]
    report: dict[str, Any] = {"model": quick["model"], "masked": True, "tasks": {}}
    for task, result in quick["tasks"].items():
        if task in quick["unable"]:
            continue
        count = min(args.samples or result["samples"], result["samples"])
        samples = make_samples(
            tokenizer,
            task,
            split=quick["split"],
            count=result["samples"],
            tokens=result["tokens"],
            seed=quick["seed"],
        )[:count]
        makers = presses(result["tokens"] + NEW_TOKENS, result["baseline_tokens"], texts)
        own: dict[str, dict[str, float]] = {}
        for name in tqdm([n for n in makers if args.only in n], desc=task, file=sys.stderr):
            for when in ("seen", "later"):
                scores = []
                for sample in samples:
                    ids = sample.prompt_token_ids
                    end = len(ids) if when == "seen" else question_start(tokenizer, sample)
                    tokens = answer(model, makers[name](), ids, end)
                    scores.append(score(sample, str(tokenizer.decode(tokens))))
                own.setdefault(name, {})[when] = fmean(scores)
        report["tasks"][task] = {
            "tokens": result["tokens"],
            "kept": result["baseline_tokens"],
            "samples": count,
            "headaware": result["scores"]["headaware"],
            "full": result["scores"]["full"],
            "scores": own,
        }
    report["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
