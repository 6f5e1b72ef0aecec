"""What the coordinator says about this site with its requests: a reply was refused, it is asked no more, another version runs there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import fedethos
from fedethos.messages import Request

log = logging.getLogger(__name__)


class Told:
    """``code``: why our last reply was refused; ``quarantined``: whether we are asked no more in the run of the last request."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.code: str | None = None
        self.quarantined = False

    def listen(self, request: Request, about: Mapping[str, str | int]) -> None:
        """Note it, and log and say what is new. ``about``: how the log describes the request."""
        if request.refused is not None and request.refused != self.code:
            log.warning("the coordinator refused this site's last reply", extra={**about, "code": request.refused})
            self._say(f"the coordinator refused the last reply: {request.refused} (docs/errors.md says why)")
        self.code, self.quarantined = request.refused, request.quarantined
        if request.quarantined:
            log.warning("the coordinator asks this site no more in this run", extra=dict(about))
            self._say(f"too many replies were refused, and the coordinator asks this site no more in run {request.run}")
        if request.fedethos not in (None, fedethos.__version__):
            log.warning("the coordinator runs another version", extra={**about, "version": str(request.fedethos)})
            self._say(f"the coordinator runs fedethos {request.fedethos}, this node {fedethos.__version__}; it will not be asked")
