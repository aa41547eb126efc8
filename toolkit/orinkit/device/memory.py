# SPDX-License-Identifier: Apache-2.0
"""How much memory the system could give now."""

from __future__ import annotations

import re
from pathlib import Path

_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)


def available(root: Path = Path("/")) -> int:
    """MemAvailable in bytes, of which page cache is a part; 0 where the system does not tell."""
    try:
        found = _AVAILABLE.search((root / "proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0
