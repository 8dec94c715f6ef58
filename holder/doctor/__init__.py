"""Whether this host can run machines, what a new cluster would get here, and repairing what can be repaired."""

from fleetbox.holder.doctor.examination import examine
from fleetbox.holder.doctor.repairs import fix

__all__ = ["examine", "fix"]
