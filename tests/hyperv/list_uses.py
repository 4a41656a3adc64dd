"""Prints everything that the scripts and their readers use of a host: its kind, its name, where it
is known from, the places that use it.

    python tests/hyperv/list_uses.py
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hyperv.uses.catalog import Catalog
from hyperv.uses.scripts import assumed, follow_project, listed, unused

if __name__ == "__main__":
    catalog = Catalog.of_excerpt(assumed())
    found = follow_project(catalog)
    sys.stdout.write("\n".join(listed(found)) + "\n")
    wrong = found.findings + unused(catalog)
    sys.stderr.write("".join(f"{text}\n" for text in wrong))
    raise SystemExit(bool(wrong))
