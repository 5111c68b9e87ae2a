"""What rendering asks of a tokenizer: mlx-lm's on a host, this package's own on a laptop."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol


class TextTokenizer(Protocol):
    """Turns texts into tokens."""

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def eos_token_id(self) -> int | None: ...

    def encode(self, text: str, /, *, add_special_tokens: bool = True) -> Sequence[int]: ...


class Tokenizer(TextTokenizer, Protocol):
    """Turns chats as well, and tokens back into text."""

    @property
    def has_chat_template(self) -> bool: ...

    @property
    def eos_token_ids(self) -> Collection[int]:
        """Every token at which an answer may end."""
        ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Any,
        add_generation_prompt: bool,
    ) -> Sequence[int]:
        """Tokens of `messages`; raises whatever the template raises."""
        ...

    def decode(self, tokens: list[int], /, *, clean_up_tokenization_spaces: bool) -> str: ...
