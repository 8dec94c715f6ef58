"""Snapshots that users keep: their store, and archives to carry them elsewhere."""
