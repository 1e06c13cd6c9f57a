"""Linear layers computed outside the enclave on masked values, and checked inside.

Needs torch and cryptography alone, as whatever the head worker imports must.
"""
