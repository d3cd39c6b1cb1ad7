"""Preparing: documents of any source, filtered, as ArrayRecord shards with a manifest (see `job`).

`filters.apply` and `codec.encode` make a stored record of a document and know nothing of shards:
a pipeline on many machines (`beam`) calls the same two.
"""
