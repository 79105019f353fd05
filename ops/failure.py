"""Failures that a command tells in one line."""


class CommandError(Exception):
    """What to say on standard error, and the exit code to leave with."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UsageError(CommandError):
    """The command was given something that it cannot take."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=2)
