"""An engine's process, from ours: asked one thing at a time, stopped while it is not its turn."""

import json
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from ops.bench.peers.proc import cpu_seconds, peak_bytes

_POLL_S = 1.0
_GRACE_S = 5.0
_BLOCK = 1 << 16


class PeerError(Exception):
    """An engine that cannot be installed, started or used; the message is one line."""


class Answer(NamedTuple):
    """What came of one request, timed by the engine's process."""

    token_ids: list[list[int]]
    seconds: float
    first_s: float | None
    """Seconds to the first token, where there was one prompt and the engine can tell."""


class Peer:
    """One engine's process and whatever it starts, in a process group of its own."""

    def __init__(
        self,
        command: Sequence[str],
        options: Mapping[str, object],
        *,
        directory: Path,
        environment: Mapping[str, str],
        log: Path,
        timeout_s: float,
    ) -> None:
        """Start `command` with the arguments of `child.main`; `log` takes what it prints.

        Raises PeerError if there is no such program.
        """
        self._timeout_s = timeout_s
        self._log = log
        self._received = b""
        self._closed = False
        self._answers, theirs = os.pipe()
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    [*command, str(theirs), json.dumps(options)],
                    cwd=directory,
                    env={**os.environ, **environment},
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(theirs,),
                    start_new_session=True,
                )
        except OSError as error:
            os.close(self._answers)
            raise PeerError(f"{command[0]}: {error.strerror}") from error
        finally:
            os.close(theirs)

    @property
    def group(self) -> int:
        """Its process group."""
        return self._process.pid

    def ask(self, prompts: list[list[int]], output_tokens: int) -> Answer:
        """Generate exactly `output_tokens` after each prompt.

        Raises PeerError if the engine fails, ends, takes too long or makes another number.
        """
        request = {"prompts": prompts, "output_tokens": output_tokens}
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and may have left the reason
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        answer = json.loads(self._line())
        if "error" in answer:
            raise PeerError(answer["error"])
        lengths = [len(ids) for ids in answer["token_ids"]]
        if lengths != [output_tokens] * len(prompts):
            raise PeerError(
                f"output: got lengths {sorted(set(lengths))} for {len(lengths)} of "
                f"{len(prompts)} prompts, expected {output_tokens} tokens each"
            )
        return Answer(answer["token_ids"], answer["seconds"], answer["first_s"])

    def pause(self) -> None:
        """Stop all its threads, those that spin while they wait included."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)

    def cpu_seconds(self) -> float:
        """CPU time of all its processes so far."""
        return cpu_seconds(self.group)

    def peak_bytes(self) -> int:
        """The most memory that its processes had resident, added up."""
        return peak_bytes(self.group)

    def close(self) -> None:
        """End it and whatever it has started; once is enough."""
        if self._closed:
            return
        self._closed = True
        self.resume()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):  # some leave threads behind that never end
            self._process.wait(_GRACE_S)
        self._signal(signal.SIGKILL)
        self._process.wait()
        os.close(self._answers)

    def _line(self) -> bytes:
        deadline = monotonic() + self._timeout_s
        while b"\n" not in self._received:
            if select.select([self._answers], [], [], _POLL_S)[0]:
                block = os.read(self._answers, _BLOCK)
                if not block:
                    raise PeerError(self._how_it_ended())
                self._received += block
            elif self._process.poll() is not None:  # what it started may still hold the pipe
                raise PeerError(self._how_it_ended())
            elif monotonic() > deadline:
                raise PeerError(f"no answer in {self._timeout_s:g} s (log: {self._log})")
        line, self._received = self._received.split(b"\n", 1)
        return line

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"its process ended: {how} (log: {self._log})"

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # all of the group have ended
            os.killpg(self.group, number)
