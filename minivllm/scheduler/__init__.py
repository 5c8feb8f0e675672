"""Who runs when: the mechanism (budgets, chunks, blocks, preemption) and the policies that decide the order."""
