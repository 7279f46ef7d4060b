"""What tests of commands share."""

from __future__ import annotations

import sys

import pytest
from probes import PROBE


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("probe") / "vx-probe"
    path.write_text(PROBE)
    return [sys.executable, str(path)]
