"""What a request may ask for, and the sentences it gets otherwise."""

from typing import Any

import pytest

from tests.plan.test_plan import DEMO, plan_for
from vllm_headaware.config.request import RequestLimits, RequestOptions, read_options
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.plan.ladder import Ladders

PLAN = plan_for(DEMO)


@pytest.mark.parametrize(
    ("extra", "options"),
    [
        (None, RequestOptions()),
        ({"session_id": "x", "kv_transfer_params": {}}, RequestOptions()),
        ({"kv_policy": "headaware"}, RequestOptions()),
        ({"kv_policy": "full"}, RequestOptions(full=True)),
        ({"kv_budget": 700, "kv_level": 2}, RequestOptions(budget=700, level=2)),
    ],
)
def test_options_are_read(extra: Any, options: RequestOptions) -> None:
    assert read_options(extra, "headaware") == options


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"kv_budgt": 700}, "did you mean 'kv_budget'"),
        ({"kv_windows": [1, 2, 3]}, "is not a KV option"),
        ({"kv_budget": "700"}, "whole number, at least 1"),
        ({"kv_budget": 0}, "whole number, at least 1"),
        ({"kv_budget": True}, "whole number, at least 1"),
        ({"kv_budget": 7.5}, "whole number, at least 1"),
        ({"kv_level": -1}, "whole number, at least 0"),
        ({"kv_policy": "h2o"}, "must be 'full' or the server's 'headaware'"),
        ({"kv_policy": ["full"]}, "must be 'full'"),
        ({"kv_policy": "full", "kv_budget": 9}, "exclude each other"),
    ],
    ids=str,
)
def test_bad_options_are_refused(extra: Any, sentence: str) -> None:
    with pytest.raises(HeadAwareError, match=sentence):
        read_options(extra, "headaware")


def test_the_operator_sets_limits() -> None:
    ladders = Ladders(PLAN, RequestLimits(budget_min=600, budget_max=2000, full=False))
    assert ladders.of(RequestOptions(budget=700))[0] != PLAN.windows
    for options, sentence in (
        (RequestOptions(budget=599), "from 600 to 2000 tokens on this server, got 599"),
        (RequestOptions(budget=2001), "got 2001"),
        (RequestOptions(full=True), "not allowed on this server"),
        (RequestOptions(level=50), "kv_level must be from 0 to"),
    ):
        with pytest.raises(HeadAwareError, match=sentence):
            ladders.of(options)


def test_a_budget_nobody_can_keep_is_refused() -> None:
    with pytest.raises(HeadAwareError, match="less than the"):
        Ladders(PLAN, RequestLimits()).of(RequestOptions(budget=5))


def test_full_is_never_tightened() -> None:
    ladders = Ladders(PLAN, RequestLimits())
    assert ladders.of(RequestOptions(full=True)) == [(None, None, None)]
    assert ladders.default[0] == PLAN.windows
    assert len(ladders.default) > 1
    assert Ladders(PLAN, RequestLimits(floor=1.0)).default == [PLAN.windows]


def test_a_budget_caps_retrieval_heads_of_one_request() -> None:
    windows = Ladders(PLAN, RequestLimits()).of(RequestOptions(budget=600))[0]
    assert windows[0] is not None
    assert PLAN.mean_tokens(windows) <= 600 < PLAN.mean_tokens()
