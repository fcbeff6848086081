"""Checkpoints: presets, tokenizers, chat templates, import, export, Mono-InternVL."""
