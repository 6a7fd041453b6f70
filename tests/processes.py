"""Run a module of the package as a process of its own, as `python -m` does, without waiting for its imports."""

import atexit
import functools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.fork_server import READ_LATE
from tests.paths import ROOT


def run_python(
    *arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run `python -m <module> ...` to its end. `env` is the whole environment (default: this process's).

    It is forked from a process that has the imports, or started anew where its environment matters to Python itself.
    """
    words = [str(argument) for argument in arguments]
    environment, folder = dict(os.environ if env is None else env), Path.cwd() if cwd is None else cwd
    server = _server()
    if words[0] == "-m" and server.matches(environment):
        return server.run(words, environment, folder)
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)


def install_client(program: Path) -> int:
    """Write a program that does what `cpmbee-job` does, likewise without its imports; scripts that call it must inherit
    the file descriptor that is returned. No signal reaches the command."""
    fd = _server().fileno()
    client = ROOT / "tests" / "fork_client.py"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -I -S {client} {fd} "$@"\n')
    program.chmod(0o755)
    return fd


@functools.cache
def _server() -> "ForkServer":
    return ForkServer()


class ForkServer:
    """A process of `tests.fork_server`, which ends with this one."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.fork_server"]
            self._process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.DEVNULL, cwd=ROOT)
        atexit.register(self.close)

    def close(self) -> None:
        self._requests.close()
        self._process.wait(30)

    def fileno(self) -> int:
        """The socket for requests."""
        return self._requests.fileno()

    def matches(self, environment: dict[str, str]) -> bool:
        """Whether that environment differs from the server's only in what nobody reads at import."""
        names = self._environment.keys() | environment.keys()
        changed = {name for name in names if self._environment.get(name) != environment.get(name)}
        return all(name.startswith(READ_LATE) for name in changed)

    def run(self, command: list[str], environment: dict[str, str], folder: Path) -> "subprocess.CompletedProcess[str]":
        request = {"module": command[1], "arguments": command[2:], "environment": environment, "folder": str(folder)}
        pipes = [os.pipe() for _ in range(3)]
        try:
            socket.send_fds(self._requests, [json.dumps(request).encode()], [end for _, end in pipes])
        finally:
            for _, end in pipes:
                os.close(end)
        out, err, answer = _read([start for start, _ in pipes])
        assert answer, "tests.fork_server has ended; standard error has its reason"
        return subprocess.CompletedProcess(command, int(answer.split()[1]), out.decode(), err.decode())


def _read(pipes: list[int]) -> list[bytes]:
    """All that comes out of the pipes, of which the last tells the process id first; the process ends with the wait."""
    data = dict.fromkeys(pipes, b"")
    try:
        with selectors.DefaultSelector() as selector:
            for pipe in pipes:
                selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    more = os.read(key.fd, 1 << 16)
                    data[key.fd] += more
                    if not more:
                        selector.unregister(key.fd)
    except BaseException:  # a time limit
        if told := data[pipes[-1]].split():
            os.kill(int(told[0]), signal.SIGKILL)
        raise
    finally:
        for pipe in pipes:
            os.close(pipe)
    return list(data.values())
