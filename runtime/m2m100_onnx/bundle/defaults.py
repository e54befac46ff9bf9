"""The search options that a bundle asks for.

Knows the bundle's generation config and the table of options; knows no calls.
"""

from __future__ import annotations

from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.bundle.generation import options_from_config
from m2m100_onnx.errors import BundleError, InvalidInputError
from m2m100_onnx.options import OPTIONS, SearchOptions, check_ids

__all__ = ["default_options"]


def default_options(bundle: Bundle) -> SearchOptions:
    """Returns the search options of a bundle's generation config.

    Raises:
        BundleError: the file asks for something that cannot be.
    """
    try:
        options = options_from_config(
            bundle.generation,
            is_generation_config=bundle.has_generation_config,
            positions=bundle.config.max_position_embeddings,
        )
        check_ids(options, bundle.config.vocab_size)
        return options
    except InvalidInputError as error:
        # The file has transformers' names.
        name, _, rest = str(error).partition(":")
        row = OPTIONS.get(name)
        theirs = row.transformers if row and row.transformers in bundle.generation else name
        raise BundleError(f"{bundle.generation_file}: {theirs}:{rest}") from None
