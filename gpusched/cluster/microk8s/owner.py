"""Which process holds the cluster, and for which trial."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass

from gpusched.core.errors import ClusterError
from gpusched.core.process import Process


@dataclass(frozen=True, kw_only=True)
class Owner(Process):
    """A process, its host's name for those who look for it, and its trial."""

    host: str
    trial: str = ""

    @classmethod
    def me(cls, trial: str = "") -> Owner:
        """Return this process."""
        return cls(**asdict(Process.me()), host=socket.gethostname(), trial=trial)

    @classmethod
    def read(cls, text: str) -> Owner:
        """Read what `write` wrote; ClusterError where it is something else."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise ClusterError(
                f"the journal's owner cannot be read ({error}): {text[:100]!r}. Restore by hand what it tells, then remove "
                "it: kubectl get configmap gpusched-journal -o yaml"
            ) from None

    def write(self) -> str:
        """Return the owner as text."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def token(self) -> str:
        """What marks the owner's objects in the cluster."""
        return f"{self.host}/{self.pid}/{self.started_s:.2f}"

    def __str__(self) -> str:
        trial = f" (trial {self.trial})" if self.trial else ""
        return f"process {self.pid} on {self.host}{trial}"
