"""Hypervisor adapters behind one contract (`fleetbox.backends.base`)."""
