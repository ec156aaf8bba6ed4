"""Text files: finding them under the allowed roots, and reading the documents in them."""
