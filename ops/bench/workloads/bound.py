"""How much of a workload's prompts one cache that forgets nothing would hold already."""

from collections.abc import Sequence

from ops.bench.workloads.session import Session, token_ids

_VOCAB_SIZE = 1 << 30
"""Of token ids, so that texts meet only where they are meant to."""


def best_cached_percent(sessions: Sequence[Session]) -> float:
    """Prompt tokens that an earlier prompt or answer began with, in percent of all.

    Sessions are taken one after the other; each prompt's last token is computed in any case.
    """
    following: dict[tuple[int, int], int] = {}
    num_prompt = num_cached = 0
    for session in sessions:
        conversation: list[int] = []
        for number, turn in enumerate(session.turns):
            conversation += token_ids(turn.pieces, _VOCAB_SIZE)
            num_prompt += len(conversation)
            num_cached += min(_known(following, conversation), len(conversation) - 1)
            conversation += session.answer(number).token_ids(_VOCAB_SIZE)
            _known(following, conversation)
    return 100 * num_cached / num_prompt


def _known(following: dict[tuple[int, int], int], tokens: Sequence[int]) -> int:
    """How many of the first tokens had been noted; now all are. A text is known by the number of
    its last step: (the text before, token) -> text."""
    text = known = 0
    for token in tokens:
        before = len(following)
        text = following.setdefault((text, token), before + 1)
        known += len(following) == before
    return known
