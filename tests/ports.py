"""Ports for the processes that tests start."""

import os
import socket
from itertools import count

_RANGE = range(20_000, 30_000)
"""Below the kernel's ephemeral ports, so only these tests choose from the range."""
_next = count(os.getpid() * 97)


def free_port() -> int:
    """A port of the loopback interface that is free, and that nothing else takes before the caller's process does."""
    for number in _next:
        port = _RANGE[number % len(_RANGE)]
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError
