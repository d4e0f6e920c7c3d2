"""How config.json speaks of rotary positions: ours turn all of a head, by base 10000, and are not stretched.

transformers 5 has `rope_parameters`; before, there were `rope_theta` and, when stretched, `rope_scaling`. Both are
written, and both are read.
"""

from typing import Any

from gpt_lightning.model.huggingface.family import Settings, expect
from gpt_lightning.model.rotary import BASE

SETTINGS: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": BASE}, "rope_theta": BASE}
KNOWN = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


def check(
    settings: Settings, theta: str = "rope_theta", share: str = "partial_rotary_factor", unsaid: float = 1.0
) -> None:
    """Raises ValueError naming a setting that is not as ours.

    theta, share: what the base, and the share of a head that is turned, were called before transformers 5; unsaid: the
    share that a config.json means that says none.
    """
    rope = (settings.get("rope_parameters") or {}) | (settings.get("rope_scaling") or {})
    for key in sorted(rope.keys() - KNOWN):
        raise ValueError(f"rope_parameters has {key}; expected rope_type 'default', which has no such number")
    expect("rope_type", rope.get("rope_type", rope.get("type", "default")), "default")
    expect(theta, rope.get("rope_theta", settings.get(theta, BASE)), BASE)
    expect(share, rope.get("partial_rotary_factor", settings.get(share, unsaid)), 1.0)
