"""Writes grafana/dashboards/*.json and prometheus/{rules,alerts}.yml below vbnet/telemetry/deploy, of dashboards/.

The files are committed, and a test fails when they are not what this script makes: run `make dashboards` after editing.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dashboards.files import files  # noqa: E402 - found by the line above


def main() -> None:
    """Write what changed, and remove dashboards that are no more."""
    made = files()
    for path in (ROOT / "vbnet" / "telemetry" / "deploy" / "grafana" / "dashboards").glob("*.json"):
        if str(path.relative_to(ROOT)) not in made:
            path.unlink()
            print(f"removed {path.relative_to(ROOT)}")
    for name, text in made.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")


if __name__ == "__main__":
    main()
