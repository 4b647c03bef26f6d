"""vllm-headaware: profile | inspect | plan | eval | top | doctor."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Any

from vllm_headaware import __version__
from vllm_headaware.errors import HeadAwareError

COMMANDS = {
    "profile": "score every KV head of a model",
    "inspect": "show a head profile as a layer x head map",
    "plan": "heads per class, bytes per request, concurrency before and after",
    "eval": "what the model still knows: headaware and baselines at equal bytes",
    "top": "what each KV head of a running server holds, live",
    "doctor": "check the installation: versions, entry points, device",
}

EPILOG = """\
a first session:
  vllm-headaware doctor                     is everything installed?
  vllm-headaware profile ./model            measure the KV heads once
  vllm-headaware inspect ./model            look at them
  vllm-headaware plan ./model               what would it cost, and the command to serve it
  vllm-headaware eval quick ./model         what does it still know, beside a full cache?
  vllm serve ./model --kv-policy headaware
  vllm-headaware top                        what each head holds, while it serves
"""


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; a HeadAwareError becomes one line on stderr and exit status 2."""
    argv = sys.argv[1:] if argv is None else argv
    args = make_parser(argv[0] if argv else "").parse_args(argv)
    try:
        return int(_module(args.command).run(args))
    except HeadAwareError as error:
        print(f"vllm-headaware {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone: keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def make_parser(command: str) -> argparse.ArgumentParser:
    """The parser, for which only `command` is imported: the others are slow and not asked for."""
    parser = argparse.ArgumentParser(
        prog="vllm-headaware",
        description="Per-head KV cache policies for stock vLLM.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        if name == command:
            _module(name).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


def _module(command: str) -> Any:
    return importlib.import_module(f"vllm_headaware.cli.{command}")


if __name__ == "__main__":
    sys.exit(main())
