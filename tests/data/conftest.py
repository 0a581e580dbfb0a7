from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Each test makes its data itself."""
    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path_factory.mktemp("cache")))
