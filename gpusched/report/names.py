"""Names of files made from names of studies and loads."""

import hashlib
import re


def file_name(text: str) -> str:
    """Return a text as a file name; where characters must go, a hash keeps two texts apart."""
    plain = re.sub(r"[^\w.\-]+", "_", text).strip(".") or "_"
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
