"""Child processes that never outlive their parent."""

import os
import sys
from collections.abc import Sequence

# Runs in the child and then becomes the command. Not a preexec_fn: those are not safe in a process
# that has threads. If the parent died before the kernel was told, getppid gives it away.
_TIE = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def tied(command: Sequence[str]) -> list[str]:
    """`command` (its first word a path), as it is killed when this process ends, however it ends.

    To be started from the main thread: Linux takes the end of the thread that started a child for
    the end of the parent. On other systems it is the command as it was.
    """
    if not sys.platform.startswith("linux"):
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid()), *command]
