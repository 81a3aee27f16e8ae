"""The configuration: its values, and how they are read from YAML."""
