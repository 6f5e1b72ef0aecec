"""From the keys of ``trust.yaml`` to the nodes of the SuperLink: register, admit at the gateway, remember.

What locks a key out is the gateway, the only way to the fleet routes. It stays registered behind it, because Flower never takes a key
again that was unregistered once, and a key may come back: its days begin anew, or a revocation was a mistake.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from fedethos.flower_superlink_client import SuperLinkClient
from fedethos.server.superlink import SuperLink
from fedethos.storage import write_atomically
from fedethos.trust import Trust


@dataclass(frozen=True)
class Known:
    """A site whose key is answered now."""

    name: str
    node_id: int
    public_key: bytes


def synchronise(superlink: SuperLink, trust: Trust, today: date, path: Path) -> dict[str, Known]:
    """Make the SuperLink and its gateway answer exactly the keys that ``trust`` allows ``today``, and write ``path`` (sites.json).

    A key that is no longer allowed is locked out before anything else happens.
    """
    keys = trust.keys_on(today)
    superlink.admit({key: name for name, key in keys.items()})
    node_ids = _registered(superlink.client, keys)
    known = {name: Known(name, node_ids[key], key) for name, key in sorted(keys.items())}
    write_atomically(path, json.dumps({name: site.node_id for name, site in known.items()}, indent=1).encode())
    return known


def _registered(client: SuperLinkClient, keys: Mapping[str, bytes]) -> dict[bytes, int]:
    node_ids = {node.public_key: node.node_id for node in client.nodes()}
    return {key: node_ids[key] if key in node_ids else client.register(key, name) for name, key in keys.items()}
