"""Score contenders on generated prompts and on held-out text, one run at a time, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vllm_headaware.eval.journal import Journal, key_of
from vllm_headaware.eval.lineup import Contender
from vllm_headaware.eval.runner import answer, continuation_logprobs, read
from vllm_headaware.profile.model_hash import model_hash
from vllm_headaware.profile.run import load_model
from vllm_headaware.tasks.samples import Sample, score

NEW_TOKENS = 12
"""Room for the rest of an answer that was begun for the model."""
FULL = "full"
"""Name of the contender that others are compared with on text."""


@dataclass
class Bench:
    """A loaded model with what is kept of its runs, and a bar that counts them."""

    model: Any
    tokenizer: Any
    digest: str
    journal: Journal
    bar: tqdm

    def score_task(
        self, contenders: Mapping[str, Contender], samples: Sequence[Sample]
    ) -> dict[str, list[float]]:
        """Scores, 0.0 to 1.0, of every contender on every sample."""
        scores: dict[str, list[float]] = {name: [] for name in contenders}
        for sample in samples:
            answers = self._answers(contenders, sample.prompt_token_ids)
            for name in contenders:
                scores[name].append(score(sample, answers[name]))
        return scores

    def score_text(
        self, contenders: Mapping[str, Contender], passages: Sequence[Sequence[int]], scored: int
    ) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """NLL, and KL from `full` to each contender, in nats per token, over passages' ends.

        Args:
            contenders: "full" is among them.
            passages: token ids.
            scored: how many of the last tokens count, at least 1.
        """
        nll: dict[str, list[float]] = {name: [] for name in contenders}
        kl: dict[str, list[float]] = {name: [] for name in contenders}
        for ids in passages:
            results = self._expectations(contenders, ids[:-scored], ids[-scored:])
            for name in contenders:
                nll[name].append(results[name][0])
                kl[name].append(results[name][1])
        return nll, kl

    def _answers(
        self, contenders: Mapping[str, Contender], prompt: Sequence[int]
    ) -> dict[str, str]:
        keys = {
            name: key_of("answer", self.digest, c.digest, list(prompt), NEW_TOKENS)
            for name, c in contenders.items()
        }
        missing = {n: c.method for n, c in contenders.items() if self.journal.get(keys[n]) is None}
        self.bar.update(len(contenders) - len(missing))
        for name, reading in read(self.model, missing, prompt) if missing else ():
            ids = answer(self.model, missing[name], reading, NEW_TOKENS)
            self.journal.put(keys[name], self.tokenizer.decode(ids))
            self.bar.update()
        return {name: self.journal.get(key) for name, key in keys.items()}

    def _expectations(
        self, contenders: Mapping[str, Contender], prompt: Sequence[int], rest: Sequence[int]
    ) -> dict[str, list[float]]:
        """[NLL, KL] by contender."""
        keys = {
            name: key_of("text", self.digest, c.digest, contenders[FULL].digest, [*prompt], [*rest])
            for name, c in contenders.items()
        }
        missing = {n: c.method for n, c in contenders.items() if self.journal.get(keys[n]) is None}
        self.bar.update(len(contenders) - len(missing))
        if missing:
            # The others' KL needs the full cache's logits, which are too large to keep.
            wanted = {FULL: contenders[FULL].method, **missing}
            full: torch.Tensor | None = None
            for name, reading in read(self.model, wanted, prompt):
                logprobs = continuation_logprobs(self.model, wanted[name], reading, rest)
                full = logprobs if full is None else full
                nll = -float(logprobs[range(len(rest)), list(rest)].mean())
                kl = float((full.exp() * (full - logprobs)).sum(-1).mean())
                self.journal.put(keys[name], [nll, kl])
                self.bar.update(name in missing)
        return {name: self.journal.get(key) for name, key in keys.items()}


@contextmanager
def open_bench(
    model_dir: Path, journal: Path | None, *, runs: int, progress: bool | None = None
) -> Iterator[Bench]:
    """Load a model and show a bar on stderr while it is used.

    Args:
        journal: where finished runs are kept; None keeps nothing.
        runs: how many there will be, finished ones included.
        progress: None means only on a terminal.

    Raises:
        HeadAwareError: the model cannot be loaded.
    """
    model, tokenizer = load_model(model_dir)
    hidden = None if progress is None else not progress
    with tqdm(total=runs, desc="evaluating", unit="run", disable=hidden, smoothing=0.05) as bar:
        yield Bench(model, tokenizer, model_hash(model_dir), Journal(journal), bar)
