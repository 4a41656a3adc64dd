"""Makes facts.json: what the scripts and Python's readers use of the published facts.

    python tests/hyperv/excerpt_facts.py [FOLDER]

FOLDER has hyperv-cmdlets.json and hyperv-wmi.json; without it they are looked for where the tests
look. To be run after a script uses something published that no script used before.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hyperv import published
from hyperv.uses.catalog import EXCERPT, Assumed, Catalog
from hyperv.uses.scripts import assumed, follow_project

_PARAMETER = ("type", "values", "pipeline", "server_versions")


def full_catalog(cmdlets: Any, classes: Any, lines: list[Assumed]) -> Catalog:
    """With all that is published; `cmdlets` still by module."""
    return Catalog(
        {n: fact for each in cmdlets.values() for n, fact in each.items()}, classes, lines
    )


def excerpt(catalog: Catalog) -> dict[str, Any]:
    """The facts that the catalog was asked for."""
    return {"cmdlets": _cmdlets(catalog), "classes": _classes(catalog)}


def _cmdlets(catalog: Catalog) -> dict[str, Any]:
    kept = {}
    for _, name in sorted(key for key in catalog.touched if key[0] == "cmdlet"):
        fact = catalog.cmdlets[name]
        used = {key[2] for key in catalog.touched if key[:2] == ("parameter", name)}
        sets = fact["parameter_sets"].values()
        mandatory = {parameter for each in sets for parameter in each["mandatory"]}
        kept[name] = {
            "parameters": {
                parameter: {k: told[k] for k in _PARAMETER if told.get(k)}
                for parameter, told in fact["parameters"].items()
                if parameter in used | mandatory
            },
            "parameter_sets": {
                key: {
                    "mandatory": each["mandatory"],
                    "optional": [p for p in each["optional"] if p in used],
                }
                for key, each in fact["parameter_sets"].items()
            },
            "outputs": fact["outputs"],
            "server_versions": fact.get("server_versions"),
        }
    return kept


def _classes(catalog: Catalog) -> dict[str, Any]:
    kept = {}
    for _, name in sorted(key for key in catalog.touched if key[0] == "class"):
        fact = catalog.classes[name]
        properties = {key[2] for key in catalog.touched if key[:2] == ("property", name)}
        methods = {key[2] for key in catalog.touched if key[:2] == ("method", name)}
        kept[name] = {
            "base": fact["base"],
            "min_server": fact["min_server"],
            "doc": fact["doc"],
            "properties": {
                key: {k: told[k] for k in ("type", "access", "values") if k in told}
                for key, told in fact["properties"].items()
                if key in properties
            },
            "methods": {key: told for key, told in fact["methods"].items() if key in methods},
        }
    return kept


def rendered(kept: dict[str, Any]) -> str:
    """The file's text: one line for each cmdlet and each class."""
    parts = []
    for part, entries in kept.items():
        lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()]
        parts.append(f"{json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def made_anew(folder: Path) -> str:
    """The file's text from the facts in a folder."""
    cmdlets = json.loads((folder / published.CMDLETS).read_text())
    classes = json.loads((folder / published.WMI).read_text())
    catalog = full_catalog(cmdlets, classes, assumed())
    follow_project(catalog)
    return rendered(excerpt(catalog))


if __name__ == "__main__":
    EXCERPT.write_text(made_anew(Path(sys.argv[1]) if sys.argv[1:] else published.folder()))
