"""Known vulnerabilities of the pinned dependencies, by pip-audit, where it can ask for them.

    python tools/audit.py

Without pip-audit, without a network, or where the advisories do not come, it says so and ends well;
a package with a known vulnerability ends it with 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

PINS = Path(__file__).parents[1] / "constraints.txt"
SECONDS = 120


def report(text: str) -> tuple[int, str]:
    """What a report of pip-audit's says.

    Args:
        text: The report, in JSON.

    Returns:
        Exit code, and the lines for a person.
    """
    packages = json.loads(text)["dependencies"]
    unknown = [package for package in packages if "skip_reason" in package]
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, mended in "
        f"{' or '.join(found['fix_versions']) or 'no version yet'}"
        for package in packages
        for found in package.get("vulns", [])
    ]
    known = len(packages) - len(unknown)
    summary = f"{known} of {len(packages)} packages audited, {len(lines)} known vulnerabilities"
    if unknown:
        summary += f"; the advisories do not know {len(unknown)}"
    return int(bool(lines)), "\n".join([*lines, summary])


def audit() -> tuple[int, str]:
    """Audit the pinned versions.

    Returns:
        Exit code, and the lines for a person.
    """
    if find_spec("pip_audit") is None:
        return 0, "not audited: pip-audit is not installed (pip install 'contextseg[audit]')"
    command = [sys.executable, "-m", "pip_audit", "-r", str(PINS), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", timeout=SECONDS, check=False
        )
        return report(done.stdout)
    except subprocess.TimeoutExpired:
        return 0, f"not audited: no answer within {SECONDS} s"
    except (ValueError, KeyError):
        why = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        return 0, f"not audited: the advisories cannot be read ({why})"


if __name__ == "__main__":
    code, said = audit()
    print(f"pip-audit: {said}")
    sys.exit(code)
