"""Block-level backup of virtual machines that restores with basic Unix tools."""

__version__ = "3.0.0a1"
