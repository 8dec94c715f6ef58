"""Warm members: how a machine that woke from a template gets an identity of its own."""
