"""``python -m fedethos.server.runner``: the process of one ServerApp. Port, token and parent's pid come on standard input.

Flower's own launcher puts the token on the command line, where every user of the machine can read it.
Next on the path: ``fedethos/deployed_app.py``.
"""

from __future__ import annotations

import json
import sys
from typing import IO

from fedethos.collector import spare_collections
from fedethos.flower_server_app import run_server_app
from fedethos.orphans import end_with_parent
from fedethos.server.places import SERVER_APP


def main(stdin: IO[str] = sys.stdin) -> None:
    """Run it to its end."""
    spare_collections()
    start = json.loads(stdin.readline())
    end_with_parent(int(start["parent"]))
    run_server_app(int(start["port"]), str(start["token"]), SERVER_APP)


if __name__ == "__main__":
    main()
