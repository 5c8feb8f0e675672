"""What the products with 4-bit and with 8-bit weights share on a GPU."""
