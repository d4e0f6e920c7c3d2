"""Shapes and types of gpt_lightning.model are checked at every call while testing, and only then."""

import jaxtyping

jaxtyping.install_import_hook("gpt_lightning.model", "beartype.beartype")
