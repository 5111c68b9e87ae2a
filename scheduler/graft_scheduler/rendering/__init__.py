"""What a row becomes as tokens, and which of them are learned: the same on a host and on a laptop.

`encode` takes any `Tokenizer`: the engine passes mlx-lm's, and `open_tokenizer` gives one that needs
nothing but `tokenizers` and Jinja (the extra `data`). Neither is imported before it is used.
"""

from __future__ import annotations

from graft_scheduler.rendering.chat_tokenizer import ChatTokenizer
from graft_scheduler.rendering.counting import lengths
from graft_scheduler.rendering.encoding import Encoded, encode
from graft_scheduler.rendering.opening import fetch_tokenizer, open_tokenizer
from graft_scheduler.rendering.pieces import Piece, pieces
from graft_scheduler.rendering.tokenizer import Tokenizer
from graft_scheduler.rendering.turns import Unrendered, end_ids

__all__ = [
    "ChatTokenizer",
    "Encoded",
    "Piece",
    "Tokenizer",
    "Unrendered",
    "encode",
    "end_ids",
    "fetch_tokenizer",
    "lengths",
    "open_tokenizer",
    "pieces",
]
