"""Start `python -m <module>` in milliseconds: import the package's modules once, then fork for each request.

A forked process is one of its own, with the arguments, environment, working directory and output that it is given, and
it ends like any Python program. Only its imports are done already: what is read from the environment at import, was
read when the server started (see `READ_LATE`).

A request is a JSON message on standard input, a socket, with file descriptors for stdout, stderr and the answer: lines
with the process id and, at its end, the exit status (negative: the number of a signal).
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import socket
import sys
import threading
from contextlib import suppress
from typing import Any

READ_LATE = ("AWS_", "CPMBEE_", "GITHUB_", "HOME", "KUBECONFIG", "PATH", "POD_NAME", "PYTEST_", "TMPDIR")
"""Beginnings of the names of variables that are read only when they are needed: requests may differ in them."""
NOT_LOADED = ("bmtrain", "demo", "__main__")
MAX_REQUEST = 1 << 17
"""Bytes of a request."""


def main() -> None:
    before = dict(os.environ)
    preload()
    gc.collect()
    gc.freeze()  # pages that no collection touches stay shared
    added = {name: value for name, value in os.environ.items() if name not in before}
    request = serve()
    if request is not None:  # this is the process that was asked for
        execute(**request, added=added)


def preload() -> None:
    import cpmbee_job

    for module in pkgutil.walk_packages(cpmbee_job.__path__, "cpmbee_job."):
        if not any(name in module.name for name in NOT_LOADED):
            importlib.import_module(module.name)
    from cpmbee_job.model import config, lora
    from cpmbee_job.model.net.cpmbee import CpmBee

    tiny = config.ModelConfig(vocab_size=2, dim_model=2, num_heads=1, dim_head=2, dim_ff=2, num_layers=1, half=False)
    lora.insert_lora(CpmBee(tiny), 1, 1, ["project_q"])  # imports OpenDelta


def serve() -> dict[str, Any] | None:
    """Fork for each request until standard input ends; gives the request in the new process, None in this one."""
    requests = socket.socket(fileno=0)
    answers: dict[int, tuple[int, int]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd != requests.fileno():
                    pid, answer = answers.pop(key.fd)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    tell(answer, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                    os.close(answer)
                    continue
                text, fds, _, _ = socket.recv_fds(requests, MAX_REQUEST, 3)
                if not text:
                    return None
                pid = os.fork()
                if pid == 0:
                    selector.close()
                    requests.detach()
                    for fd in (fds[2], *(fd for ended, (_, answer) in answers.items() for fd in (ended, answer))):
                        os.close(fd)
                    return {**json.loads(text), "output": fds[:2]}
                for fd in fds[:2]:
                    os.close(fd)
                tell(fds[2], pid)
                ended = os.pidfd_open(pid)
                answers[ended] = pid, fds[2]
                selector.register(ended, selectors.EVENT_READ)


def tell(answer: int, number: int) -> None:
    with suppress(BrokenPipeError):  # the test gave up
        os.write(answer, f"{number}\n".encode())


def execute(
    module: str,
    arguments: list[str],
    environment: dict[str, str],
    folder: str,
    output: list[int],
    added: dict[str, str],
) -> None:
    for number, fd in enumerate((os.open(os.devnull, os.O_RDONLY), *output)):
        os.dup2(fd, number)
        os.close(fd)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(added | environment)
    for name in ("kubernetes.config.kube_config", "kubernetes.config"):  # a constant there is KUBECONFIG
        importlib.reload(sys.modules[name])
    sys.argv[1:] = arguments
    sys.path[0] = folder
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code: Any = 0
    except SystemExit as end:
        code = end.code or 0
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
        code = 1
    # As Python ends, except that nothing is taken apart, which takes longer than most commands.
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
