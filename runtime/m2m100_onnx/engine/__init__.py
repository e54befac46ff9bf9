"""Who runs when: batches, threads, deadlines."""
