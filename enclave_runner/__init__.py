"""Everything that concerns the enclave's host: what of SGX and Gramine this machine has."""
