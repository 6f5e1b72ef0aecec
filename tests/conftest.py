"""Shared by all rooms: the real pretrained encoder, fetched once and then found in the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedethos.models import assets


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of the real MiniLM encoder."""
    return assets.fetch("minilm", say=print)
