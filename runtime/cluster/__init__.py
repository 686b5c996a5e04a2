"""Many machines, through Ray: a folder run over a cluster, and engines for a fleet."""
