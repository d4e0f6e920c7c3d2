"""Shapes and types of gpt_lightning.model are checked at every call while testing, and only then."""

import jaxtyping

# As everywhere in Python, an int will do where a float is expected (PEP 484).
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"

jaxtyping.install_import_hook("gpt_lightning.model", CHECKER)
