"""The worker's side of `workers`: answers requests on its pipes, and dies by the kernel's hand when it takes too long.

Requests and replies are lines of JSON. The clock of a check is a timer of the process' own processor time: it stops a
hang in C code as well, needs nobody outside, and does not run while a busy machine lets the process wait.
"""

import importlib
import json
import os
import resource
import signal
import sys
import traceback
from typing import BinaryIO


def serve(target: str, memory_mb: int) -> None:
    """Load the function named `package.module:function`, say so, and answer until the requests end.

    The module's function `warm_up`, where it has one, runs first: it may load what the first check would wait for, and
    raise when checks cannot work.

    A request is {"args": [...], "cpu_s": seconds}; a reply is {"value": ...}, {"error": traceback} when the function
    raised, or {"exhausted": true} when it ran out of memory or stack.
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What libraries print must not get between the replies.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its workers
    # Both are inherited, and a profiler in the parent may have changed them.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    module_name, _, name = target.partition(":")
    module = importlib.import_module(module_name)
    function = getattr(module, name)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20,) * 2)
    if warm_up := getattr(module, "warm_up", None):
        warm_up()
    os.dup2(null, 2)
    _reply(replies, {"ready": True})
    for line in requests:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["cpu_s"])
        try:
            answer = {"value": function(*request["args"])}
        except (MemoryError, RecursionError):
            answer = {"exhausted": True}
        except Exception:
            answer = {"error": traceback.format_exc()}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _reply(replies, answer)


def _reply(replies: BinaryIO, answer: dict) -> None:
    replies.write(json.dumps(answer).encode() + b"\n")
    replies.flush()


def main() -> None:
    """Arguments: the parent's module path, the function, the memory limit in MiB."""
    serve(sys.argv[2], int(sys.argv[3]))
