"""What the report measures: the KPIs and the mean reward, with the unit and the words they are shown in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpusched.core.kpi import HEADLINE, KPIS

REWARD = "reward_mean"
COST, QOS = "replica_seconds", "qos_violation_rate"
"""The two axes of the trade-off: what is paid and what is delivered."""
TESTED = (*HEADLINE, REWARD)
"""The family of tests of one load; nothing outside it is given a p."""
ACRONYMS = {"qos": "QoS", "slo": "SLO", "gpu": "GPU", "cpu": "CPU", "vram": "VRAM", "s": "second"}


@dataclass(kw_only=True, frozen=True)
class Measure:
    """One measured quantity: `unit` is the one shown, `scale` turns the stored SI value into it."""

    name: str
    label: str
    unit: str
    scale: float
    better: int
    meaning: str

    @property
    def axis(self) -> str:
        """The label of an axis, with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def heading(self) -> str:
        """The label of a column, with its unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def shown(self, value: float) -> float:
        """Return a stored value in the unit shown."""
        return value * self.scale


def measure(name: str) -> Measure:
    """Return the measure of that name: a KPI or the mean reward."""
    if name == REWARD:
        return Measure(name=name, label="Mean reward", unit="per step", scale=1.0, better=1,
                       meaning="mean reward per control step: the training signal, not a KPI")  # fmt: skip
    kpi = KPIS[name]
    unit, scale = _shown_unit(name, kpi.unit)
    return Measure(
        name=name,
        label=_label(name, kpi.unit),
        unit=unit,
        scale=scale,
        better=kpi.better,
        meaning=kpi.meaning,
    )


def difference_unit(m: Measure) -> str:
    """Return the unit of a difference: percentage points where the values are percentages."""
    return "pp" if m.unit == "%" else m.unit


def number(value: float, resolution: float = math.nan) -> str:
    """Return a value as text with a true minus sign, rounded to two digits of `resolution` (its half-width).

    Without a resolution four significant digits are shown; NaN is "–".
    """
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if math.isfinite(resolution) and resolution > 0:
        digits = 1 - math.floor(math.log10(resolution))
    else:
        digits = 3 - (math.floor(math.log10(abs(value))) if value else 3)
    text = f"{value:,.{min(max(digits, 0), 8)}f}"
    if set(text) <= set("-0.,"):
        text = text.lstrip("-")
    return text.replace(",", "\u2009").replace("-", "−")


def p_text(p: float) -> str:
    """Return a p value as text: "< 0.001", three decimals, or "–" where there is none."""
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_equals(p: float) -> str:
    """Return a p value as it follows a "p": "= 0.012" or "< 0.001"."""
    return p_text(p) if p < 0.001 else f"= {p_text(p)}"


def signed(text: str) -> str:
    """Return a number's text with a plus where it is above 0."""
    return text if text.startswith(("−", "–", "∞")) or not text.strip("0.\u2009") else f"+{text}"


def _shown_unit(name: str, unit: str) -> tuple[str, float]:
    if unit == "s" and name.startswith("latency"):
        return "ms", 1000.0
    if unit == "1" and name.endswith(("_rate", "_utilization", "_attainment")):
        return "%", 100.0
    return ("count" if unit == "1" else unit), 1.0


def _label(name: str, unit: str) -> str:
    """Return `goodput_per_gpu_s` as "Goodput per GPU second": the suffix that only repeats the unit is dropped."""
    stem = name.removesuffix("_rps") if unit == "req/s" else name.removesuffix("_s") if unit == "s" else name
    words = [ACRONYMS.get(word, word) for word in stem.split("_")]
    text = " ".join(words)
    return text[0].upper() + text[1:]
