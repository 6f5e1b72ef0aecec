"""``fedethos client start`` of a site whose updates are no numbers, whatever its own guards say: a broken or hostile one."""

import numpy as np
from flwr.app import Array, Message

from fedethos.cli import main
from fedethos.flower_fleet import FleetConnection

_send = FleetConnection.send


def _spoiled(self: FleetConnection, reply: Message) -> None:
    for record in reply.content.array_records.values():
        for name, array in record.items():
            if array.dtype == "float32":
                record[name] = Array(np.full(array.shape, np.nan, np.float32))
    _send(self, reply)


FleetConnection.send = _spoiled  # type: ignore[method-assign]
main()
