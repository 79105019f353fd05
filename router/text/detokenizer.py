"""Token ids to text, a few at a time."""

import codecs
from collections.abc import Iterable, Sequence

from router.text.pieces import Pieces

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Incremental decoder of one sample, whose text follows that of the ids `after`.

    Whatever the ids are split into, the texts returned add up to the text of all ids, and none ends
    within a character: bytes that may become one are held back. Bytes that cannot become one are
    returned as U+FFFD. Special tokens are skipped. A push costs time in proportion to its own ids.
    """

    def __init__(self, pieces: Pieces, after: Iterable[int] = ()) -> None:
        self._pieces = pieces
        self._utf8 = _Utf8Decoder(errors="replace")
        self._at_start = all(pieces.first(token_id) is None for token_id in after)

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that `token_ids` complete."""
        pieces = self._pieces
        if not self._at_start:
            return self._utf8.decode(b"".join([pieces[token_id] for token_id in token_ids]))
        for position, token_id in enumerate(token_ids):
            first = pieces.first(token_id)
            if first is not None:
                self._at_start = False
                return self._utf8.decode(first) + self.push(token_ids[position + 1 :])
        return ""

    def flush(self) -> str:
        """What was held back, when no more ids will come."""
        return self._utf8.decode(b"", final=True)
