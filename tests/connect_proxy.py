"""A company's HTTP proxy in this process: it knows CONNECT and nothing else, and keeps what it was asked."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class ConnectProxy:
    """``url`` for a client; ``asked``: the first line of each request; ``seen``: the bytes that went through, both ways."""

    url: str
    asked: list[str] = field(default_factory=list)
    seen: list[bytes] = field(default_factory=list)


@contextmanager
def connect_proxy(*, refuse: bool = False) -> Iterator[ConnectProxy]:
    """``refuse``: answer 403, as a proxy does for an address that is not on its list."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = ConnectProxy(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def serve() -> None:
            with suppress(OSError):  # the listener was closed
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=_tunnel, args=(client, proxy, refuse), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield proxy
        listener.shutdown(socket.SHUT_RDWR)


def _tunnel(client: socket.socket, proxy: ConnectProxy, refuse: bool) -> None:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        if not byte:  # a client that went away
            client.close()
            return
        head += byte
    proxy.asked.append(head.decode().splitlines()[0])
    method, target, _ = proxy.asked[-1].split()
    if refuse or method != "CONNECT":
        client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        client.close()
        return
    host, _, port = target.rpartition(":")
    server = socket.create_connection((host, int(port)))
    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    threading.Thread(target=_pump, args=(server, client, proxy), daemon=True).start()
    _pump(client, server, proxy)


def _pump(source: socket.socket, sink: socket.socket, proxy: ConnectProxy) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            proxy.seen.append(data)
            sink.sendall(data)
    for one in (source, sink):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
