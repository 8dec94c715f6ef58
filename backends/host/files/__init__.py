"""Files that come from elsewhere, and blocking work on files that can be stopped."""
