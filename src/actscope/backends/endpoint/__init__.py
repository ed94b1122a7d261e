"""Any OpenAI-compatible server as a source of text.

An endpoint gives text and no activations: its answers are replayed through a local model. It is no
``BACKEND`` therefore, and is imported by name: ``from actscope.backends.endpoint import Endpoint``.
"""

from actscope.backends.endpoint.client import Endpoint
from actscope.backends.endpoint.reply import EndpointText, split_thinking

__all__ = ["Endpoint", "EndpointText", "split_thinking"]
