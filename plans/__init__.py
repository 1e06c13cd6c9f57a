"""Plans: which block runs in the enclave, outside on masked values, or outside in the clear."""
