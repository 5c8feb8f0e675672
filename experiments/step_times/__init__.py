"""Step times learned from the tables of real runs. They live on this floor, since it reads parquet."""
