"""The Hugging Face hub, from which PG19 and lm-eval's data sets come: asked once, before its library waits for it."""

import os

from corpus.hub import HUB, hub_answers


def note_if_offline() -> str:
    """Let the hub's library look into its cache alone if the hub is silent for 3 s; return the reason, empty if it answered.

    The library would try again for a minute. It reads these variables when it is imported, so call this before.
    """
    if "HF_HUB_OFFLINE" in os.environ or hub_answers():
        return ""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    return f"no answer from {HUB}, and not in its cache"
