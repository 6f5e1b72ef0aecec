"""Typed, coded errors. An error says what was refused, where, why it matters and what to do, never a data value.

The code's prefix decides the exit code of the command line (see ``EXIT_CODES``). Operators look a code up
in ``docs/errors.md``; tests assert codes, so a code is stable once it is released.
"""

from __future__ import annotations

EXIT_CODES = {
    "CFG": 2,  # usage or configuration
    "MODEL": 2,
    "RUN": 2,
    "DATA": 3,
    "PRIV": 4,
    "SEC": 7,  # code identity, hashes, keys
    "NET": 8,
    "AGG": 8,  # too few valid replies
    "NODE": 70,
}


class FedethosError(Exception):
    """A refusal that a person can act on.

    Parameters
    ----------
    code : str
        Stable code such as ``"DATA-104"``; its prefix is a key of ``EXIT_CODES``.
    what : str
        What happened, in one sentence, without any data value.
    where : str
        The file, line or key concerned.
    why : str
        Why it matters to the person who reads it.
    fix : str
        What to do.
    """

    def __init__(self, code: str, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.code = code
        self.what = what
        self.where = where
        self.why = why
        self.fix = fix
        super().__init__(str(self))

    @property
    def exit_code(self) -> int:
        """Exit code of the command line for this error."""
        return EXIT_CODES.get(self.code.split("-")[0], 70)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.code, self.what, self.where, self.why, self.fix)

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        rest = " ".join(part for part in (self.why, self.fix) if part)
        return f"{self.code} {self.what}{place}" + (f" {rest}" if rest else "")


def _rebuild(code: str, what: str, where: str, why: str, fix: str) -> FedethosError:
    return FedethosError(code, what, where=where, why=why, fix=fix)
