"""Where the runs' files go: a folder or a URL, tried before a trial is run rather than after it."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gpusched.core.errors import StoreError

NEEDS = {"s3": "boto3", "gs": "google.cloud.storage", "wasbs": "azure.storage.blob"}
"""What MLflow imports only when the first file is written."""


def located(artifacts: str) -> str:
    """Return a place of artifacts as a URL: a folder's name becomes its absolute file:// address."""
    return artifacts if not artifacts or "://" in artifacts else Path(artifacts).absolute().as_uri()


def check_place(url: str) -> None:
    """Raise StoreError where no file could be written there: a folder is tried, of another place the client is looked for."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        folder = Path(unquote(parts.path))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise StoreError(
                f"tracking.artifacts: {folder} cannot be written ({error.strerror}). Give write permission, or name another folder."
            ) from error
    elif (client := NEEDS.get(parts.scheme)) and not _there(client):
        raise StoreError(
            f"tracking.artifacts = {url!r}: needs the package of {client}. Install it, or name a folder."
        )


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package above it
        return False
