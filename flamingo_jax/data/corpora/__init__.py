"""Corpora: from a stored record to a page, a pair or a clip, one module a family of datasets."""
