"""One module per verb or family of verbs."""
