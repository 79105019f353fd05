"""Sends sessions to a server: each request after the answer to the one before."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ops.bench.load import Exchange, Target, ask
from ops.bench.load_arrivals import ClosedLoop, Timetable
from ops.bench.workloads.session import Session, token_ids


@dataclass(frozen=True, slots=True)
class Pace:
    """When sessions begin, and how long their clients think."""

    clients: int | None = None
    """Each goes through one session after the other; None: sessions begin at their own times."""
    rate: float = 1.0
    """Divides the times at which sessions begin."""
    speed: float = 1.0
    """Divides the pauses within them."""

    def __str__(self) -> str:
        begins = f"{self.clients} clients" if self.clients else f"rate {self.rate:g}"
        return begins if self.speed == 1.0 else f"{begins}, speed {self.speed:g}"


async def run_sessions(
    target: Target, model: str, sessions: Sequence[Session], pace: Pace, vocab_size: int
) -> list[Exchange]:
    """Go through all sessions; what follows a request that has failed is left out.

    Token ids are below `vocab_size`. Answers become part of the next prompt as they are, or, where
    the server does not tell their tokens, as made-up ones.
    """
    exchanges: list[Exchange] = []

    async def send(index: int, due_s: float) -> None:
        session = sessions[index]
        prompt: list[int] = []
        for number, turn in enumerate(session.turns):
            if number:
                due_s = time.monotonic() + turn.pause_s / pace.speed
                await asyncio.sleep(due_s - time.monotonic())
            prompt += token_ids(turn.pieces, vocab_size)
            exchange, answer = await ask(
                target, model, prompt, turn.output_tokens, due_s, session.session_id
            )
            exchanges.append(exchange)
            if exchange.error is not None:
                return
            prompt += answer.token_ids or session.answer(number).token_ids(vocab_size)

    if pace.clients is not None:
        await ClosedLoop(pace.clients).drive(len(sessions), send)
    else:
        offsets_s = [session.start_s / pace.rate for session in sessions]
        await Timetable(offsets_s).drive(len(sessions), send)
    return exchanges
