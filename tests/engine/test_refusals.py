"""Invariant 8: what cannot be served is refused before weights load, in one sentence."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from testbench.random_profile import make_profile, write_profile
from vllm_headaware.config import KVPolicyConfig
from vllm_headaware.errors import HeadAwareError
from vllm_headaware.profile.locate import FILE_NAME
from vllm_headaware.vllm_compat.front_end.activate import token_scores_for
from vllm_headaware.vllm_compat.front_end.conflicts import CONFLICTS, as_markdown, refuse_conflicts

POLICY, H2O = KVPolicyConfig("headaware"), KVPolicyConfig("h2o", budget=512)
HEADAWARE = ("--kv-policy", "headaware")
SERVABLE = {
    "device_config": SimpleNamespace(device_type="cpu"),
    "model_config": SimpleNamespace(
        use_mla=False,
        is_encoder_decoder=False,
        is_mm_prefix_lm=False,
        runner_type="generate",
        is_hybrid=False,
        is_attention_free=False,
    ),
    "cache_config": SimpleNamespace(cache_dtype="auto", kv_offloading_size=None),
    "speculative_config": None,
    "kv_transfer_config": None,
    "scheduler_config": SimpleNamespace(disable_hybrid_kv_cache_manager=False),
    "parallel_config": SimpleNamespace(
        pipeline_parallel_size=1,
        decode_context_parallel_size=1,
        prefill_context_parallel_size=1,
        use_ubatching=False,
        tensor_parallel_size=1,
    ),
    "use_v2_model_runner": False,
}
CHANGES = {
    "this device": ("device_config.device_type", "xpu"),
    "AMD GPUs (ROCm)": ("device_config.device_type", "cuda"),
    "images whose tokens see each other both ways (Gemma-3)": (
        "model_config.is_mm_prefix_lm",
        True,
    ),
    "multi-head latent attention (MLA)": ("model_config.use_mla", True),
    "encoder-decoder models": ("model_config.is_encoder_decoder", True),
    "pooling models": ("model_config.runner_type", "pooling"),
    "hybrid state-space or attention-free models": ("model_config.is_hybrid", True),
    "--kv-cache-dtype": ("cache_config.cache_dtype", "fp8"),
    "drafts by a model (--speculative-config with other methods than ngram)": (
        "speculative_config",
        SimpleNamespace(method="eagle"),
    ),
    "h2o with --speculative-config": ("speculative_config", SimpleNamespace(method="ngram")),
    "--kv-transfer-config": ("kv_transfer_config", object()),
    "--kv-offloading-size": ("cache_config.kv_offloading_size", 1.0),
    "--disable-hybrid-kv-cache-manager": (
        "scheduler_config.disable_hybrid_kv_cache_manager",
        True,
    ),
    "--pipeline-parallel-size above 1": ("parallel_config.pipeline_parallel_size", 2),
    "context parallelism": ("parallel_config.decode_context_parallel_size", 2),
    "dual-batch overlap (ubatching)": ("parallel_config.use_ubatching", True),
    "h2o with --tensor-parallel-size above 1": ("parallel_config.tensor_parallel_size", 2),
    "h2o on GPUs": ("use_v2_model_runner", True),
    "model runner V1 on GPUs": ("device_config.device_type", "cuda"),
}


def config_with(path: str = "", value: object = None) -> SimpleNamespace:
    """A servable config with one value changed, by its dotted name."""
    parts = {
        name: SimpleNamespace(**vars(part)) if isinstance(part, SimpleNamespace) else part
        for name, part in SERVABLE.items()
    }
    config = SimpleNamespace(**parts)
    if path:
        owner, _, name = path.rpartition(".")
        setattr(getattr(config, owner) if owner else config, name, value)
    return config


def test_a_servable_config_passes() -> None:
    refuse_conflicts(config_with(), H2O)
    refuse_conflicts(config_with("parallel_config.tensor_parallel_size", 2), POLICY)


@pytest.mark.parametrize("what", [*CHANGES])
def test_every_conflict_is_refused_by_name(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.hip", "7.0" if "ROCm" in what else None)
    with pytest.raises(HeadAwareError) as refused:
        refuse_conflicts(config_with(*CHANGES[what]), H2O if what.startswith("h2o") else POLICY)
    assert f"does not support {what}" in str(refused.value)
    assert "--kv-policy full" in str(refused.value)


def test_every_conflict_has_its_test() -> None:
    others = {
        "VLLM_KV_CACHE_LAYOUT other than BLHNC",
        "h2o with --kv-elastic all",
        "--kv-retrieval-keep with --kv-elastic all",
        "--kv-retrieval-keep with --speculative-config",
    }
    assert {c.what for c in CONFLICTS} == {*CHANGES, *others}


def test_a_share_of_a_prompt_is_kept_of_what_is_settled() -> None:
    keeping = replace(POLICY, retrieval_keep=0.5)
    refuse_conflicts(config_with(), keeping)
    with pytest.raises(HeadAwareError, match=r"retrieval-keep with --kv-elastic all"):
        refuse_conflicts(config_with(), replace(keeping, elastic="all"))
    drafts = config_with("speculative_config", SimpleNamespace(method="ngram"))
    with pytest.raises(HeadAwareError, match=r"retrieval-keep with --speculative-config"):
        refuse_conflicts(drafts, keeping)
    refuse_conflicts(drafts, POLICY)


def test_a_profile_that_cannot_tell_tokens_apart(own_model: Path) -> None:
    profile = make_profile(own_model)
    keeping = replace(POLICY, retrieval_keep=0.5)
    assert token_scores_for(keeping, profile) == profile.token_scores != ""
    assert token_scores_for(POLICY, profile) == ""
    with pytest.raises(HeadAwareError, match=r"needs token scores.*make a new one"):
        token_scores_for(keeping, replace(profile, token_scores=""))


def test_heavy_hitters_are_not_squeezed() -> None:
    with pytest.raises(HeadAwareError, match=r"h2o with --kv-elastic all.*--kv-elastic prompt"):
        refuse_conflicts(config_with(), replace(H2O, elastic="all"))
    refuse_conflicts(config_with(), replace(POLICY, elastic="all"))


def test_the_matrix_is_documented() -> None:
    """Where this fails, put the tables that as_markdown() returns into the document."""
    document = Path(__file__).parents[2] / "docs" / "compatibility.md"
    assert as_markdown() in document.read_text(encoding="utf-8")


def test_a_foreign_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_KV_CACHE_LAYOUT", "LBNHC")
    with pytest.raises(HeadAwareError, match="VLLM_KV_CACHE_LAYOUT"):
        refuse_conflicts(config_with(), POLICY)


def serve(model: Path, *flags: str) -> tuple[int, str]:
    """Exit status and stderr of a `vllm serve` that is expected to refuse."""
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(model)]
    done = subprocess.run(
        [*command, "--dtype", "float32", "--port", "0", *flags],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def own_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil, without a profile."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns(FILE_NAME))
    return folder


@pytest.mark.engine
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--kv-policy", "headawre"), "did you mean 'headaware'?"),
        ((*HEADAWARE, "--kv-retrieval-share", "1.5"), "must be a number from 0 to 1"),
        (("--kv-window", "128"), "add --kv-policy headaware"),
        ((*HEADAWARE, "--kv-cache-dtype", "fp8_e5m2"), "does not support --kv-cache-dtype"),
        ((*HEADAWARE, "--kv-head-profile", "/nowhere.json"), "does not exist"),
    ],
    ids=["typo", "share", "idle flag", "conflict", "no profile"],
)
def test_the_command_line_refuses(own_model: Path, flags: tuple[str, ...], sentence: str) -> None:
    write_profile(own_model)
    status, output = serve(own_model, *flags)
    assert status == 2, output[-2000:]
    lines = [line for line in output.splitlines() if line.startswith("vllm: error: ")]
    assert len(lines) == 1, output[-2000:]
    assert sentence in lines[0]
    assert "Traceback" not in output
    assert "Loading weights" not in output


@pytest.mark.engine
@pytest.mark.parametrize("damage", ["truncated", "other model", "nan", "shape"])
def test_a_bad_profile_is_refused(own_model: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "profile.json"
    profile = make_profile(own_model)
    profile.save(path)
    if damage == "truncated":
        path.write_text(path.read_text()[:200])
    else:
        values = json.loads(path.read_text())
        if damage == "other model":
            values["model"]["hash"] = "sha256:" + "0" * 64
        elif damage == "nan":
            values["scores"]["gate"][0][0] = float("nan")
        else:
            values["scores"]["gate"].pop()
        path.write_text(json.dumps(values))
    status, output = serve(own_model, *HEADAWARE, "--kv-head-profile", str(path))
    assert status == 2, output[-2000:]
    (line,) = [line for line in output.splitlines() if line.startswith("vllm: error: ")]
    assert str(path) in line
    assert "Traceback" not in output
