"""`fleetbox prune`: what nobody owns is found and removed, and nothing else."""
