"""Programs and servers of storages that backy asks, for sources and targets alike."""
