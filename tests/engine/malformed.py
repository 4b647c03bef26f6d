"""Model folders with one thing broken in each, given to vLLM's command line as far as its config.

Run as `python -m tests.engine.malformed '{"model": ..., "folder": ..., "count": 200}'`.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.engine.child import report
from vllm_headaware.profile.locate import FILE_NAME

GARBAGE: list[Any] = [-1, 0, 2**40, 1.5, True, "", "?", "8", [], [4], {}, {"a": 1}]
COUNTS = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_size",
    "vocab_size",
    "max_position_embeddings",
)


def bad_number(folder: Path, rng: random.Random) -> str:
    name = rng.choice(COUNTS)
    value: Any = rng.choice(GARBAGE)
    edit(folder / "config.json", lambda config: config.update({name: value}))
    return f"{name} {value!r}"


def missing_number(folder: Path, rng: random.Random) -> str:
    """What a Llama's config may not leave out: transformers would fill in a 7B model's."""
    name = rng.choice(("num_hidden_layers", "num_attention_heads", "hidden_size"))
    edit(folder / "config.json", lambda config: config.pop(name))
    return name


def other_shape(folder: Path, rng: random.Random) -> str:
    """A config of another model than the weights and the profile are of."""
    name, value = rng.choice(
        [
            ("num_hidden_layers", rng.choice((1, 2, 3, 5, 8))),
            ("num_key_value_heads", rng.choice((1, 2, 3, 8))),
            ("num_attention_heads", rng.choice((1, 2, 3, 5, 12))),
        ]
    )
    edit(folder / "config.json", lambda config: config.update({name: value}))
    return f"{name} {value}"


def foreign_model(folder: Path, rng: random.Random) -> str:
    kind: Any = rng.choice(
        ("lama", "bert", "t5", "clip", "mamba", "whisper", "resnet", "", 7, None, [])
    )
    names = rng.choice((["LamaForCausalLM"], ["BertModel"], [], None, 3, ["T5Model"]))
    change = {"model_type": kind, "architectures": names}
    edit(folder / "config.json", lambda config: config.update(change))
    return f"{change}"


def bad_json(folder: Path, rng: random.Random) -> str:
    path = folder / rng.choice(("config.json", FILE_NAME))
    data = path.read_bytes()
    kind = rng.randrange(5)
    if kind == 0:
        path.write_bytes(data[: rng.randrange(len(data) - 2)])
    elif kind == 1:
        path.write_bytes(data[:5] + bytes([0xFF, 0xFE]) + data[5:])
    elif kind == 2:
        path.write_text(json.dumps(rng.choice([None, 3, "x", [], [1]])))
    elif kind == 3:
        path.write_text("[" * 100_000)
    else:
        path.unlink()
        path.mkdir()
    return f"{path.name}, {kind}"


def bad_profile(folder: Path, rng: random.Random) -> str:
    part = rng.choice(("model", "scores", "checksum", "format", "version", "method"))
    value = rng.choice(GARBAGE)
    edit(folder / FILE_NAME, lambda profile: profile.update({part: value}))
    return f"{part} {value!r}"


def bad_score(folder: Path, rng: random.Random) -> str:
    value: Any = rng.choice([None, "1", -1.0, float("nan"), float("inf"), [], 0.123])
    name = rng.choice(("gate", "answer", "copy", "induction"))

    def spoil(profile: Any) -> None:
        profile["scores"][name][rng.randrange(4)][rng.randrange(4)] = value

    edit(folder / FILE_NAME, spoil)
    return f"{name} {value!r}"


def bad_weights(folder: Path, rng: random.Random) -> str:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    kind = rng.randrange(6)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.write_bytes(data[: rng.randrange(len(data))])
    elif kind == 2:
        path.write_bytes(data + b"more")
    elif kind == 3:
        path.write_bytes(rng.randbytes(1000))
    elif kind == 4:
        path.write_bytes((2**62).to_bytes(8, "little") + data[8:])
    else:  # other weights of the same shape: the profile is not theirs
        path.write_bytes(data[:-4] + rng.randbytes(4))
    return f"{kind}"


KINDS: tuple[Callable[[Path, random.Random], str], ...] = (
    bad_number,
    missing_number,
    other_shape,
    foreign_model,
    bad_json,
    bad_profile,
    bad_score,
    bad_weights,
)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file's object."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def ask(folder: Path) -> tuple[Any, str]:
    """What the command line comes to: its exit status and stderr, or a traceback."""
    from vllm.engine.arg_utils import EngineArgs

    make: Any = EngineArgs
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            args: Any = make(
                model=str(folder),
                dtype="float32",
                max_model_len=512,
                enforce_eager=True,
                kv_policy="headaware",
            )
            args._kv_policy_from_cli = True
            args.create_engine_config()
        except SystemExit as stop:
            return stop.code, said.getvalue()
        except BaseException:
            return "raised", traceback.format_exc()
    return "accepted", said.getvalue()


def main() -> None:
    """Break, ask, and report, as (seed, kind, what was broken, status, stderr)."""
    options = json.loads(sys.argv[1])
    parent, folder = Path(options["model"]), Path(options["folder"])
    rows = []
    for seed in range(options["count"]):
        rng, bad = random.Random(seed), KINDS[seed % len(KINDS)]
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(parent, folder)
        what = bad(folder, rng)
        rows.append((seed, bad.__name__, what, *ask(folder)))
    report(rows)


if __name__ == "__main__":
    main()
