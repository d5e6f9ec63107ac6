"""What a network costs: layers, operations, seconds, roofline."""
