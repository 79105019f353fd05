"""Structured logs, the same for every process."""

import logging
import sys
from collections.abc import Callable
from typing import Any

import structlog
from pydantic_core import to_json
from structlog.typing import Processor

from cluster.settings import LogSettings


class _Lines(structlog.WriteLogger):
    """Writes the lines of one logger to standard error."""

    def __init__(self, name: str = "") -> None:
        super().__init__(sys.stderr)
        self.name = name


def configure_logs(settings: LogSettings, **context: str) -> None:
    """Send all logs, the libraries' too, to standard error; `context` stands in every line.

    To be called once, at the start of a process. Standard output is left to what a process has
    to say to the one that started it.
    """
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    structlog.contextvars.bind_contextvars(**context)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderers = _renderers(settings)
    # Our own lines do not go through `logging`: that takes three times as long, for each request.
    structlog.configure(
        processors=[*shared, *renderers],
        logger_factory=_Lines,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _renderers(settings: LogSettings) -> list[Processor]:
    # Tracebacks without the values of local variables, among which are tokens and prompts.
    if settings.format == "json":
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [
            structlog.processors.ExceptionRenderer(tracebacks),
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]


def _to_json(content: dict[str, Any], default: Callable[[Any], Any]) -> str:
    return to_json(content, fallback=default).decode()
