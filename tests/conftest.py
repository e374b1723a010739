"""No test goes to the network: LiteLLM's price table is the one it ships with."""

import os

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
