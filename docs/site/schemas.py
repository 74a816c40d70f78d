"""Writes docs/schema/ again, from the rules by which AMC itself reads a run's files: `python docs/site/schemas.py`."""

from __future__ import annotations

import json
from pathlib import Path

from amc.run.schema import json_schemas

FOLDER = Path(__file__).parents[1] / "schema"


def written() -> dict[str, str]:
    """The text of every schema file, by its name."""
    return {
        f"{name.partition('.')[0]}.schema.json": json.dumps(schema, indent=1) + "\n"
        for name, schema in json_schemas().items()
    }


if __name__ == "__main__":
    for name, text in written().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
