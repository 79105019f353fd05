"""The secret by which machines of a cluster know each other."""

import os
import secrets
from pathlib import Path

from ops.failure import UsageError

VARIABLE = "TRUNKLINE_JOIN_TOKEN"
_LEAST_CHARS = 16


def make_token() -> str:
    """That of the environment, by which a head that is started again keeps it; else a new one.

    Raises UsageError if it is too short to be secret.
    """
    return _checked(os.environ.get(VARIABLE) or secrets.token_hex(32), VARIABLE)


def read_token(file: Path | None) -> str:
    """That of the file, else that of the environment. Raises UsageError if there is none."""
    if file is None:
        if token := os.environ.get(VARIABLE):
            return _checked(token, VARIABLE)
        raise UsageError(f"no token: give --token-file, or set {VARIABLE}; the head has it")
    try:
        return _checked(file.read_text(encoding="utf-8"), f"--token-file: {file}")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--token-file: {error}") from error


def write_token(file: Path, token: str) -> None:
    """For its owner's eyes only."""
    file.touch(mode=0o600)
    file.write_text(token + "\n", encoding="utf-8")


def _checked(token: str, source: str) -> str:
    token = token.strip()
    if len(token) < _LEAST_CHARS or not token.isascii() or not token.isprintable():
        raise UsageError(f"{source}: expected a token of {_LEAST_CHARS} characters or more")
    return token
