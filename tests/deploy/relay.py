"""``python relay.py PORT SERVER_PORT CERTIFICATE KEY AUTHORITY FOLDER``: a recorder between nodes and gateway.

It ends their TLS with the server's own certificate. What comes from a node is written to FOLDER, one file a connection, as it was before
TLS: whole HTTP requests.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
import sys
from pathlib import Path
from typing import BinaryIO


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: BinaryIO | None) -> None:
    """Until the sender closes; then the receiver is told."""
    try:
        while data := await reader.read(1 << 16):
            if record is not None:
                record.write(data)
                record.flush()
            writer.write(data)
            await writer.drain()
    except (OSError, ssl.SSLError):
        pass
    finally:
        writer.close()


async def main(port: int, server_port: int, certificate: str, key: str, authority: str, folder: Path) -> None:
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(certificate, key)
    theirs = ssl.create_default_context(cafile=authority)
    numbers = itertools.count()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", server_port, ssl=theirs)
        except OSError:  # the coordinator is away
            writer.close()
            return
        with (folder / f"{next(numbers)}.bin").open("wb") as record:
            await asyncio.gather(pump(reader, to_writer, record), pump(to_reader, writer, None))

    server = await asyncio.start_server(relay, "127.0.0.1", port, ssl=ours)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6], Path(sys.argv[6])))
