"""What runs in the enclave; started by name, imported by nothing outside."""
