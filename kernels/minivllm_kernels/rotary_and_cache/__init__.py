"""Between the projection and attention: the heads' norm, the rotation, and the write of K and V to their cache."""
