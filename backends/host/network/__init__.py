"""A cluster's network on the host: bridge, taps, firewall, forwarding, names, and the write-ahead record of it all."""
