"""The set flamingo_documents: documents of any source, filtered; TFDS asks for this folder."""
