"""Copying files between this host and members, and between members (`fleetbox cp`, `Member.copy_to`, `copy_from`)."""
