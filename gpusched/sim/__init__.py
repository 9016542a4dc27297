"""The compiled simulator: requests, Triton, GPU sharing, pods, the control plane and its HPA.

Importing this package decides where numba keeps compiled code, before any kernel is declared.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numba


def _cache_folder() -> Path:
    """Return a writable cache folder named after the kernels' sources.

    numba notices an edit only in the file of the outermost function, so a changed helper would go on
    running stale code; a folder per source hash makes that impossible. A read-only install with no
    writable home (a container with an arbitrary user) falls back to the temporary folder.
    """
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text = path.read_bytes()
        if b"@jit" in text or path.name == "records.py":
            sources.update(text)
    name = f"gpusched-numba-{sources.hexdigest()[:16]}"
    home = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    for base in (Path(home), Path(tempfile.gettempdir())):
        folder = base / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="gpusched-numba-"))


numba.config.CACHE_DIR = str(_cache_folder())
