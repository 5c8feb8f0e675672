"""The first of a row's largest logits."""
