"""The model oracle is stock where nothing is hidden, and hides exactly what it should."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from testbench import hf_reference as hf
from testbench.hf_reference import HFReference
from tests.reference.tiny import TINY, TINY_1_HEAD, TINY_3_KV_HEADS, TinyShape, make_tiny_model
from vllm_headaware.kernels.reference import UNLIMITED, HeadRule


def prompt(shape: TinyShape, num_tokens: int) -> list[int]:
    generator = torch.Generator().manual_seed(11)
    return torch.randint(7, shape.vocab_size, (num_tokens,), generator=generator).tolist()


def stock_logprobs(folder: Path, ids: list[int], mask: torch.Tensor | None = None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        return model(torch.tensor([ids]), attention_mask=mask).logits[0].log_softmax(-1)


@pytest.mark.parametrize("shape", [TINY, TINY_3_KV_HEADS], ids=["4-kv-heads", "3-kv-heads"])
def test_unlimited_equals_stock(tmp_path: Path, shape: TinyShape) -> None:
    folder = make_tiny_model(tmp_path, shape)
    ids = prompt(shape, 97)
    torch.testing.assert_close(
        HFReference(folder).logprobs(ids), stock_logprobs(folder, ids), atol=2e-5, rtol=0
    )


def test_a_window_hides_what_a_hand_made_mask_hides(tmp_path: Path) -> None:
    """sink 3 and window 4 in blocks of 4: query 9 sees 0-3 (rounded up) and 4-9 (from token 6)."""
    folder = make_tiny_model(tmp_path, TINY_1_HEAD)
    ids = prompt(TINY_1_HEAD, 14)
    first_of_window = [0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8]
    mask = torch.full((1, 1, 14, 14), float("-inf"))
    for query, start in enumerate(first_of_window):
        mask[0, 0, query, start : query + 1] = 0
        mask[0, 0, query, : min(4, query + 1)] = 0
    assert (mask[0, 0] == 0).sum(1).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 8, 9, 10]

    rule = HeadRule(sink=3, window=4, block=4)
    got = HFReference(folder, [[rule]]).logprobs(ids)
    torch.testing.assert_close(got, stock_logprobs(folder, ids, mask), atol=2e-5, rtol=0)
    far = stock_logprobs(folder, ids)
    assert (got[:11] - far[:11]).abs().max() < 2e-5, "nothing is hidden before token 11"
    assert (got[11:] - far[11:]).abs().max() > 1e-2, "hiding tokens must show"


def test_each_head_has_its_own_rule(tmp_path: Path) -> None:
    """Limiting one head of one layer changes the output; which head and layer matters."""
    folder = make_tiny_model(tmp_path)
    ids = prompt(TINY, 120)
    reference = HFReference(folder)
    outputs = [reference.logprobs(ids)]
    for layer, head in [(0, 0), (0, 3), (3, 2)]:
        rules = [[UNLIMITED] * 4 for _ in range(4)]
        rules[layer][head] = HeadRule(2, 9, 8)
        reference.rules = rules
        outputs.append(reference.logprobs(ids))
    for a in range(len(outputs)):
        for b in range(a):
            assert (outputs[a] - outputs[b]).abs().max() > 1e-3, (a, b)


def test_greedy_equals_recomputing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache and the chunks change nothing, with rules that hide most of the history."""
    folder = make_tiny_model(tmp_path)
    rules = [[UNLIMITED, HeadRule(3, 20, 16), HeadRule(0, 7, 4), HeadRule(16, 33, 1)]] * 4
    reference = HFReference(folder, rules)
    ids = prompt(TINY, 131)
    monkeypatch.setattr(hf, "CHUNK", 50)
    got = reference.greedy(ids, 17)
    monkeypatch.setattr(hf, "CHUNK", 1000)
    for token in got:
        assert int(reference.logprobs(ids)[-1].argmax()) == token
        ids.append(token)
    reference.rules = [[UNLIMITED] * 4] * 4
    assert reference.greedy(prompt(TINY, 131), 17) != got, "the rules must matter for this test"


def test_rules_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path)
    with pytest.raises(ValueError, match="4 layers with 4 each"):
        HFReference(folder, [[UNLIMITED] * 3] * 4)


def test_tiny_models_are_seeded_and_have_a_tokenizer(tmp_path: Path) -> None:
    a, b, c = (make_tiny_model(tmp_path / n, seed=s) for n, s in [("a", 0), ("b", 0), ("c", 1)])
    weights = [(folder / "model.safetensors").read_bytes() for folder in (a, b, c)]
    assert weights[0] == weights[1] != weights[2]
    tokenizer = AutoTokenizer.from_pretrained(a)
    ids = tokenizer.encode("w17 w97 : nonsense </s>")
    assert ids == [17, 97, 6, 0, 2]
    assert tokenizer.decode([17, 97]) == "w17 w97"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "w8"}], tokenize=False)
    assert tokenizer.encode(chat) == [3, 6, 8]
