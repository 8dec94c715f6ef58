"""What hypervisors do alike: a machine's life from launch to the end of its process, and what goes with it."""
