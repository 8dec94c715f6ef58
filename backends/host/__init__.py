"""What backends share of the host: its network, disks and processes."""
