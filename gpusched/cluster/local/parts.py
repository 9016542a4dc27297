"""What a local cluster is made of, where it is found, and what to do where something is missing."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gpusched.core.errors import ClusterError

CURE = "Run `make local`."
PROBE = """
import importlib, importlib.util, json, sys, sysconfig
def version(name):
    try:
        return importlib.import_module(name).__version__
    except Exception as error:
        return f"!{type(error).__name__}: {error}"
spec = importlib.util.find_spec("pytriton")
print(json.dumps({"numpy": version("numpy"), "onnxruntime": version("onnxruntime"),
                  "pytriton": list(spec.submodule_search_locations)[0] if spec else "",
                  "python": sys.version_info[:2], "libdir": sysconfig.get_config_var("LIBDIR") or ""}))
"""
PROBE_S = 60.0
ANSWER_S = 1.0
"""How long a page may take; also Kubernetes' default for a probe, timeoutSeconds."""


@dataclass(frozen=True, kw_only=True)
class Triton:
    """An installed Triton: its server, its Python backend and the environment its models run in."""

    server: Path
    backend: tuple[Path, ...]
    environment: Mapping[str, str]
    told: str


@cache
def triton(venv: Path) -> Triton:
    """Return the Triton installed in a virtual environment of its own.

    Its models run in the environment whose bin comes first in PATH. The Python backend of this Triton gives
    empty answers under numpy 2, with HTTP 200, so that is refused here.
    """
    python = venv / "bin" / "python"
    if not python.exists():
        raise ClusterError(f"cluster.triton = {str(venv)!r}: Triton is not installed there. {CURE}")
    found = _probe(python)
    broken = [name for name in ("numpy", "onnxruntime") if found[name].startswith("!")]
    if broken or not found["pytriton"]:
        what = ", ".join([*broken, *([] if found["pytriton"] else ["nvidia-pytriton"])])
        raise ClusterError(f"cluster.triton = {str(venv)!r}: {what} is missing or broken there. {CURE}")
    if int(found["numpy"].partition(".")[0]) >= 2:
        raise ClusterError(
            f"cluster.triton = {str(venv)!r}: has numpy {found['numpy']}, under which Triton's Python backend gives "
            f"empty answers; it needs numpy < 2. {CURE}"
        )
    return _layout(venv, found)


def _probe(python: Path) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [python, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_S, check=True
        )
        answer: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ClusterError(f"{python}: does not run ({error}). {CURE}") from None
    return answer


def _layout(venv: Path, found: dict[str, Any]) -> Triton:
    root = Path(found["pytriton"]) / "tritonserver"
    major, minor = found["python"]
    backend = (
        root / "backends" / "python" / "libtriton_python.so",
        root / "backends" / "python" / "triton_python_backend_utils.py",
        root / "python_backend_stubs" / f"{major}.{minor}" / "triton_python_backend_stub",
    )
    server = root / "bin" / "tritonserver"
    for path in (server, *backend):
        if not path.exists():
            raise ClusterError(
                f"{path}: is not there, though nvidia-pytriton is installed (is Python {major}.{minor} too new for it?). {CURE}"
            )
    return Triton(
        server=server,
        backend=backend,
        environment={
            **{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
            "PATH": f"{(venv / 'bin').absolute()}:{os.environ.get('PATH', '')}",
            # A Python that was not installed system-wide keeps its library where the linker does not look.
            "LD_LIBRARY_PATH": f"{found['libdir']}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":"),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        },
        told=f"{server}; ONNX Runtime {found['onnxruntime']}, numpy {found['numpy']}",
    )


def network(venv: Path, onnx: str) -> Path:
    """Return the model file: the one named, or the random network that `make local` builds."""
    path = Path(onnx) if onnx else venv / "mobilenetv4_conv_small_random.onnx"
    if not path.is_file():
        raise ClusterError(
            f"cluster.onnx = {onnx!r}: {path} is not a file. {'Name an ONNX file.' if onnx else CURE}"
        )
    return path.absolute()


def program(name: str, package: str) -> str:
    """Return where a program of the distribution is; /usr/sbin is not in everybody's PATH."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if found is None:
        raise ClusterError(
            f"cluster=local needs {name}, which is not installed. On Debian and Ubuntu: sudo apt install {package}."
        )
    return found


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on now; another program may still be faster."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]
    finally:
        for one in held:
            one.close()


def get(port: int, path: str, timeout_s: float = ANSWER_S) -> tuple[int, bytes]:
    """Return status and body of a page of a server on this host. Raises OSError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except http.client.HTTPException as error:
        raise OSError(str(error)) from None
    finally:
        connection.close()
