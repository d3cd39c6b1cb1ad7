"""Readers: random access to records as they are stored, one module a format (see `record`)."""
