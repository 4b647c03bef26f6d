"""lm-eval, a harness of other people, asks the running server, with the policy and without.

    python -m checks.outside_check --model DIR

It lives in an environment of its own (`make lm-eval-tool`) and knows only the HTTP API
(`local-completions`). It runs needle tasks of RULER whose texts it generates itself, and rolling
likelihood of held-out text. The last line is one JSON object: by side the metrics of each task, and
the ratio of the policy's to stock's. Exit status: 0 when both sides were measured, else 2.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testbench.progress import say
from testbench.server import DEMO, SERVED_NAME, Server, ServerError, exit_on_sigterm

ROOT = Path(__file__).resolve().parent.parent
LM_EVAL = ROOT / ".cache" / "lm-eval" / "bin" / "lm_eval"
NEEDLES = ("niah_single_1", "niah_multikey_2")
TEXT_TASK = "held_out_text"
TEXT_CHARACTERS = 9000
NOT_RUN = -1
"""What RULER's tasks report for lengths that were not asked for."""
TIMEOUT_SECONDS = 1800.0


def write_text_task(folder: Path, passages: int) -> None:
    """A task in lm-eval's form: likelihood of passages from the second half of the text."""
    from vllm_headaware.tasks.text import half_of_text

    text = half_of_text("evaluation")
    step = len(text) // passages
    data = folder / f"{TEXT_TASK}.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for number in range(passages):
            passage = text[number * step :][:TEXT_CHARACTERS]
            file.write(json.dumps({"text": passage}) + "\n")
    metrics = [
        {"metric": name, "aggregation": aggregation, "higher_is_better": False}
        for name, aggregation in (
            ("bits_per_byte", "bits_per_byte"),
            ("word_perplexity", "weighted_perplexity"),
        )
    ]
    task = {
        "task": TEXT_TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": metrics,
    }
    # YAML reads JSON.
    (folder / f"{TEXT_TASK}.yaml").write_text(json.dumps(task), encoding="utf-8")


def lm_eval_command(
    args: argparse.Namespace, url: str, tasks: Sequence[str], limit: int, output: Path
) -> list[str]:
    """One run of lm-eval against a server."""
    reached = {
        "model": SERVED_NAME,
        "base_url": f"{url}/v1/completions",
        "tokenizer": args.model.resolve(),
        "num_concurrent": 2,
        "max_length": max(args.tokens, 4096),
    }
    metadata = {"max_seq_lengths": [args.tokens], "tokenizer": str(args.model.resolve())}
    return [
        str(args.lm_eval),
        *("--model", "local-completions"),
        *("--model_args", ",".join(f"{name}={value}" for name, value in reached.items())),
        *("--tasks", ",".join(tasks), "--include_path", str(args.output)),
        *("--limit", str(limit), "--metadata", json.dumps(metadata)),
        *("--output_path", str(output)),
    ]


def read_metrics(output: Path) -> dict[str, dict[str, float]]:
    """Metrics by task of the only result file below a folder, without errors of estimate."""
    (path,) = output.rglob("results_*.json")
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    return {
        task: {
            name.removesuffix(",none"): value
            for name, value in values.items()
            if isinstance(value, int | float)
            and "stderr" not in name
            and value != NOT_RUN
            and name != "sample_len"
        }
        for task, values in results.items()
    }


def measure(name: str, serve_args: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """All tasks on one server.

    Raises:
        ServerError: the server did not start, or lm-eval failed; names the log.
    """
    log = args.output / f"{name}.server.log"
    say(f"{name}: starting a server")
    measured: dict[str, Any] = {}
    with Server(args.model, port=0, log=log, serve_args=serve_args) as server:
        for tasks, limit in ((NEEDLES, args.limit), ((TEXT_TASK,), args.passages)):
            say(f"{name}: {', '.join(tasks)}")
            output, harness_log = args.output / f"{name}.{tasks[0]}", args.output / f"{name}.log"
            for old in output.rglob("results_*.json"):
                old.unlink()
            with harness_log.open("ab") as file:
                done = subprocess.run(
                    lm_eval_command(args, server.url, tasks, limit, output),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=TIMEOUT_SECONDS,
                    env={**os.environ, "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"},
                    check=False,
                )
            if done.returncode:
                raise ServerError(f"lm-eval ended with {done.returncode}; see {harness_log}")
            measured |= read_metrics(output)
    return measured


def conclude(ours: dict[str, Any], stock: dict[str, Any]) -> dict[str, Any]:
    """The last line."""
    ratios = {
        task: {
            name: value / stock[task][name] for name, value in metrics.items() if stock[task][name]
        }
        for task, metrics in ours.items()
    }
    return {"policy": ours, "stock": stock, "ratio": ratios}


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=DEMO, help="model folder")
    parser.add_argument("--kv-policy", default="headaware")
    parser.add_argument("--lm-eval", type=Path, default=LM_EVAL, help="the lm_eval command")
    parser.add_argument("--tokens", type=int, default=2048, help="length of the needle prompts")
    parser.add_argument("--limit", type=int, default=8, metavar="PROMPTS", help="of a needle task")
    parser.add_argument("--passages", type=int, default=4, help="of held-out text")
    parser.add_argument("--output", type=Path, default=Path(".cache/outside_check"))
    parser.add_argument("--serve-args", nargs="*", default=["--enforce-eager"])
    args = parser.parse_args(argv)
    exit_on_sigterm()
    if not args.lm_eval.exists():
        print(f"outside_check: no {args.lm_eval}; run `make lm-eval-tool`", file=sys.stderr)
        return 2
    args.output.mkdir(parents=True, exist_ok=True)
    write_text_task(args.output, args.passages)
    try:
        ours = measure(args.kv_policy, ["--kv-policy", args.kv_policy, *args.serve_args], args)
        stock = measure("stock", args.serve_args, args)
    except (ServerError, subprocess.TimeoutExpired) as error:
        print(f"outside_check: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(conclude(ours, stock)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
