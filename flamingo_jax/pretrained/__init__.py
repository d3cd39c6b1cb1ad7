"""Published weights → our parameters: one table of names a family."""
