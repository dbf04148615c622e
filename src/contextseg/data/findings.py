"""A finding of `data.check`: how it is written, read and shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from contextseg.disk import read_json
from contextseg.errors import ContextsegError, plural


@dataclass(frozen=True)
class Finding:
    """One problem of a data set.

    Attributes:
        level: "error" where work would stop or its result be false, else "warning".
        case: Name of the case that it is reported under; "" for the whole data set.
        where: The file or folder.
        what: What is wrong, in words.
        remedy: What to do about it, in words.
        kind: One of `check.KINDS`; "" in files that older versions wrote.
        cases: Names of all cases concerned, such as every scan with the same voxels.
    """

    level: Literal["error", "warning"]
    case: str
    where: str
    what: str
    remedy: str
    kind: str = ""
    cases: tuple[str, ...] = ()

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> Finding:
        """A finding from its entry in `findings.json`.

        Args:
            entry: The fields by name. `kind` and `cases` may be absent.

        Returns:
            The finding, equal to the one that was written.

        Example:
            >>> finding = Finding("error", "a", "a.nii.gz", "truncated", "copy it", cases=("a",))
            >>> Finding.from_json(json.loads(json.dumps(asdict(finding)))) == finding
            True
        """
        return Finding(**{**entry, "cases": tuple(entry.get("cases", ()))})


def read_findings(path: str | Path) -> list[Finding]:
    """Read a `findings.json`, also of older versions.

    Args:
        path: The file: a list of findings.

    Returns:
        The findings, in the order of the file.

    Raises:
        ContextsegError: The file is missing or damaged, or is not a list of findings.
    """
    try:
        return [Finding.from_json(entry) for entry in read_json(path)]
    except (TypeError, ValueError, AttributeError) as error:
        remedy = "delete it and check the data set again"
        raise ContextsegError(path, "not a list of findings", remedy) from error


def to_text(findings: Sequence[Finding]) -> str:
    """The findings as plain text, case by case, with a last line that counts them.

    Args:
        findings: What `check` returned, in its order.

    Returns:
        Several lines, without a newline at the end.

    Example:
        >>> image = "every voxel of the image is 0"
        >>> print(to_text([Finding("error", "a", "a.nii.gz", image, "export it again")]))
        a
          error: a.nii.gz: every voxel of the image is 0
            remedy: export it again
        <BLANKLINE>
        1 error, 0 warnings
    """
    lines: list[str] = []
    previous = None
    for finding in findings:
        if finding.case != previous:
            if lines:
                lines.append("")
            lines.append(finding.case or "the data set")
            previous = finding.case
        lines.append(f"  {finding.level}: {finding.where}: {finding.what}")
        lines.append(f"    remedy: {finding.remedy}")
    if lines:
        lines.append("")
    return "\n".join([*lines, _count(findings)])


def _count(findings: Sequence[Finding]) -> str:
    errors = sum(finding.level == "error" for finding in findings)
    warnings = len(findings) - errors
    if not findings:
        return "nothing is wrong"
    return f"{plural(errors, 'error')}, {plural(warnings, 'warning')}"


def to_json(findings: Sequence[Finding]) -> str:
    """The findings as JSON.

    Args:
        findings: What `check` returned.

    Returns:
        An object with `errors` and `warnings`, which count, and `findings`, a list of objects with
        the fields of `Finding`.
    """
    errors = sum(finding.level == "error" for finding in findings)
    content = {
        "errors": errors,
        "warnings": len(findings) - errors,
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(content, indent=2)


def raise_errors(findings: Sequence[Finding], dataset: str | Path) -> None:
    """Raise the errors among findings as one `ContextsegError`; nothing for warnings alone.

    Args:
        findings: What `check` found.
        dataset: Folder of the data set, for the remedy.

    Raises:
        ContextsegError: There is an error; the message names the first and counts the others.
    """
    errors = [finding for finding in findings if finding.level == "error"]
    if not errors:
        return
    first = errors[0]
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    remedy = f"{first.remedy}; `contextseg check {dataset}` lists every problem"
    raise ContextsegError(first.where, first.what + more, remedy)
