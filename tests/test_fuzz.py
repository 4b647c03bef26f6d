"""Five hundred malformed flags, policy files, profiles and requests: one clear sentence each.

Each input is a valid one with a single thing broken in a random way; a seed makes it. What is
raised must be a HeadAwareError, whose message is short and is not a traceback.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.plan.test_plan import DEMO, plan_for
from tests.profile.profiles import HASH, make_profile
from vllm_headaware.config import FIELDS, KVPolicyConfig, make_config
from vllm_headaware.config.names import DTYPE_OPTIONS
from vllm_headaware.config.request import RequestLimits, read_options
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.plan.ladder import Ladders
from vllm_headaware.profile.format import SCORES, HeadProfile

GARBAGE: list[Any] = [
    *(None, True, False, -1, -(2**70), 2**70, 1.5, float("nan"), float("inf"), -0.0),
    *("", "?", "auto ", "HEADAWARE", "\x00", "é" * 40, "1", "0.25", [], [1], {}, {"a": 1}),
]
WRONG: dict[str, Callable[[Any], bool]] = {
    "policy": lambda v: True,
    "head_profile": lambda v: not isinstance(v, str) or not v,
    **dict.fromkeys(
        ("retrieval_share", "induction_share"), lambda v: not (v == 0 and type(v) is not bool)
    ),
    **dict.fromkeys(("floor", "retrieval_keep", "elastic", "admission"), lambda v: True),
    **dict.fromkeys(
        ("sink", "window", "induction_window", "retrieval_recent"),
        lambda v: type(v) is not int or not 0 <= v < 2**31,
    ),
    **dict.fromkeys(
        ("prefill_window", "budget", "request_budget_min", "request_budget_max"),
        lambda v: type(v) is not int or not 0 <= v < 2**31,
    ),
    **dict.fromkeys(DTYPE_OPTIONS, lambda v: True),
    "request_full": lambda v: True,
}
"""Which garbage is wrong for which field of the policy."""
PLAN = plan_for(DEMO)
PROFILE = make_profile()


def mangle(word: str, rng: random.Random) -> str:
    """A word with one letter dropped, doubled or changed."""
    at = rng.randrange(len(word))
    return word[:at] + rng.choice(("", word[at] * 2, "~")) + word[at + 1 :]


def bad_flags(rng: random.Random, folder: Path) -> None:
    field = rng.choice(FIELDS)
    if rng.random() < 0.2:
        make_config({"policy": "headaware", mangle(field, rng): 1})
    wrong = [v for v in GARBAGE if v is not None and WRONG[field](v)]
    make_config({"policy": "headaware", field: rng.choice(wrong)})


def bad_policy_file(rng: random.Random, folder: Path) -> None:
    valid = "policy: headaware\nsink: 64\nwindow: 256\nretrieval_share: 0.25\n"
    kind = rng.randrange(5)
    path = folder / rng.choice(("p.yaml", "p.json"))
    if kind == 0:
        path = folder / "missing" / path.name
    elif kind == 1:
        path.write_bytes(valid.encode() + bytes([0xFF, 0xFE, rng.randrange(128, 256)]))
    elif kind == 2:
        path.write_text(valid.replace("sink", mangle("sink", rng)).replace("policy:", "{policy:"))
    elif kind == 3:
        path.write_text(json.dumps(rng.choice([v for v in GARBAGE if not isinstance(v, dict)])))
    else:
        key = rng.choice(("sink", "window", "retrieval_share"))
        value = rng.choice([v for v in GARBAGE if v is not None and WRONG[key](v)])
        path.write_text(json.dumps({"policy": "headaware", key: value}))
    make_config({}, path)


def bad_profile(rng: random.Random, folder: Path) -> None:
    path = folder / "profile.json"
    PROFILE.save(path)
    values = json.loads(path.read_text())
    kind = rng.randrange(5)
    if kind == 0:
        text = path.read_text()
        path.write_text(text[: rng.randrange(len(text) - 2)])
    elif kind == 1:
        del values[rng.choice(("model", "scores", "checksum"))]
        path.write_text(json.dumps(values))
    elif kind == 2:
        values["scores"]["gate"][rng.randrange(3)][rng.randrange(2)] = rng.choice(
            [v for v in GARBAGE if type(v) not in (int, float) or v != v or abs(v) > 1e300]
        )
        path.write_text(json.dumps(values))
    elif kind == 3:
        values["scores"][rng.choice(SCORES)].pop()
        path.write_text(json.dumps(values))
    else:
        digest = "".join(rng.choices("0123456789abcdef", k=64))
        HeadProfile.load(path).require_model("sha256:" + digest, 3, 2, path=path)
    HeadProfile.load(path).require_model(HASH, 3, 2, path=path)


def bad_request(rng: random.Random, folder: Path) -> None:
    limits = RequestLimits(budget_min=100, budget_max=4000, full=False)
    kind = rng.randrange(3)
    extra: dict[str, Any]
    if kind == 0:
        extra = {mangle(rng.choice(("kv_budget", "kv_policy", "kv_level")), rng): 1}
        if not next(iter(extra)).startswith("kv_"):
            extra = {"kv_" + mangle("budget", rng): 1}
    elif kind == 1:
        extra = {"kv_budget": rng.choice([v for v in GARBAGE if v is not None])}
    else:
        name = rng.choice(("kv_level", "kv_policy"))
        extra = {name: rng.choice([v for v in GARBAGE if v is not None])}
    Ladders(PLAN, limits).of(read_options(extra, "headaware"))


@pytest.mark.parametrize("bad", [bad_flags, bad_policy_file, bad_profile, bad_request])
def test_each_is_refused_in_a_sentence(bad: Any, tmp_path: Path) -> None:
    for seed in range(125):
        try:
            bad(random.Random(seed), tmp_path)
        except HeadAwareError as error:
            message = str(error)
        except Exception as error:
            pytest.fail(f"{bad.__name__} with seed {seed} raised {error!r}")
        else:
            pytest.fail(f"{bad.__name__} with seed {seed} was accepted")
        assert 15 < len(message) < 1200, (seed, message)
        assert "Traceback" not in message, seed
        assert "\n" not in message, (seed, message)


def test_what_is_not_broken_is_accepted() -> None:
    assert make_config({"policy": "headaware", "sink": 64}) == KVPolicyConfig("headaware")
    assert Ladders(PLAN, RequestLimits()).of(read_options({"kv_budget": 700}, "headaware"))
