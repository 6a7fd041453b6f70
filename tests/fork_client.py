"""The program `cpmbee-job` for scripts that tests run: asks the test's `tests.fork_server` for a process and waits.

Runs without the package and without site-packages: `python -I -S fork_client.py SOCKET ARGUMENT ...`. SOCKET is the
file descriptor of an inherited socket.
"""

import json
import os
import socket
import sys


def main() -> int:
    request = {
        "module": "cpmbee_job.cli",
        "arguments": sys.argv[2:],
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109
    }
    ended, answer = os.pipe()
    with socket.socket(fileno=int(sys.argv[1])) as server:
        socket.send_fds(server, [json.dumps(request).encode()], [1, 2, answer])
    os.close(answer)
    with os.fdopen(ended) as lines:
        _, status = lines
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
