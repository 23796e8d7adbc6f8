"""The gateway: one OpenAI-compatible HTTP address in front of the whole fleet. It keeps nothing that must be kept."""
