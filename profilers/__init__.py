"""What a cut costs: enclave, hand-off and accelerator time, each with how it was come by."""
