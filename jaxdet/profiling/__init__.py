"""Cost of a network: operations and time per layer, and roofline."""
