"""The helper of the `remote` backend: it has the hypervisor and makes the networks, for who can do neither."""
