"""vllm-headaware eval long: fidelity at length, in the real engine."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

DESCRIPTION = """\
Give stock vLLM and the policy the same prompts with the same right answers, token by token, and
compare what they thought of them: nats lost, first choices, KL, and the bytes that a request holds.
Needles, trails, look-ups in tables and logs, edits, copies, text, code, a question that comes in a
second turn, and answers of 2,000 tokens. Nothing is masked. A run that was stopped goes on where it
was. Writes long.json, long.md and long.png."""

EPILOG = """\
examples:
  vllm-headaware eval long ./model --quick
  vllm-headaware eval long ./model --kinds copies,edits --lengths 4000 --samples 8
  vllm-headaware eval long ./model --also int4:retrieval_dtype=int4,local_dtype=int4
  vllm-headaware eval long ./model --also sinks:policy=streamingllm,window=2048
"""


def add_parser(subparsers: Any) -> None:
    """Define `eval long`."""
    from vllm_headaware.cli.eval_options import DEMO_MODEL, add_run_options
    from vllm_headaware.cli.plan import parse_lengths
    from vllm_headaware.tasks.long import KINDS
    from vllm_headaware.vllm_compat.front_end.flags import add_flags

    parser = subparsers.add_parser(
        "long",
        help="right answers given token by token in the real engine; --quick: ten minutes",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", default=DEMO_MODEL, help=f"model folder ({DEMO_MODEL})")
    parser.add_argument("-o", "--output", type=Path, default=Path("long"), metavar="DIR")
    parser.add_argument(
        "--quick", action="store_true", help="eight kinds, 2,000 and 4,000 tokens, one prompt each"
    )
    parser.add_argument("--kinds", metavar="KIND,...", help=f"of {', '.join(KINDS)}; all")
    parser.add_argument(
        "--lengths",
        type=parse_lengths,
        metavar="N,...",
        help="tokens of prompts; a quarter, a half and nearly all of the model's limit",
    )
    parser.add_argument("--samples", type=int, metavar="N", help="prompts of a kind and length (3)")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME:FIELD=VALUE,...",
        help="one more side: fields as in --kv-policy-config; may be given again",
    )
    parser.add_argument("--dtype", default="float32", help="of the engine (float32)")
    add_run_options(parser)
    add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, write and print; see cli/eval.py."""
    from transformers import AutoConfig, AutoTokenizer

    from vllm_headaware.cli.eval_options import journal_of, policy_and_profile
    from vllm_headaware.config import KVPolicyConfig
    from vllm_headaware.errors import HeadAwareError
    from vllm_headaware.eval.long import QUICK, QUICK_LENGTHS, Side, compare, lengths_of
    from vllm_headaware.eval.long_report import draw, markdown
    from vllm_headaware.eval.measure import FULL
    from vllm_headaware.tasks.long import KINDS

    folder, config, profile = policy_and_profile(args, args.model, KVPolicyConfig("headaware"))
    kinds = tuple(args.kinds.split(",")) if args.kinds else QUICK if args.quick else KINDS
    samples = args.samples if args.samples is not None else 1 if args.quick else 3
    if samples < 1:
        raise HeadAwareError(f"--samples must be at least 1, got {samples}")
    most = AutoConfig.from_pretrained(folder).get_text_config().max_position_embeddings
    lengths = args.lengths or (QUICK_LENGTHS if args.quick else lengths_of(most, kinds))
    sides = [Side(FULL, {}), Side("headaware", as_arguments(config)), *map(parse_side, args.also)]
    report = compare(
        folder,
        profile.model.hash,
        AutoTokenizer.from_pretrained(folder),
        sides,
        kinds=kinds,
        lengths=lengths,
        count=samples,
        split=args.split,
        seed=args.seed,
        dtype=args.dtype,
        journal=journal_of(args, profile),
    )
    report = {"model": profile.model.name, **report}
    text = markdown(report)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "long.json").write_text(json.dumps(report) + "\n", encoding="utf-8")
        (args.output / "long.md").write_text(text, encoding="utf-8")
        draw(report, args.output / "long.png")
    except OSError as error:
        raise HeadAwareError(f"cannot write results to {args.output}: {error}") from error
    print(json.dumps(report) if args.json else f"{text}\nWritten to {args.output}.")
    return 0


def as_arguments(config: Any) -> dict[str, Any]:
    """Arguments of vllm.LLM: the policy, and what differs from its defaults."""
    from vllm_headaware.config import FIELDS, KVPolicyConfig

    plain = KVPolicyConfig(config.policy)
    found = {name: getattr(config, name) for name in FIELDS}
    changed = {
        f"kv_{name}": value for name, value in found.items() if value != getattr(plain, name)
    }
    return {"kv_policy": config.policy, **changed}


def parse_side(text: str) -> Any:
    """`int4:local_dtype=int4` -> a side of that name.

    Raises:
        HeadAwareError: no such form, field or value.
    """
    from vllm_headaware.config import make_config
    from vllm_headaware.errors import HeadAwareError
    from vllm_headaware.eval.long import Side

    name, _, fields = text.partition(":")
    pairs = [part.partition("=") for part in fields.split(",") if part]
    if not name or not pairs or not all(equals for _, equals, _ in pairs):
        raise HeadAwareError(f"--also is NAME:FIELD=VALUE,..., got {text!r}")
    given: dict[str, Any] = {"policy": "headaware"}
    given |= {field: _plain(value) for field, _, value in pairs}
    return Side(name, as_arguments(make_config(given)))


def _plain(text: str) -> Any:
    """A number if it is one, else the text."""
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text
