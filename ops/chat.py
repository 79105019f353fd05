"""`trunkline chat`."""

import sys
from typing import Unpack

from trunkline import Client, Message, Options

from ops.connection import connection


def chat(
    *,
    address: str | None,
    api_key: str | None,
    model: str,
    system: str | None,
    **options: Unpack[Options],
) -> None:
    """Talk until the end of input. Raises CommandError."""
    messages = [Message("system", system)] if system else []
    with connection(address, api_key) as client:
        if sys.stdin.isatty():
            print("Ctrl-C cuts an answer short, Ctrl-D ends.", file=sys.stderr)
        while (question := _ask()) is not None:
            messages.append(Message("user", question))
            messages.append(Message("assistant", _answer(client, messages, model, options)))


def _ask() -> str | None:
    """The next thing the user says that is not empty; None at the end of input."""
    while True:
        try:
            question = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return None
        except KeyboardInterrupt:
            print(file=sys.stderr)
            continue
        if question.strip():
            return question


def _answer(client: Client, messages: list[Message], model: str, options: Options) -> str:
    """Stream the answer to standard output; returns as much of it as there was time for."""
    said: list[str] = []
    try:
        with client.chat(messages, model=model, **options) as deltas:
            for delta in deltas:
                said.append(delta.text)
                sys.stdout.write(delta.text)
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" …")
    sys.stdout.write("\n")
    sys.stdout.flush()
    return "".join(said)
