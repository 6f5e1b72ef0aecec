"""A network of its own for the processes of a stack: loopback and nothing else, with the kernel's count of attempts to leave it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_HOLD = """
import fcntl, socket, struct, sys
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh22x", b"lo", 0x41))  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING
print("up", flush=True)
sys.stdin.read()
"""


class Network:
    """A Linux network namespace where this user may have one (``isolated``), else the machine's own network.

    ``prefix`` goes before a command that is to run in it. Unix sockets are reached from both sides.
    """

    def __init__(self) -> None:
        self.holder: subprocess.Popen[bytes] | None = None
        self._known = 0
        if shutil.which("unshare") and shutil.which("nsenter"):
            command = ["unshare", "--map-root-user", "--net", sys.executable, "-S", "-c", _HOLD]
            holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            if holder.stdout is not None and holder.stdout.readline() == b"up\n":
                self.holder = holder
            else:
                holder.wait()

    @property
    def isolated(self) -> bool:
        return self.holder is not None

    @property
    def prefix(self) -> list[str]:
        if self.holder is None:
            return []
        return ["nsenter", f"--target={self.holder.pid}", "--user", "--preserve-credentials", "--net"]

    def attempts(self) -> int:
        """How often anybody in it tried to reach another address than loopback, name servers included, by TCP or UDP."""
        return self._counted() - self._known

    def forgive(self) -> None:
        """Count from here."""
        self._known = self._counted()

    def _counted(self) -> int:
        assert self.holder is not None
        net = Path(f"/proc/{self.holder.pid}/net")
        names, values = (line.split() for line in (net / "snmp").read_text().splitlines() if line.startswith("Ip:"))
        six = dict(line.split() for line in (net / "snmp6").read_text().splitlines())
        return int(dict(zip(names, values, strict=True))["OutNoRoutes"]) + int(six["Ip6OutNoRoutes"])

    def close(self) -> None:
        if self.holder is not None:
            self.holder.communicate()


def listens(pid: int) -> bool:
    """Whether a process has a TCP socket that others can connect to."""
    own = set()
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed in the meantime
            own.add(str(one.readlink()))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
    return any(row[3] == "0A" and f"socket:[{row[9]}]" in own for row in rows)
