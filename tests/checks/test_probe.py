"""What the probe makes of its command line."""

from typing import Any

import pytest

from checks.probe import policy_option
from vllm_headaware.config import make_config


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("prefill_window=2048", "kv_prefill_window", 2048),
        ("retrieval_share=0.3", "kv_retrieval_share", 0.3),
        ("retrieval_dtype=int4", "kv_retrieval_dtype", "int4"),
        ("colour=blue", "kv_colour", "blue"),
    ],
)
def test_an_option_has_the_type_of_its_field(text: str, name: str, value: Any) -> None:
    assert policy_option(text) == (name, value)
    if name != "kv_colour":  # the engine itself refuses that
        config = make_config({"policy": "headaware", name.removeprefix("kv_"): value})
        assert getattr(config, name.removeprefix("kv_")) == value
