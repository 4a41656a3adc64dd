"""The published facts, where they are at hand: beside the checkout, or where STANDBY_REFERENCE
says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

WMI = "hyperv-wmi.json"
CMDLETS = "hyperv-cmdlets.json"


def folder() -> Path:
    """Where the published facts are looked for."""
    named = os.environ.get("STANDBY_REFERENCE")
    return Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "reference"


def facts(name: str) -> Any:
    """One file of them; the test is skipped where it is not at hand, but never in CI."""
    path = folder() / name
    if not path.is_file():
        assert "CI" not in os.environ, f"{path} is needed in CI"
        pytest.skip("the published facts are not at hand")
    return json.loads(path.read_text())
