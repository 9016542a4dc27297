"""What the tests of the live room share: a real Prometheus."""

from __future__ import annotations

from prometheus_double import prometheus

__all__ = ["prometheus"]
