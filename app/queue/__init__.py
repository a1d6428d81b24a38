"""The queue: SQL holds the truth behind `Ledger`, Redis wakes agents up behind `Wake`. See docs/adr/0001."""
