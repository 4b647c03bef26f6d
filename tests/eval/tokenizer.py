"""A tokenizer for tests of prompts: a token per word or mark, a chat template of three tokens."""

import re
from typing import Any


class WordTokenizer:
    """Knows just enough of the Hugging Face interface."""

    chat_template = "user: ... assistant:"

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        words = re.findall(r"\w+|[^\w\s]", text)
        return [1] * add_special_tokens + [hash(word) % 1000 + 2 for word in words]

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        turns = " ".join(f"{turn['role']} {turn['content']}" for turn in messages)
        return f"{turns} assistant now"
