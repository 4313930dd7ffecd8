"""Numbers as a person reads them: shares, differences and p-values as text. Knows nothing about what they measure."""

from __future__ import annotations


def percent(share: float) -> str:
    """Return a share as text with one decimal, "93.1 %"."""
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    text = f"{100 * share:+.1f}".replace("-", "−")
    # What rounds to 0 has no sign: "−0.0" would look like a loss.
    return "0.0" if text in ("−0.0", "+0.0") else text


def p_text(p_value: float) -> str:
    """Return a p-value as text, "p = 0.012"."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.{3 if p_value < 0.1 else 2}f}"


def duration(seconds: float | None) -> str:
    """Return seconds as a person would say them."""
    if seconds is None:
        return "–"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
