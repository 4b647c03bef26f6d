"""A tokenizer with one word per token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>"]


def word_tokenizer(
    words: Sequence[str], vocab_size: int, **options: Any
) -> PreTrainedTokenizerFast:
    """SPECIAL, then words, then as many as are missing, each named by its id.

    Args:
        options: of PreTrainedTokenizerFast.
    """
    names = [*SPECIAL, *words]
    names += [f"w{number}" for number in range(len(names), vocab_size)]
    vocab = {word: number for number, word in enumerate(names)}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        **options,
    )
