"""--kv-policy and its companions: on the command line, in vLLM's YAML config, and in LLM(...)."""

from __future__ import annotations

import dataclasses
import sys
from argparse import ArgumentParser
from typing import Any

from vllm_headaware.config import FIELDS, PARSERS, KVPolicyConfig, make_config
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.kernels.formats import FORMATS
from vllm_headaware.policies import POLICIES
from vllm_headaware.vllm_compat.front_end.checkpoint import refuse_broken_config
from vllm_headaware.vllm_compat.wrap import wrap

PREFIX = "kv_"
ARGUMENTS = (*FIELDS, "policy_config")
MOST_SAID = 600
"""Characters of vLLM's own words."""


def install() -> None:
    """Add the flags to vLLM's engine arguments."""
    from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs

    for owner in (EngineArgs, AsyncEngineArgs):
        wrap(owner, "__init__", _init)
    wrap(EngineArgs, "add_cli_args", _add_cli_args)
    wrap(EngineArgs, "from_cli_args", _from_cli_args)
    wrap(EngineArgs, "create_engine_config", _create_engine_config)


HELP: dict[str, tuple[str, str]] = {
    "policy": (
        "{" + ",".join(POLICIES) + "}",
        "What each KV head keeps. full: everything, as without the plugin. headaware: retrieval"
        " heads keep everything, induction heads a wide window, local heads attention sinks and a"
        " window; freed blocks return to the pool. streamingllm: sinks and a window for all heads."
        " h2o: sinks, the latest blocks and those with the most attention, up to --kv-budget.",
    ),
    "head_profile": (
        "PATH|auto",
        "Head profile made by `vllm-headaware profile MODEL`. auto: next to the model, then the"
        " user's cache, else profile now and keep it.",
    ),
    "retrieval_share": (
        "SHARE",
        "Share of all KV heads that keep everything, 0 to 1; of fewer than twelve heads at least"
        " two, unless it is 0.",
    ),
    "retrieval_keep": (
        "SHARE",
        "Share of a prompt's tokens that these keep once it has been read, above 0 and up to 1:"
        " each head its own, by scores of the profile. Text that is to be repeated word for word"
        " suffers first. 1: all.",
    ),
    "retrieval_recent": (
        "TOKENS",
        "Latest tokens of a prompt that all stay where --kv-retrieval-keep is below 1.",
    ),
    "induction_share": ("SHARE", "Share of all KV heads that keep the wide window, 0 to 1."),
    "sink": ("TOKENS", "First tokens that windowed heads always keep."),
    "window": ("TOKENS", "Last tokens that local heads keep."),
    "induction_window": ("TOKENS", "Last tokens that induction heads keep."),
    "prefill_window": (
        "TOKENS|auto",
        "While a prompt is read, windows are at least this wide; what is more than they keep is"
        " freed when decoding begins. auto: in full, or as wide as the pool can hold when the"
        " request starts. 0: no wider than ever.",
    ),
    "retrieval_dtype": (
        "DTYPE",
        f"How retrieval heads store K and V: {', '.join(FORMATS)}, or auto: k8v4 where the native"
        " kernels run, else the model's dtype.",
    ),
    "induction_dtype": ("DTYPE", "The same for induction heads."),
    "local_dtype": ("DTYPE", "The same for local heads."),
    "own_window_dtype": (
        "DTYPE",
        "The same for layers that the model itself gives a sliding window; auto: as local heads.",
    ),
    "budget": (
        "TOKENS_PER_LAYER",
        "Tokens that a KV head of a layer keeps of a request, on average, instead of the windows"
        " above: retrieval, induction and local heads get it as 1 : 0.36 : 0.16. 0: unlimited.",
    ),
    "floor": (
        "SHARE",
        "Share of each window that new requests get at least when memory runs low, above 0 to 1."
        " 1: windows never shrink, requests wait.",
    ),
    "elastic": (
        "prompt|all|off",
        "When requests may keep more than their windows. prompt: while the prompt is read. all: as"
        " long as there is room; when memory runs low, running requests are squeezed to their"
        " windows, then to the floor. off: never, unless --kv-prefill-window names a width.",
    ),
    "admission": (
        "predict|reserve",
        "When a request starts. predict: when the pool can hold it at the length that answers of"
        " this server are learned to reach. reserve: when it can hold it with all of max_tokens, so"
        " that no running request is ever put back.",
    ),
    "request_budget_min": ("TOKENS", "Least kv_budget that a request may ask for."),
    "request_budget_max": ("TOKENS", "Largest kv_budget that a request may ask for; 0: any."),
    "request_full": ("allow|refuse", "Whether a request may ask for kv_policy full."),
}
"""Value's name and help text of every field of KVPolicyConfig; defaults come from the class."""


def add_flags(parser: ArgumentParser) -> None:
    """Define the flags on a parser; a flag that is not given stays None."""
    group = parser.add_argument_group(
        title="KVPolicy",
        description="Per-head KV cache policy (vllm-headaware).",
    )
    for field in dataclasses.fields(KVPolicyConfig):
        metavar, text = HELP[field.name]
        group.add_argument(
            f"--{PREFIX}{field.name}".replace("_", "-"),
            type=PARSERS[field.name],
            default=None,
            metavar=metavar,
            help=f"{text} Default: {field.default}.",
        )
    group.add_argument(
        "--kv-policy-config",
        default=None,
        metavar="FILE",
        help="JSON or YAML file with any of the above (policy, retrieval_share, sink, ...); flags"
        " win over it.",
    )


def _init(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    given = {name: kwargs.pop(PREFIX + name, None) for name in ARGUMENTS}
    self._kv_policy_given = given
    self._kv_policy_from_cli = False
    original(self, *args, **kwargs)


def _add_cli_args(original: Any, parser: Any) -> Any:
    parser = original(parser)
    add_flags(parser)
    return parser


def _from_cli_args(original: Any, cls: Any, args: Any) -> Any:
    engine_args = original(cls, args)
    engine_args._kv_policy_given = {n: getattr(args, PREFIX + n, None) for n in ARGUMENTS}
    engine_args._kv_policy_from_cli = True
    return engine_args


def _create_engine_config(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        given = dict(self._kv_policy_given)
        config = make_config(given, given.pop("policy_config"))
        if not config.active:
            return original(self, *args, **kwargs)
        refuse_broken_config(self.model)
        vllm_config = _vllms_own(original, self, *args, **kwargs)
        from vllm_headaware.vllm_compat.front_end.activate import activate

        activate(vllm_config, config)
        return vllm_config
    except HeadAwareError as error:
        if not self._kv_policy_from_cli:
            raise
        print(f"vllm: error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def _vllms_own(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """vLLM's config; what it refuses on the command line is a sentence too, for whatever reason."""
    try:
        return original(self, *args, **kwargs)
    except Exception as error:
        if not self._kv_policy_from_cli:
            raise
        detail = " ".join(str(error).split())[:MOST_SAID]
        raise HeadAwareError(
            f"vLLM cannot serve {self.model}: {detail or type(error).__name__}; --kv-policy full"
            " shows where that happens"
        ) from error
