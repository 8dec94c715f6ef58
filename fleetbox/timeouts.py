"""`FLEETBOX_TIMEOUT_SCALE`: one number that stretches every time limit, for hosts that are slow or shared."""

from __future__ import annotations

import os

DEFAULT_LIMIT_S = 60.0
"""How long a wait lasts that is given no limit, on KVM and before it is scaled."""

EMULATED_STRETCH = 5.0


def timeout_scale() -> float:
    """What every time limit is multiplied by (1 by default, and for what is no number)."""
    try:
        return max(0.01, float(os.environ.get("FLEETBOX_TIMEOUT_SCALE", "1")))
    except ValueError:
        return 1.0


def stretch(accelerator: str) -> float:
    """How much longer a guest takes than on KVM, by its cluster's accelerator: a boot of 7 s there takes 31 to 47 s
    emulated.
    """
    return EMULATED_STRETCH if accelerator == "tcg" else 1.0
