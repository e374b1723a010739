"""The ledger: everything that was paid for, on disk before it is used."""
