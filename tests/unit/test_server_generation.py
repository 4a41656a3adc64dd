"""Which generation of backup server a mover has met, kept over restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from standby.errors import ConfigurationError
from standby.road.server_generation import FILE_NAME, ServerGeneration


def test_the_highest_generation_is_kept(tmp_path: Path) -> None:
    met = ServerGeneration(tmp_path)
    assert met.current == 0
    met.raise_to(7)
    met.raise_to(3)
    assert met.current == ServerGeneration(tmp_path).current == 7


@pytest.mark.parametrize("text", ["", "{}", "[1]", "7", '{"generation": "x"}', "\0" * 20])
def test_a_damaged_file_is_said_with_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ConfigurationError, match="Remove it"):
        ServerGeneration(tmp_path)
