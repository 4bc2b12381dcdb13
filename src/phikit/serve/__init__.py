"""The HTTP server: OpenAI's interface over the local engine."""
