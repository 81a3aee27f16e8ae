"""A client for NBD, the protocol of Network Block Devices: reads what any such server exports."""
