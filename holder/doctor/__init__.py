"""Whether this host can run machines, what a new cluster would get here, and installing what is missing."""

from fleetbox.holder.doctor.examination import examine
from fleetbox.holder.doctor.packages import fix

__all__ = ["examine", "fix"]
