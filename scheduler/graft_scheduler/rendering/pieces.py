"""A row of tokens as text for a person, learned parts apart from the others."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from graft_scheduler.rendering.encoding import Encoded
from graft_scheduler.rendering.tokenizer import Tokenizer


class Piece(NamedTuple):
    """A run of tokens, special ones visible."""

    text: str
    learned: bool


def pieces(tokenizer: Tokenizer, encoded: Encoded) -> list[Piece]:
    """The row in runs, learned and not; joined they are the text of all its tokens.

    A token that only ends a character goes with the piece in which the character began.
    """
    whole = _decode(tokenizer, encoded.tokens)
    found: list[Piece] = []
    begun = place = 0
    for learned, run in groupby(encoded.learned):
        place += len(list(run))
        end = _characters(tokenizer, encoded.tokens, place, whole)
        if end > begun:
            found.append(Piece(whole[begun:end], learned))
            begun = end
    return found


def _characters(tokenizer: Tokenizer, tokens: list[int], place: int, whole: str) -> int:
    """How many characters of `whole` are those of the first `place` tokens, the last one complete."""
    for end in range(place, len(tokens)):
        text = _decode(tokenizer, tokens[:end])
        if whole.startswith(text):
            return len(text)
    return len(whole)


def _decode(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
