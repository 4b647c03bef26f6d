"""vllm-headaware: profile | inspect | plan | doctor."""

from __future__ import annotations

import argparse
import importlib
import sys

from vllm_headaware import __version__
from vllm_headaware.errors import HeadAwareError

COMMANDS = ("profile", "inspect", "plan", "doctor")

EPILOG = """\
a first session:
  vllm-headaware doctor                     is everything installed?
  vllm-headaware profile ./model            measure the KV heads once
  vllm-headaware inspect ./model            look at them
  vllm-headaware plan ./model               what would it cost, and the command to serve it
  vllm serve ./model --kv-policy headaware
"""


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; a HeadAwareError becomes one line on stderr and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="vllm-headaware",
        description="Per-head KV cache policies for stock vLLM.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = {name: importlib.import_module(f"vllm_headaware.cli.{name}") for name in COMMANDS}
    for module in modules.values():
        module.add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        return modules[args.command].run(args)
    except HeadAwareError as error:
        print(f"vllm-headaware {args.command}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
