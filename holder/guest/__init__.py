"""What a guest is given: its seed, its keys, its disks and its fixtures."""
