"""What may leave a site when something fails: a code of this list and a random incident id. Never a text, never a fact about records.

A code that depends on the site's records (``DATA-…``, a diverged training) is not in the list and leaves as ``NODE-500``: which of
several things is wrong with records is itself a fact about them. Add a code here only if it follows from the request, the approved job,
the base model, or the site's own decisions.
"""

from __future__ import annotations

import secrets

from fedethos.errors import FedethosError
from fedethos.messages import ErrorReply

UNKNOWN = "NODE-500"

LEAVING = frozenset(
    {
        # the request is not what was approved
        "SEC-610",
        "SEC-611",
        "SEC-612",
        "SEC-613",
        "SEC-614",
        "SEC-615",
        "SEC-630",
        "SEC-631",
        "SEC-632",
        "SEC-633",
        "SEC-634",
        "SEC-636",
        "SEC-640",
        "SEC-641",
        "SEC-642",
        "SEC-643",
        "SEC-645",
        "SEC-650",
        "SEC-651",
        "SEC-652",
        "AGG-734",
        "AGG-760",
        "AGG-763",
        "AGG-780",
        "MODEL-454",
        "MODEL-455",
        "MODEL-456",
        "MODEL-457",
        # the base model here is not the job's
        "SEC-601",
        "SEC-603",
        "SEC-604",
        "SEC-605",
        "MODEL-402",
        "MODEL-403",
        "MODEL-408",
        "MODEL-409",
        # the site's budget and its own decisions
        "PRIV-301",
        "PRIV-302",
        "PRIV-306",
        "PRIV-310",
        "PRIV-311",
        "PRIV-313",
        "PRIV-314",
        "PRIV-315",
        "PRIV-316",
        "PRIV-330",
        "PRIV-360",
        "NODE-501",
        "NODE-530",
        "NODE-540",
        "NODE-541",
        "NODE-542",
        "NODE-543",
        # the release contract held something back
        "SEC-660",
        "SEC-661",
        "SEC-662",
        "SEC-663",
        UNKNOWN,
    }
)


def leaving_code(failure: BaseException) -> str:
    """The code that may leave for ``failure``: its own if it is in ``LEAVING``, else ``NODE-500``."""
    code = failure.code if isinstance(failure, FedethosError) else UNKNOWN
    return code if code in LEAVING else UNKNOWN


def error_reply(failure: BaseException) -> ErrorReply:
    """What leaves for ``failure``. The incident id is random: the site's own log tells which failure it names."""
    return ErrorReply(code=leaving_code(failure), incident=secrets.token_hex(8))
