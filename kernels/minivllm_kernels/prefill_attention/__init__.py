"""Attention of packed, ragged queries, many tokens of a request at a time, over a K/V cache kept in blocks."""
