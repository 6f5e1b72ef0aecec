"""How each site stands with a run: which of its replies were refused, what it is to be told, and whether it is still asked.

Only what the coordinator refuses counts. A site's own error code, a late reply or a lost connection is no fault of this kind.
Next on the path: ``server/roster.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict


class Standing(BaseModel):
    """``refusals``: replies that the coordinator refused so far. ``last``: the code of the last one, until a reply is accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    refusals: int = 0
    last: str | None = None


class Standings:
    """By site; kept in the checkpoint, so that a restart forgives nothing.

    Parameters
    ----------
    known : by site
        From the last checkpoint.
    quarantine_after : int or None
        A site with so many refusals is not asked again in this run; None: never.
    """

    def __init__(self, known: Mapping[str, Standing], quarantine_after: int | None) -> None:
        self._of = dict(known)
        self._quarantine_after = quarantine_after

    def refused(self, site: str, code: str, *, counts: bool = True) -> None:
        """A reply of ``site`` was refused; one that does not count for the quarantine is only told."""
        self._of[site] = Standing(refusals=self.of(site).refusals + counts, last=code)

    def accepted(self, site: str) -> None:
        """The last reply of ``site`` was good: there is nothing to tell it."""
        if self.of(site).last is not None:
            self._of[site] = Standing(refusals=self.of(site).refusals)

    def of(self, site: str) -> Standing:
        """A site that nothing is known of stands well."""
        return self._of.get(site, Standing())

    def is_quarantined(self, site: str) -> bool:
        return self._quarantine_after is not None and self.of(site).refusals >= self._quarantine_after

    @property
    def quarantined(self) -> dict[str, str]:
        """Sites that are not asked any more, in the order of their names, with the code of the last refusal."""
        return {name: standing.last or "" for name, standing in self.known.items() if self.is_quarantined(name)}

    @property
    def known(self) -> dict[str, Standing]:
        """Sites with a refusal in this run, for the checkpoint."""
        return dict(sorted(self._of.items()))
