"""Write docs/metrics.md and the Grafana dashboards; with --check, say what is out of date."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from monitoring.grafana import dashboard_json
from monitoring.metrics_doc import metrics_markdown
from monitoring.panels import DASHBOARDS

ROOT = Path(__file__).parents[1]


def generated() -> dict[Path, str]:
    """Text of every generated file."""
    files = {ROOT / "docs" / "metrics.md": metrics_markdown()}
    for dashboard in DASHBOARDS:
        path = ROOT / "deploy" / "grafana" / "dashboards" / f"{dashboard.uid}.json"
        files[path] = json.dumps(dashboard_json(dashboard), indent=2) + "\n"
    return files


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    args = parser.parse_args()
    stale = [
        path
        for path, text in generated().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        print(f"{'out of date' if args.check else 'wrote'} {path.relative_to(ROOT)}")
        if not args.check:
            path.write_text(generated()[path], encoding="utf-8")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
