"""What the products of two 8-bit numbers, integers or floats, share on a GPU."""
