"""The tokenizer of the `tiny` preset, and the script that makes it."""
