"""Hold one contender in a process of its own, and answer the session over a pipe: one question at a time.

So a contender that hangs, dies or changes its process's settings can be ended and costs the others nothing.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from multiprocessing.connection import Connection


def serve(spec, channel):
    """Answer until told to close: ("sample", label, question, parameters), ("release",), ("close",)."""
    from contender import Missing

    try:
        module, name = spec.split(":")
        contender = getattr(importlib.import_module(module), name)()
    except Missing as missing:
        channel.send(("missing", str(missing)))
        return
    except BaseException as error:
        channel.send(("failed", _told(error)))
        return
    channel.send(("ok", None))
    asked = {}  # label → the generator of its samples
    kind = ""
    while kind != "close":
        answer = None
        try:
            kind, *rest = channel.recv()
        except EOFError:
            kind = "close"
        try:
            if kind == "sample":
                label, question, parameters = rest
                if label not in asked:
                    asked[label] = getattr(contender, question)(**parameters)
                answer = next(asked[label])
            else:
                while asked:
                    asked.popitem()[1].close()
            if kind == "close":
                contender.close()
            reply = ("ok", answer)
        except BaseException as error:
            reply = ("failed", _told(error))
        try:
            channel.send(reply)
        except OSError:  # nobody listens any more
            return


def _told(error):
    """Say in a line what went wrong; the whole of it goes to standard error if asked for."""
    if os.environ.get("BENCH_TRACEBACKS"):
        traceback.print_exception(error)
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:200]


if __name__ == "__main__":
    serve(sys.argv[1], Connection(int(sys.argv[2])))
