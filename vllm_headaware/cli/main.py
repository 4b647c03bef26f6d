"""vllm-headaware: the console command. Each subcommand is a module with add_parser() and run()."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from vllm_headaware import __version__
from vllm_headaware.errors import HeadAwareError

COMMANDS = {
    "profile": "measure which KV heads of a model need long history",
    "inspect": "look at a head profile: heat strip, ranking, PNG",
    "plan": "heads per class, bytes per request, concurrency before and after",
    "doctor": "check the installation: versions, entry points, device",
}

DESCRIPTION = """\
Give each attention KV head the cache it needs. The usual way: `profile` a model once, `inspect` what
was found, `plan` what it saves, then `vllm serve MODEL --kv-policy headaware`."""

EPILOG = """\
examples:
  vllm-headaware profile ./model
  vllm-headaware inspect ./model --png heads.png
  vllm-headaware plan ./model --memory 8GiB

Exit status: 0 done, 1 a check failed, 2 wrong arguments or something that cannot be used."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; errors meant for users become one message on stderr and status 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = make_parser(argv[0] if argv else "").parse_args(argv)
    try:
        return int(importlib.import_module(_module(args.command)).run(args))
    except HeadAwareError as error:
        print(f"vllm-headaware {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def make_parser(command: str) -> argparse.ArgumentParser:
    """The whole parser, of which only `command` is imported; the others are known by name."""
    parser = argparse.ArgumentParser(
        prog="vllm-headaware",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        if name == command:
            importlib.import_module(_module(name)).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


def _module(command: str) -> str:
    return f"vllm_headaware.cli.{command}"


if __name__ == "__main__":
    sys.exit(main())
