"""Kubernetes quantities ("500m", "1", "2k") ↔ numbers."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from gpusched.core.errors import ClusterError


def number(quantity: Any) -> Decimal:
    """Return a quantity's value."""
    parse: Any = parse_quantity
    try:
        return Decimal(parse(str(quantity)))
    except ValueError as error:
        raise ClusterError(f"Kubernetes: {quantity!r} is no quantity ({error}).") from None


def milli(value: float) -> str:
    """Return a value as a quantity, in thousandths where it is not whole and rounded up as the API does."""
    thousandths = int((Decimal(repr(value)) * 1000).to_integral_value(rounding=ROUND_CEILING))
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"
