"""No test speaks TLS, and LiteLLM makes a client per call of the batch API: they share the certificates of one load."""

import functools
import ssl

ssl.create_default_context = functools.cache(ssl.create_default_context)  # type: ignore[assignment]
