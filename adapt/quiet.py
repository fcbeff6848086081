"""Keep the libraries' chatter from the user's terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers below errors, and its progress bars."""
    import transformers.utils.logging as library

    verbosity, had_bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if had_bars:
            library.enable_progress_bar()


@contextmanager
def quiet_training() -> Iterator[None]:
    """Silence DeepSpeed as well, and what it and peft do in an outdated way."""
    from deepspeed.utils import logger

    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet_transformers(), warnings.catch_warnings():
            # They call torch and transformers by older names.
            for module in (r"torch\.distributed", r"transformers\.modeling_utils"):
                warnings.filterwarnings("ignore", category=FutureWarning, module=module)
            yield
    finally:
        logger.setLevel(level)
