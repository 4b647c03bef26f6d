"""What a client of the server may rely on, checked with the openai package."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from openai import OpenAI

from testbench.metrics_text import metric_values
from testbench.progress import say
from testbench.server import SERVED_NAME, Server
from vllm_headaware.tasks.needle import NeedleSample, needle_samples, score_answer

CHAT = "What is the capital of France?"
COMPLETION = "The days of the week are Monday, Tuesday, Wednesday,"
CLIENTS = 8
CLIENT_TOKENS = 400
CLIENT_SCORE = 0.75
LONG_TOKENS = 7000
IDLE_TIMEOUT_SECONDS = 20.0

USED = "vllm_headaware_kv_used_bytes"
BY_CLASS = "vllm_headaware_kv_class_bytes"


class CheckError(Exception):
    """A check found something else than what it expected."""


class HttpChecks:
    """Each method is one check and raises CheckError; run_all runs them in order.

    Args:
        server: a healthy one.
        model: model folder, for its tokenizer.
        metrics: whether vllm_headaware_ metrics are expected.
    """

    def __init__(self, server: Server, model: str | Path, metrics: bool = True) -> None:
        from transformers import AutoTokenizer

        self.server = server
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.metrics = metrics
        self.client = OpenAI(base_url=server.url + "/v1", api_key="none", timeout=300)
        self.numbers: dict[str, Any] = {}

    def run_all(self) -> dict[str, str]:
        """Name of every check -> "ok", or what was wrong."""
        checks: list[Callable[[], None]] = [
            self.models,
            self.chat,
            self.completion,
            self.eight_at_once,
            self.seven_thousand_tokens,
        ]
        if self.metrics:
            checks += [self.metrics_are_there, self.nothing_is_held_when_idle]
        results = {}
        for check in checks:
            try:
                check()
                results[check.__name__] = "ok"
            except Exception as error:
                results[check.__name__] = f"{type(error).__name__}: {error}"
            say(f"http: {check.__name__}: {results[check.__name__]}")
        return results

    def models(self) -> None:
        """The model is listed under its served name."""
        names = [model.id for model in self.client.models.list()]
        expect(names == [SERVED_NAME], f"models {names}")

    def chat(self) -> None:
        """A chat answer is right, and the same when streamed."""
        whole = self.ask_chat(CHAT, 40)
        expect("Paris" in whole, f"{CHAT!r} answered {whole!r}")
        streamed = self.ask_chat(CHAT, 40, stream=True)
        expect(streamed == whole, f"streamed {streamed!r}, not streamed {whole!r}")

    def completion(self) -> None:
        """A completion is right, and the same when streamed."""
        args: dict[str, Any] = {
            "model": SERVED_NAME,
            "prompt": COMPLETION,
            "max_tokens": 12,
            "temperature": 0,
        }
        whole = self.client.completions.create(**args).choices[0].text
        expect("Thursday" in whole, f"{COMPLETION!r} continued {whole!r}")
        pieces = [
            chunk.choices[0].text
            for chunk in self.client.completions.create(**args, stream=True)
            if chunk.choices
        ]
        expect(len(pieces) > 1, f"a stream of {len(pieces)} pieces")
        expect("".join(pieces) == whole, f"streamed {pieces}, not streamed {whole!r}")

    def eight_at_once(self) -> None:
        """Eight clients at once, half of them streaming, find their own secret numbers."""
        samples = self.samples(CLIENTS, CLIENT_TOKENS)

        def ask(number: int) -> float:
            sample = samples[number]
            text = self.ask_chat(sample.prompt_text, 60, stream=number % 2 == 0)
            return score_answer(sample, text)

        with ThreadPoolExecutor(CLIENTS) as pool:
            scores = list(pool.map(ask, range(CLIENTS)))
        self.numbers["eight_at_once_scores"] = scores
        mean = sum(scores) / len(scores)
        expect(mean >= CLIENT_SCORE, f"needle accuracy {mean:.2f} < {CLIENT_SCORE}: {scores}")

    def seven_thousand_tokens(self) -> None:
        """A long prompt is taken whole and answered; meanwhile its blocks show on /metrics."""
        [sample] = self.samples(1, LONG_TOKENS + 100)
        with ThreadPoolExecutor(1) as pool:
            start = time.monotonic()
            asked = pool.submit(
                self.client.completions.create,
                model=SERVED_NAME,
                prompt=sample.prompt_token_ids,
                max_tokens=60,
                temperature=0,
            )
            peak = 0.0
            while not asked.done():
                if self.metrics:
                    peak = max(peak, sum(metric_values(self.server.get("/metrics"), USED)))
                time.sleep(0.5)
            response = asked.result()
        assert response.usage is not None
        self.numbers["long_request"] = {
            "prompt_tokens": response.usage.prompt_tokens,
            "score": score_answer(sample, response.choices[0].text),
            "seconds": time.monotonic() - start,
            "kv_used_bytes_peak": peak,
        }
        tokens = response.usage.prompt_tokens
        expect(tokens >= LONG_TOKENS, f"the server counted {tokens} prompt tokens")
        expect(bool(response.choices[0].text.strip()), "an empty answer")
        expect(peak > 0 or not self.metrics, f"{USED} stayed 0 during the request")

    def metrics_are_there(self) -> None:
        """/metrics says what each head class holds."""
        text = self.server.get("/metrics")
        expect(bool(list(metric_values(text, BY_CLASS))), f"no {BY_CLASS} on /metrics")
        expect(bool(list(metric_values(text, USED))), f"no {USED} on /metrics")

    def nothing_is_held_when_idle(self) -> None:
        """Every byte is given back once the requests are done."""
        deadline = time.monotonic() + IDLE_TIMEOUT_SECONDS
        while True:
            text = self.server.get("/metrics")
            held = sum(metric_values(text, USED)) + sum(metric_values(text, BY_CLASS))
            if held == 0:
                return
            expect(time.monotonic() < deadline, f"{held:.0f} bytes held by an idle server")
            time.sleep(0.5)

    def samples(self, count: int, tokens: int) -> list[NeedleSample]:
        """Held-out needle prompts."""
        return needle_samples(
            self.tokenizer, split="evaluation", count=count, tokens=tokens, seed=3
        )

    def ask_chat(self, message: str, max_tokens: int, stream: bool = False) -> str:
        """Greedy answer to one message."""
        response: Any = self.client.chat.completions.create(
            model=SERVED_NAME,
            messages=[{"role": "user", "content": message}],
            max_tokens=max_tokens,
            temperature=0,
            stream=stream,
        )
        if not stream:
            return response.choices[0].message.content
        pieces = [chunk.choices[0].delta.content or "" for chunk in response if chunk.choices]
        expect(len(pieces) > 1, f"a stream of {len(pieces)} pieces")
        return "".join(pieces)


def expect(true: bool, otherwise: str) -> None:
    """Raise CheckError, unless it is true."""
    if not true:
        raise CheckError(otherwise)
