"""One streamed completion over HTTP, with the times at which its tokens came."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from testbench.server import SERVED_NAME

TIMEOUT_SECONDS = 3600.0


@dataclass
class Answer:
    """What came back.

    Attributes:
        request_id: as clients named it.
        sent: monotonic seconds at which it was sent.
        tokens: token ids.
        times: monotonic seconds at which the tokens came, one per token.
        error: what went wrong; None where nothing did.
    """

    request_id: str
    sent: float
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.sent

    @property
    def tpot(self) -> float:
        """Mean seconds per token after the first."""
        return (self.times[-1] - self.times[0]) / max(len(self.times) - 1, 1)


def complete(
    url: str,
    prompt: Sequence[int],
    max_tokens: int,
    request_id: str,
    vllm_xargs: dict[str, Any] | None = None,
) -> Answer:
    """A greedy completion of exactly max_tokens tokens; never raises for what the server does."""
    body = {
        "model": SERVED_NAME,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
        **({"vllm_xargs": vllm_xargs} if vllm_xargs else {}),
    }
    headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), headers)
    answer = Answer(request_id, time.monotonic())
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as stream:
            for line in stream:
                _read(line.decode().strip(), answer)
    except urllib.error.HTTPError as error:
        answer.error = f"HTTP {error.code}: {error.read().decode(errors='replace')[:300]}"
    except OSError as error:
        answer.error = f"{type(error).__name__}: {error}"
    if answer.error is None and len(answer.tokens) != max_tokens:
        answer.error = f"{len(answer.tokens)} of {max_tokens} tokens came"
    return answer


def _read(line: str, answer: Answer) -> None:
    """One line of server-sent events."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return
    event = json.loads(line.removeprefix("data: "))
    if "error" in event:
        answer.error = str(event["error"])[:300]
        return
    for choice in event["choices"]:
        new = choice.get("token_ids") or []
        answer.tokens += new
        answer.times += [time.monotonic()] * len(new)
