"""Documents of text and media, and what turns them into batches: tokens, pixels, order."""
