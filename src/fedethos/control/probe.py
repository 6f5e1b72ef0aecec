"""A health check as a command, for Docker's HEALTHCHECK and exec probes: ``python -m fedethos.control.probe SOCKET [SERVICE]``.

Exit code 0 when the service (default: the process itself) says SERVING, else 1. It prints nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fedethos.control.calling import is_healthy
from fedethos.errors import FedethosError


def main(arguments: list[str]) -> int:
    """0 healthy, 1 not, 2 for wrong arguments."""
    if not 1 <= len(arguments) <= 2:
        print("usage: python -m fedethos.control.probe SOCKET [SERVICE]", file=sys.stderr)
        return 2
    try:
        return 0 if is_healthy(Path(arguments[0]), *arguments[1:], timeout=3.0) else 1
    except FedethosError:
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
