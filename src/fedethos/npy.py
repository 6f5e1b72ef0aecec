"""The bytes of a tensor on the wire, checked before numpy reads them: NumPy's format, one array, nothing before, between or after.

``numpy.load`` believes the header: one that claims terabytes, another dtype or another shape than the message says is refused here, and
so are bytes behind the array, where something could hide.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_LONGEST_HEADER = 4096


def is_npy(data: bytes, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> bool:
    """Whether ``data`` is exactly one array of this dtype and shape, in C order."""
    stream = io.BytesIO(data[:_LONGEST_HEADER])
    try:
        version = npy.read_magic(stream)
        found, fortran, stored = _READERS[version](stream, max_header_size=_LONGEST_HEADER)
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False
    size = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    return (found, stored) == (shape, np.dtype(dtype)) and len(data) == stream.tell() + size and not (fortran and len(shape) > 1)
