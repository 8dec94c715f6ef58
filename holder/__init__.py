"""The holder: the detached process of a cluster, its orchestrator, records and images."""
