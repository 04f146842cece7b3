"""Write every board's JSON, or with ``--check`` say whether what is committed is up to date."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dashboards.boards import overview

BOARDS = {"overview": overview.board}
FOLDER = Path(__file__).with_name("json")


def rendered(name: str) -> str:
    """The text of one board's file."""
    return json.dumps(BOARDS[name](), indent=2, ensure_ascii=False) + "\n"


def stale() -> list[str]:
    """Boards whose committed file is not what their code makes."""
    return [name for name in BOARDS if not _is_current(name)]


def _is_current(name: str) -> bool:
    file = FOLDER / f"{name}.json"
    return file.is_file() and file.read_text() == rendered(name)


def main() -> int:
    """Generate, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    if parser.parse_args().check:
        for name in stale():
            print(f"dashboards/json/{name}.json is stale: run python -m dashboards.generate")
        return 1 if stale() else 0
    FOLDER.mkdir(exist_ok=True)
    for name in BOARDS:
        (FOLDER / f"{name}.json").write_text(rendered(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
