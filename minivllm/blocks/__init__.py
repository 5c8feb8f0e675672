"""K/V memory as numbers: block ids, reference counts, block tables, the prefix index and its eviction. No tensors."""
