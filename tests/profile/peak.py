"""The most memory that measuring heads takes, in a process of its own: one sample of each kind.

Run as `python -m tests.profile.peak FOLDER TOKENS`; the last line is JSON, in bytes.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import psutil
import torch

from tests.profile.profiles import make_question
from vllm_headaware.profile.answers import answer_divergence, read_prompt
from vllm_headaware.profile.gate import gate_gradients
from vllm_headaware.profile.heap import give_back_large_blocks
from vllm_headaware.profile.run import load_model
from vllm_headaware.profile.token_scores import learn_token_scores

ANSWER, SINK, WINDOW = 64, 64, 512
FEW = 128
FORGET_PEAK = "5"
"""Written to clear_refs: VmHWM begins anew."""


def peak() -> int:
    """VmHWM; what getrusage says starts at the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def measure(folder: Path, tokens: int) -> dict[str, int]:
    """Load, one question, one answer of twice the length, one context that is said twice; the peak
    after each."""
    model, _ = load_model(folder)
    peaks = {"loaded": peak()}
    vocabulary = model.config.vocab_size
    lot = torch.Generator().manual_seed(3)
    ids = torch.randint(vocabulary, (2 * tokens + ANSWER,), generator=lot)
    gate_gradients(model, make_question(ids[: tokens + ANSWER], ANSWER), SINK, WINDOW)
    peaks["gate"] = peak()
    with tempfile.TemporaryDirectory() as kept:
        read = read_prompt(model, make_question(ids, ANSWER), Path(kept, "read"))
        peaks["read"] = peak()
        shape = model.config.num_hidden_layers, model.config.num_key_value_heads
        gates = torch.ones(shape, requires_grad=True)
        with torch.enable_grad(), torch.autograd.set_multithreading_enabled(False):
            answer_divergence(model, read, gates, SINK, WINDOW).backward()
    peaks["answer"] = peak()
    tokenizer = SimpleNamespace(encode=lambda text, add_special_tokens: [0] * len(text.split()))
    assert learn_token_scores(model, tokenizer, [ids[:tokens].tolist()]) is not None
    peaks["token_scores"] = peak()
    return peaks


def main() -> None:
    """Measure; before that once with few tokens, for what libraries load and keep at first use."""
    folder, tokens = Path(sys.argv[1]), int(sys.argv[2])
    give_back_large_blocks()
    measure(folder, FEW)
    gc.collect()
    Path("/proc/self/clear_refs").write_text(FORGET_PEAK)
    base = psutil.Process().memory_info().rss
    print(json.dumps({"base": base, **measure(folder, tokens)}))


if __name__ == "__main__":
    main()
