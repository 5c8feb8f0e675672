"""Attention of packed, ragged queries over a K/V cache kept in blocks."""
