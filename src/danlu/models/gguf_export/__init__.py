"""Writing GGUF files: architectures, metadata, vocabulary, tensors, and the check of what was written."""
