"""Values and names: no module here reads or writes anything."""
